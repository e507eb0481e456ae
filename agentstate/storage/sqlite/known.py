"""The rows of states that the writing connection wrote last, so that the next commit needn't read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.sqlite.rows import State
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["KnownStates"]

MOST: Final = 1024


class KnownStates:
    """Valid for as long as no other connection, of this process or another, has written to the file."""

    def __init__(self) -> None:
        """Know nothing."""
        self._states: dict[StateScope, State] = {}
        self._data_version: object = None

    def begin(self, connection: Connection) -> None:
        """Forget everything if somebody else wrote; to be called at the beginning of a write transaction."""
        data_version = connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version:
            self.forget()
            self._data_version = data_version

    def get(self, scope: StateScope) -> State | None:
        """Return the state's row if it is known. Whoever changes it writes it, or calls `forget`."""
        return self._states.get(scope)

    def keep(self, state: State) -> None:
        """Know a row as it was just written."""
        if len(self._states) >= MOST:
            self._states.clear()
        self._states[state.scope] = state

    def drop(self, scope: StateScope) -> None:
        """Forget one state."""
        self._states.pop(scope, None)

    def forget(self) -> None:
        """Forget everything: a transaction was undone, or something else changed rows."""
        self._states.clear()
