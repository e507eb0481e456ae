"""What writes rows for a group of commits: those of every commit wait, and go to the engine together.

Each statement that runs gives the interpreter lock away and has to get it back, so rows that nobody looks
at meanwhile are handed to the engine at once for the whole group. A statement that isn't put off runs after
all rows that were, so nobody reads or changes anything older than what the group has written so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.sqlite.schema import Connection, Cursor

__all__ = ["Pen"]


class Pen:
    """Runs statements of one write transaction, on the writing thread."""

    __slots__ = ("_connection", "_waiting")

    def __init__(self, connection: Connection) -> None:
        """Begin with a transaction."""
        self._connection = connection
        self._waiting: dict[str, list[Sequence[object]]] = {}

    def later(self, sql: str) -> list[Sequence[object]]:
        """Return the rows for which a statement will run, before anything else looks; add to it at once.

        Each changes one row of its own; a table has only one such statement.
        """
        waiting = self._waiting.get(sql)
        if waiting is None:
            waiting = self._waiting[sql] = []
        return waiting

    def flush(self) -> None:
        """Run what waits."""
        waiting, self._waiting = self._waiting, {}
        for sql, rows in waiting.items():
            self._connection.executemany(sql, rows)

    def execute(self, sql: str, bindings: Sequence[object] = (), /) -> Cursor:
        """Run a statement now."""
        if self._waiting:
            self.flush()
        return self._connection.execute(sql, bindings)

    def executemany(self, sql: str, bindings: Sequence[Sequence[object]], /) -> Cursor:
        """Run a statement for each tuple of values, now."""
        if self._waiting:
            self.flush()
        return self._connection.executemany(sql, bindings)

    def last_insert_rowid(self) -> int:
        """Return the number of the row that `execute` inserted last."""
        return self._connection.last_insert_rowid()
