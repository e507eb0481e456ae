"""How a state stands in a RocksDB store: its head, its entries, its items, and what vouches for each row.

The engine has checksums of its own for its files. The CRC before each value covers the key, too,
so that a row that stands in another's place is found as surely as one that changed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from agentstate.errors import DamagedStateError
from agentstate.storage.protocol import Entry, LogItem, LogView, ScopeInfo, Stamp
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope

__all__ = [
    "SWEPT",
    "UNIQUE",
    "Log",
    "State",
    "damaged",
    "opened",
    "pack_entry",
    "pack_item",
    "packed_json",
    "packed_record",
    "sealed",
    "unpack_entry",
    "unpack_head",
    "unpack_item",
    "unpack_items",
    "unpacked_json",
    "unpacked_record",
]

CRC: Final = struct.Struct(">I")
ENTRY: Final = struct.Struct(">QQdB")
ITEM: Final = struct.Struct(">QdBI")
SEALED_ITEM: Final = struct.Struct(">IQdBI")
COUNTER: Final = struct.Struct(">q")
LENGTH: Final = struct.Struct(">I")
NEVER: Final = 0.0
UNIQUE: Final = 1
SWEPT: Final = 2
IS_COUNTER: Final = 1

crc32 = zlib.crc32


@dataclass(slots=True)
class Log:
    """The head of a log. ``number`` is its own within the state."""

    number: int
    stamp: Stamp
    first: int = 1
    head: int = 0
    next_seq: int = 1
    size: int = 0

    def copy(self) -> Log:
        """Return one that may be changed."""
        return Log(self.number, self.stamp, self.first, self.head, self.next_seq, self.size)

    def view(self, items: tuple[LogItem, ...] = ()) -> LogView:
        """Return it as callers see it."""
        return LogView(self.first, self.head, self.next_seq, self.stamp, self.size, items)


@dataclass(slots=True)
class State:
    """A state's head. One that was stored is never changed, only replaced by a `copy`.

    Attributes:
        number: 0 for a state that has none yet.
        floor: its journal has only versions above it.
        once_first: the oldest idempotency key has this count, the newest ``once_last``.
    """

    scope: StateScope
    number: int = 0
    version: int = 0
    commit_id: int = 0
    birth: int = 0
    floor: int = 0
    created: float = 0.0
    updated: float = 0.0
    expires: float | None = None
    entry_bytes: int = 0
    once_first: int = 1
    once_last: int = 0
    owner: str | None = None
    parent: str | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    sections: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    logs: dict[str, Log] = field(default_factory=dict[str, Log])

    @property
    def stamp(self) -> Stamp:
        """The stamp of its last commit."""
        return Stamp(self.version, self.commit_id)

    def alive(self, now: float) -> bool:
        """Whether it exists and has not expired."""
        return self.number != 0 and (self.expires is None or self.expires > now)

    def copy(self) -> State:
        """Return one that may be changed."""
        return State(
            *(self.scope, self.number, self.version, self.commit_id, self.birth, self.floor, self.created),
            *(self.updated, self.expires, self.entry_bytes, self.once_first, self.once_last, self.owner, self.parent),
            self.labels,
            self.sections.copy(),
            {name: o.copy() for name, o in self.logs.items()},
        )

    def info(self) -> ScopeInfo:
        """Return what a listing says."""
        return ScopeInfo(
            *(self.scope, self.stamp, self.owner, self.created, self.updated, self.expires, self.labels),
            self.entry_bytes,
            {name: log.head - log.first + 1 for name, log in self.logs.items()},
        )

    def packed(self, key: bytes) -> bytes:
        """Return it as it is stored."""
        logs = {name: (o.number, *o.stamp, o.first, o.head, o.next_seq, o.size) for name, o in self.logs.items()}
        told = (
            *(self.number, self.version, self.commit_id, self.birth, self.floor, self.created, self.updated),
            *(self.expires, self.entry_bytes, self.once_first, self.once_last, self.owner, self.parent, self.labels),
            {name: (stamp[0], stamp[1]) for name, stamp in self.sections.items()},
            logs,
        )
        return sealed(key, orjson.dumps(told))


def unpack_head(scope: StateScope, key: bytes, row: bytes) -> State:
    """Return a state's head.

    Raises:
        DamagedStateError: it is not what was written.
    """
    *plain, sections, logs = unpacked_json(scope, key, row, "its head")
    told: tuple[Any, ...] = (
        *(scope, *plain),
        {name: Stamp(*stamp) for name, stamp in sections.items()},
        {name: Log(line, Stamp(at, by), *rest) for name, (line, at, by, *rest) in logs.items()},
    )
    return State(*told)


# -- rows that vouch for themselves ---------------------------------------------------------


def sealed(key: bytes, value: bytes) -> bytes:
    """Return a value as it is stored under a key."""
    return CRC.pack(crc32(value, crc32(key))) + value


def opened(scope: StateScope | None, key: bytes, row: bytes, what: str) -> bytes:
    """Return the value of a row.

    Raises:
        DamagedStateError: it is not what was written.
    """
    value = row[4:]
    if row[:4] != CRC.pack(crc32(value, crc32(key))):
        raise damaged(scope, what)
    return value


def packed_json(key: bytes, value: object) -> bytes:
    """Return JSON as it is stored under a key."""
    return sealed(key, orjson.dumps(value))


def unpacked_json(scope: StateScope | None, key: bytes, row: bytes, what: str) -> Any:
    """Return the JSON of a row.

    Raises:
        DamagedStateError: it is not what was written.
    """
    return orjson.loads(opened(scope, key, row, what))


def packed_record(key: bytes, told: object, data: bytes) -> bytes:
    """Return JSON, and bytes beside it, as they are stored under a key."""
    head = orjson.dumps(told)
    return sealed(key, LENGTH.pack(len(head)) + head + data)


def unpacked_record(scope: StateScope, key: bytes, row: bytes, what: str) -> tuple[Any, bytes]:
    """Return the JSON of a row, and the bytes beside it.

    Raises:
        DamagedStateError: they are not what was written.
    """
    value = opened(scope, key, row, what)
    end = LENGTH.size + LENGTH.unpack_from(value)[0]
    return orjson.loads(value[LENGTH.size : end]), value[end:]


def pack_entry(key: bytes, value: bytes | int, stamp: Stamp, expires: float | None) -> bytes:
    """Return an entry as it is stored."""
    if isinstance(value, int):
        return sealed(key, ENTRY.pack(*stamp, expires or NEVER, IS_COUNTER) + COUNTER.pack(value))
    return sealed(key, ENTRY.pack(*stamp, expires or NEVER, 0) + value)


def unpack_entry(scope: StateScope, key: bytes, row: bytes) -> Entry:
    """Return an entry.

    Raises:
        DamagedStateError: it is not what was written.
    """
    data = opened(scope, key, row, "an entry")
    version, commit_id, expires, kind = ENTRY.unpack_from(data)
    value = data[ENTRY.size :]
    return Entry(COUNTER.unpack(value)[0] if kind else value, Stamp(version, commit_id), expires or None)


def pack_item(key: bytes, item: LogItem, mark: int) -> bytes:
    """Return an item of a log as it is stored; ``mark`` is `UNIQUE`, `SWEPT` or 0."""
    seq, _, name, value, expires = item
    told = name.encode()
    return sealed(key, ITEM.pack(seq, expires or NEVER, mark, len(told)) + told + value)


def unpack_item(scope: StateScope, key: bytes, row: bytes, position: int) -> tuple[LogItem, int]:
    """Return an item and its mark.

    Raises:
        DamagedStateError: it is not what was written.
    """
    data = row[4:]
    if row[:4] != CRC.pack(crc32(data, crc32(key))):
        raise damaged(scope, f"item {position} of a log")
    seq, expires, mark, length = ITEM.unpack_from(data)
    end = ITEM.size + length
    return LogItem(seq, position, data[ITEM.size : end].decode(), data[end:], expires or None), mark


def unpack_items(scope: StateScope, rows: Sequence[tuple[bytes, bytes]], start: int) -> tuple[LogItem, ...]:
    """Return the items of rows, the first of which is at position ``start``.

    Raises:
        DamagedStateError: one is not what was written.
    """
    items: list[LogItem] = []
    unpack, size = SEALED_ITEM.unpack_from, SEALED_ITEM.size
    for position, (key, row) in enumerate(rows, start):
        # As `unpack_item`, without the calls: this is what most of a turn's read is.
        if len(row) < size:
            raise damaged(scope, f"item {position} of a log")
        crc, seq, expires, _, length = unpack(row)
        if crc != crc32(row[4:], crc32(key)):
            raise damaged(scope, f"item {position} of a log")
        end = size + length
        items.append(new(LogItem, (seq, position, row[size:end].decode(), row[end:], expires or None)))
    return tuple(items)


def damaged(scope: StateScope | None, what: str) -> DamagedStateError:
    """Return the error for rows of a state, or of no state, that are not what was written."""
    return DamagedStateError(
        f"{scope or 'The store'} is damaged: {what} can't be what was written.",
        scope=scope,
        remedy="Restore the store from a backup; nothing was overwritten.",
    )
