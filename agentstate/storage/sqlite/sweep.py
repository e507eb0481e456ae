"""Removing from a SQLite state file: drops, bounded sweeps of what has expired, failed turns.

Whoever removes takes the state's turn for the moment, so nothing goes under a holder's hands.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

from agentstate.errors import DamagedStateError
from agentstate.storage.protocol import FAILURE_COUNT, FAILURE_SECONDS, Stamp, Swept
from agentstate.storage.sqlite.rows import COLUMNS, SWEPT, State, item_crc, load, record_crc, scope_of, unpack
from agentstate.storage.sqlite.scopes import bury, save_heads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentstate.scope import StateScope
    from agentstate.storage.oslock import MachineLocks
    from agentstate.storage.sqlite.schema import Statements

__all__ = ["BriefTurns", "Sweep", "add_failure", "drop"]

HELD_MARGIN: Final = 100
EXPIRED_SCOPES: Final = "SELECT tenant, kind, id FROM scopes WHERE expires <= ? ORDER BY expires LIMIT ?"
EXPIRED_ENTRIES: Final = """
SELECT scope, section, key, CASE typeof(value) WHEN 'integer' THEN 8 ELSE length(value) END
FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?"""
EXPIRED_ITEMS: Final = """
SELECT l.scope, l.name, i.key, i.seq, i.id, i.expires, length(i.value)
FROM items i JOIN logs l ON l.number = i.key >> 32 WHERE i.expires <= ? AND i.mark < 2 ORDER BY i.expires LIMIT ?"""
BY_NUMBER: Final = f"SELECT {COLUMNS}, tenant, kind, id FROM scopes WHERE number = ?"  # noqa: S608
OLD_TOMBSTONES: Final = """
DELETE FROM tombstones WHERE number IN (SELECT number FROM tombstones WHERE until <= ? ORDER BY until LIMIT ?)
AND number <> (SELECT -scope FROM journal ORDER BY place DESC LIMIT 1) RETURNING number"""
OLD_FAILURES: Final = """
DELETE FROM failures WHERE number IN
(SELECT number FROM (SELECT number, at FROM failures ORDER BY number LIMIT ?) WHERE at <= ?)"""


def drop(
    connection: Statements, scope: StateScope, stamp: Stamp | None, now: float, free: Callable[[StateScope], bool]
) -> bool:
    """Remove a live state if its stamp is that one and its turn is free. Return whether it was removed."""
    state = load(connection, scope)
    if state is None or not state.alive(now) or (stamp is not None and state.stamp != stamp) or not free(scope):
        return False
    bury(connection, state, now, dropped=True)
    return True


def add_failure(connection: Statements, scope: StateScope, record: bytes, now: float) -> None:
    """Keep what a failed turn left, and forget what is too old or too much."""
    address = scope.text
    row = (address, now, record, record_crc(record, str(now)))
    connection.execute("INSERT INTO failures(address, at, record, crc) VALUES(?, ?, ?, ?)", row)
    connection.execute(
        "DELETE FROM failures WHERE address = ?1 AND (at <= ?2 OR number <= "
        "(SELECT number FROM failures WHERE address = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?3))",
        (address, now - FAILURE_SECONDS, FAILURE_COUNT),
    )


class BriefTurns:
    """The turns of states that are being removed, taken for that moment."""

    def __init__(self, locks: MachineLocks, holder: str) -> None:
        """``holder`` is what others are told meanwhile."""
        self._locks = locks
        self._holder = holder
        self._nonce = secrets.randbits(62) + 1
        self._taken: set[StateScope] = set()

    def take(self, scope: StateScope) -> bool:
        """Take the turn if it is free."""
        if self._locks.try_take(scope.text, self._nonce, self._holder):
            self._taken.add(scope)
            return True
        self._locks.leave(scope.text, self._nonce)
        return False

    def settle(self) -> None:
        """Give all back; to be called when the transaction has ended, however it did."""
        for scope in self._taken:
            self._locks.leave(scope.text, self._nonce)


class Sweep:
    """One bounded step of removing what has expired."""

    def __init__(self, connection: Statements, now: float, limit: int, free: Callable[[StateScope], bool]) -> None:
        """``free`` takes the turn of a scope for the time of the step, and says whether it could."""
        self._db = connection
        self._now = now
        self._limit = limit
        self._free = free
        self._states: dict[int, State | None] = {}

    def run(self) -> Swept:
        """Remove at most ``limit`` expired scopes, entries and items."""
        scopes = tuple(self._expired_scopes())
        entries = self._expired_entries(self._limit - len(scopes))
        items = self._expired_items(self._limit - len(scopes) - entries)
        for state in self._states.values():
            if state is not None:
                save_heads(self._db, state)
        self._forget_old()
        return Swept(scopes, entries, items, done=len(scopes) + entries + items < self._limit)

    @property
    def changed(self) -> list[StateScope]:
        """The states of which entries or items were removed."""
        return [state.scope for state in self._states.values() if state is not None]

    def _expired_scopes(self) -> Iterator[StateScope]:
        left = self._limit
        rows = self._db.execute(EXPIRED_SCOPES, (self._now, self._limit + HELD_MARGIN)).fetchall()
        for tenant, kind, name in rows:
            scope = scope_of(tenant, kind, name)
            if left == 0:
                return
            state = self._undamaged(partial(load, self._db, scope))
            if state is not None and self._free(scope):
                bury(self._db, state, self._now, dropped=True)
                left -= 1
                yield scope

    def _undamaged(self, read: Callable[[], State | None]) -> State | None:
        # A damaged state stays as it is; whoever reads it is told. It must not stop the sweep of others.
        try:
            return read()
        except DamagedStateError:
            return None

    def _state(self, number: int) -> State | None:
        """Return a state whose turn is free, to be saved at the end of the step."""
        if number not in self._states:
            row = self._db.execute(BY_NUMBER, (number,)).fetchone()
            state = None
            if row is not None:
                scope = scope_of(*row[-3:])
                state = self._undamaged(partial(unpack, scope, row[:-3])) if self._free(scope) else None
            self._states[number] = state
        return self._states[number]

    def _expired_entries(self, limit: int) -> int:
        count = 0
        rows = self._db.execute(EXPIRED_ENTRIES, (self._now, limit + HELD_MARGIN)).fetchall() if limit else ()
        for number, section, key, length in rows:
            state = self._state(number) if count < limit else None
            if state is not None:
                sql = "DELETE FROM entries WHERE scope = ? AND section = ? AND key = ?"
                self._db.execute(sql, (number, section, key))
                state.entry_bytes -= len(key) + length
                count += 1
        return count

    def _expired_items(self, limit: int) -> int:
        """Empty expired items, which keep their places, so that positions stay dense, until they are at the head."""
        count, touched = 0, set[tuple[int, str]]()
        rows = self._db.execute(EXPIRED_ITEMS, (self._now, limit + HELD_MARGIN)).fetchall() if limit else ()
        for number, log, key, seq, item_id, expires, length in rows:
            state = self._state(number) if count < limit else None
            if state is not None:
                position = key - state.logs[log].key(0)
                crc = item_crc(seq, position, item_id, b"", expires, SWEPT)
                self._db.execute("UPDATE items SET value = x'', mark = ?, crc = ? WHERE key = ?", (SWEPT, crc, key))
                state.logs[log].size -= length
                touched.add((number, log))
                count += 1
        for number, log in touched:
            self._drop_swept_head(number, log)
        return count

    def _drop_swept_head(self, number: int, name: str) -> None:
        state = self._states[number]
        assert state is not None
        log = state.logs[name]
        start, end = log.key(log.first), log.key(log.head + 1)
        sql = "SELECT key FROM items WHERE key >= ? AND key < ? AND mark <> ? ORDER BY key LIMIT 1"
        row = self._db.execute(sql, (start, end, SWEPT)).fetchone()
        first = row[0] if row is not None else end
        self._db.execute("DELETE FROM items WHERE key >= ? AND key < ?", (start, first))
        log.first += first - start

    def _forget_old(self) -> None:
        few = self._limit // 10 + 1
        for (number,) in self._db.execute(OLD_TOMBSTONES, (self._now, few)).fetchall():
            self._db.execute("DELETE FROM journal WHERE scope = ?", (-number,))
        self._db.execute(OLD_FAILURES, (self._limit, self._now - FAILURE_SECONDS))
