"""How a context's calls run: in the turn they belong to, or as a small commit of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agentstate.errors import ConflictError
from agentstate.randomness import random_bits
from agentstate.scope import StateScope
from agentstate.state import history
from agentstate.state.record import Origin
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store
from agentstate.state.turn import Frame, Turn
from agentstate.storage.protocol import Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.state.buffer import Buffer
    from agentstate.storage.protocol import Storage

R = TypeVar("R")

TRIES = 20
OUTSIDE = Origin("call")


class ContextBase:
    """A store, who asks of it, and the frame its calls belong to, if any."""

    def __init__(
        self,
        storage: Storage | Store | str | None = None,
        *,
        settings: TurnSettings | None = None,
        principal: str | None = None,
        tenant: str = "",
        frame: Frame | None = None,
    ) -> None:
        """See the class."""
        if isinstance(storage, Store):
            self._store = storage
        else:
            from agentstate.stores import open_store

            self._store = open_store(storage)
        self._settings = settings or TurnSettings()
        self._principal = principal
        self._tenant = tenant
        self._frame = frame
        # What serves a call without waiting for anything, in the usual case.
        self._ready = frame.ready if frame is not None else _never

    @property
    def store(self) -> Store:
        """The store this context works on."""
        return self._store

    @property
    def storage(self) -> Storage:
        """The storage this context works on."""
        return self._store.storage

    @property
    def settings(self) -> TurnSettings:
        """How turns opened here run."""
        return self._settings

    @property
    def principal(self) -> str | None:
        """Who asks."""
        return self._principal

    @property
    def frame(self) -> Frame | None:
        """The frame of the turn that calls belong to, if any."""
        return self._frame

    @property
    def persistent(self) -> bool:
        """Whether what is written here outlives the process."""
        return self.storage.capabilities.durability != "none"

    async def aclose(self) -> None:
        """Close the storage, for whoever shares it too; the next use of a URL or of the default opens it anew."""
        from agentstate.stores import close_store

        await close_store(self._store)

    async def __aenter__(self) -> Self:
        """Return this context; leaving it closes the storage."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- running an operation ------------------------------------------------------------------

    def scope_of(self, context_id: str) -> StateScope:
        """Return the address of a state; inside a turn, its own id means its own state, of whatever kind."""
        frame = self._frame
        if frame is not None:
            scope = frame.turn.scope
            if scope.id == context_id:
                return scope
        return StateScope.conversation(context_id, tenant=self._tenant)

    def _joined(self, scope: StateScope) -> Frame | None:
        return self._frame if self._frame is not None else Frame.joined(self._store, scope)

    async def _run(self, context_id: str, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        scope = self.scope_of(context_id)
        frame = self._joined(scope)
        if frame is None:
            return await self._outside(scope, operation, *args, **kwargs)
        result = await operation(frame, scope, *args, **kwargs)
        if frame.turn.settings.commit == "immediate" and frame is frame.turn.frame:
            await frame.commit()
        return result

    async def _outside(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        for tried in range(TRIES):
            turn = self._lazy_turn(scope)
            try:
                if self._principal is not None:
                    await turn.frame.log(scope, history.LOG)
                result = await operation(turn.frame, scope, *args, **kwargs)
                await self._store.commit_turn(turn)
            except ConflictError:
                if tried == TRIES - 1:
                    raise
                await _pause(tried)
            else:
                return result
        raise AssertionError  # the last try returned or raised

    def _lazy_turn(self, scope: StateScope) -> Turn:
        snapshot = Snapshot(scope=scope, now=0.0, complete=False)
        return Turn(
            self._store,
            snapshot,
            self._settings._replace(autosave=True, turns="optimistic"),
            OUTSIDE,
            lazy=True,
            principal=self._principal,
        )


def _never(_context_id: str) -> Buffer | None:
    return None


async def _pause(tried: int) -> None:
    """Wait a little, so that contenders don't meet again and again."""
    await asyncio.sleep(random_bits(10) / 2**20 * 2 ** min(tried, 6))
