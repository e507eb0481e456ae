"""One bounded step of removing what has expired from a RocksDB store.

The index of expiries says where to look, and only the row itself is believed: what a removed
state left in the index is just forgotten. States whose turn is held are passed over, and so are
damaged ones: whoever reads them is told.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import DamagedStateError
from agentstate.storage.rocksdb.heads import bury, save
from agentstate.storage.rocksdb.history import tombstone_of
from agentstate.storage.rocksdb.keys import (
    EXPIRY,
    ITEM,
    NUMBERED,
    TIME,
    entry_name,
    id_key,
    item_key,
    scope_at,
)
from agentstate.storage.rocksdb.rows import SWEPT, UNIQUE, pack_item, unpack_entry, unpack_item

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.engine import Engine
    from agentstate.storage.rocksdb.rows import State

__all__ = ["Sweep"]

MOST_ROWS: Final = 200


class Sweep:
    """A bounded part of a step: one batch.

    Attributes:
        scopes: the states it removed; ``entries`` and ``items`` count what it removed of others.
        heads: the states it changed, as they are once the batch is written.
        cursor: where the next part goes on; ``None`` when nothing expired is left.
    """

    def __init__(self, engine: Engine, batch: Any, now: float, free: Callable[[StateScope], bool]) -> None:
        """``free`` says whether nobody holds a state's turn."""
        self.scopes: list[StateScope] = []
        self.entries = self.items = 0
        self.heads: dict[StateScope, State | None] = {}
        self.cursor: bytes | None = None
        self._engine = engine
        self._batch = batch
        self._now = now
        self._free = free
        self._before: dict[StateScope, State] = {}
        self._swept: set[bytes] = set()
        self._logs: set[tuple[StateScope, str]] = set()

    @property
    def removed(self) -> int:
        """How much it removed, as limits count it."""
        return len(self.scopes) + self.entries + self.items

    def run(self, start: bytes, limit: int) -> None:
        """Remove at most ``limit`` states, entries and items that expired, from ``start`` on in the index."""
        end = EXPIRY + TIME.pack(math.nextafter(self._now, math.inf))
        for number, (key, told) in enumerate(self._engine.walk(start, end)):
            if self.removed == limit or number == MOST_ROWS:
                self.cursor = key
                break
            at, row_key = TIME.unpack_from(key, 1)[0], key[1 + TIME.size :]
            # A damaged state stays as it is; whoever reads it is told. It must not stop the sweep of others.
            with suppress(DamagedStateError):
                self._visit(key, row_key, at, told)
        for scope, name in self._logs:
            self._drop_swept_head(scope, name)
        for scope, before in self._before.items():
            after = self.heads[scope]
            if after is not None:
                save(self._batch, before, after)

    def _visit(self, key: bytes, row_key: bytes, at: float, told: bytes) -> None:
        match row_key[:1]:
            case b"h":
                self._expire_state(key, scope_at(row_key[1:]), at)
            case b"e" | b"i":
                self._expire_row(key, row_key, scope_at(told), at)
            case b"t" if tombstone_of(self._engine, scope_at(row_key[1:]))[1] != at:
                self._batch.delete(key)
            case _:
                self._batch.delete(row_key)
                self._batch.delete(key)

    def _expire_state(self, key: bytes, scope: StateScope, at: float) -> None:
        state = self._engine.head(scope)
        if state is None or state.expires != at:
            self._batch.delete(key)
        elif self._free(scope):
            bury(self._engine, self._batch, state, self._now, dropped=True)
            self.heads[scope] = None
            self.scopes.append(scope)

    def _expire_row(self, key: bytes, row_key: bytes, scope: StateScope, at: float) -> None:
        state = self.heads[scope] if scope in self.heads else self._engine.head(scope)
        row = self._engine.get(row_key)
        if state is None or row is None or state.number != NUMBERED.unpack_from(row_key)[1]:
            self._batch.delete(key)
        elif self._free(scope):
            changed = self._changed(scope, state)
            if row_key[:1] == b"e":
                self._expire_entry(changed, row_key, row, at)
            else:
                self._expire_item(changed, row_key, row, at)
            self._batch.delete(key)

    def _changed(self, scope: StateScope, state: State) -> State:
        """Return a state that may be changed, to be saved at the end."""
        if scope not in self._before:
            self._before[scope] = state
            self.heads[scope] = state.copy()
        changed = self.heads[scope]
        assert changed is not None
        return changed

    def _expire_entry(self, state: State, key: bytes, row: bytes, at: float) -> None:
        entry = unpack_entry(state.scope, key, row)
        if entry.expires_at != at:
            return
        self._batch.delete(key)
        length = 8 if isinstance(entry.value, int) else len(entry.value)
        state.entry_bytes -= len(entry_name(key)[1]) + length
        self.entries += 1

    def _expire_item(self, state: State, key: bytes, row: bytes, at: float) -> None:
        """Empty an item, which keeps its place, so that positions stay dense, until it is at the head."""
        _, _, number, position = ITEM.unpack(key)
        name, log = next((name, log) for name, log in state.logs.items() if log.number == number)
        item, mark = unpack_item(state.scope, key, row, position)
        if item.expires_at != at or mark == SWEPT:
            return
        if mark == UNIQUE:
            self._batch.delete(id_key(state.number, number, item.id))
        self._batch.put(key, pack_item(key, item._replace(value=b""), SWEPT))
        self._swept.add(key)
        log.size -= len(item.value)
        self._logs.add((state.scope, name))
        self.items += 1

    def _drop_swept_head(self, scope: StateScope, name: str) -> None:
        state = self.heads[scope]
        assert state is not None
        log = state.logs[name]
        start, end = item_key(state.number, log.number, log.first), item_key(state.number, log.number, log.head + 1)
        for key, row in self._engine.walk(start, end):
            if key not in self._swept and unpack_item(scope, key, row, log.first)[1] != SWEPT:
                return
            self._batch.delete(key)
            log.first += 1
