"""How a state stands in rows: its one row of ``scopes`` decoded, and what vouches for each row.

A CRC covers what SQLite itself doesn't guard, the bytes inside a page: a bit that flipped
there is found when the row is read, and reported instead of believed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from agentstate.errors import DamagedStateError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Entry, LogItem, LogView, ScopeInfo, Stamp
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.storage.sqlite.schema import Row, Statements

__all__ = [
    "Entries",
    "Log",
    "State",
    "damaged",
    "entry_crc",
    "item_crc",
    "item_of",
    "items_of",
    "load",
    "record_crc",
    "scope_of",
]

COLUMNS: Final = (
    "number, version, commit_id, birth, updated, expires, entry_bytes, heads, crc, created, owner, parent, labels"
)
LOAD: Final = f"SELECT {COLUMNS} FROM scopes WHERE tenant = ? AND kind = ? AND id = ?"  # noqa: S608
NUMBERS: Final = struct.Struct("<4q3d")
POSITION_BITS: Final = 32
NO_STAMP: Final = Stamp(0, 0)
UNIQUE: Final = 1
SWEPT: Final = 2


Entries = dict[tuple[str, str], Entry]


@dataclass(slots=True)
class Log:
    """The head of a log, and the items at its end as far as they are known."""

    number: int
    stamp: Stamp
    first: int = 1
    head: int = 0
    next_seq: int = 1
    size: int = 0
    items: tuple[LogItem, ...] = ()

    def key(self, position: int) -> int:
        """Return the key of the item at a position."""
        return (self.number << POSITION_BITS) + position

    def view(self, count: int = 0) -> LogView:
        """Return it as callers see it, with so many of the known items at its end."""
        items = self.items
        if count < len(items):
            items = items[len(items) - count :]
        return new(LogView, (self.first, self.head, self.next_seq, self.stamp, self.size, items))


@dataclass(slots=True)
class State:
    """A state, as far as it is known: at least its row.

    Attributes:
        number: 0 for a state that has no row.
        once_count: how many idempotency keys it ever had.
        heads: the text of the row's column.
        entries: all its entries, the expired too; ``None``: not known.
        mortal: some of ``entries`` may have a lifetime of their own.
        epoch: of the read cache, see `KnownStates`.
        weight: the bytes it takes there.
    """

    scope: StateScope
    number: int = 0
    stamp: Stamp = NO_STAMP
    birth: int = 0
    updated: float = 0.0
    expires: float | None = None
    entry_bytes: int = 0
    created: float = 0.0
    owner: str | None = None
    parent: str | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    sections: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    logs: dict[str, Log] = field(default_factory=dict[str, Log])
    once_count: int = 0
    heads: str = ""
    entries: Entries | None = None
    mortal: bool = False
    epoch: int = -1
    weight: int = 0

    def following(self, stamp: Stamp, now: float) -> State:
        """Return the state after a commit, to be changed; its logs and entries are still shared."""
        return State(
            self.scope,
            self.number,
            stamp,
            self.birth,
            now,
            self.expires,
            self.entry_bytes,
            self.created,
            self.owner,
            self.parent,
            self.labels,
            self.sections.copy(),
            self.logs.copy(),
            self.once_count,
            entries=self.entries,
            mortal=self.mortal,
        )

    def same_as(self, row: Row) -> bool:
        """Whether a row of `COLUMNS` is this state: whatever changes a state makes one of these another."""
        told = (self.number, *self.stamp, self.expires, self.entry_bytes, self.heads)
        return row[:3] + row[5:8] == told

    def alive(self, now: float) -> bool:
        """Whether it exists and has not expired."""
        return self.number != 0 and (self.expires is None or self.expires > now)

    def info(self) -> ScopeInfo:
        """Return what a listing says."""
        lengths = {name: log.head - log.first + 1 for name, log in self.logs.items()}
        return ScopeInfo(
            self.scope,
            self.stamp,
            self.owner,
            self.created,
            self.updated,
            self.expires,
            self.labels,
            self.entry_bytes,
            lengths,
        )

    def pack_heads(self) -> str:
        """Return the stamps of sections and the heads of logs as JSON."""
        logs = {
            name: (log.number, *log.stamp, log.first, log.head, log.next_seq, log.size)
            for name, log in self.logs.items()
        }
        sections = {name: tuple(stamp) for name, stamp in self.sections.items()}
        self.heads = orjson.dumps({"s": sections, "l": logs, "o": self.once_count}).decode()
        return self.heads

    def pack_labels(self) -> str | None:
        """Return the labels as JSON."""
        return orjson.dumps(self.labels).decode() if self.labels else None

    def crc(self, heads: str) -> int:
        """Return what vouches for the row."""
        numbers = (*self.stamp, self.birth, self.entry_bytes, self.created, self.updated, self.expires or 0.0)
        told = zlib.crc32(heads.encode(), zlib.crc32(NUMBERS.pack(*numbers)))
        if self.owner is None and self.parent is None and not self.labels:
            return told
        return zlib.crc32(f"{self.owner!r} {self.parent!r} {self.pack_labels()}".encode(), told)


def load(connection: Statements, scope: StateScope, was: State | None = None) -> State | None:
    """Return the row of a state, expired or not; ``was`` itself, when that is still the row."""
    row = connection.execute(LOAD, (scope.tenant, scope.kind, scope.id)).fetchone()
    if row is None:
        return None
    if was is not None and was.same_as(row):
        return was
    return unpack(scope, row)


def unpack(scope: StateScope, row: Row) -> State:
    """Return a row of `COLUMNS` as a state.

    Raises:
        DamagedStateError: the row is not what was written.
    """
    number, version, commit_id, birth, updated, expires, entry_bytes, heads, crc, created, owner, parent, labels = row
    try:
        packed = orjson.loads(heads)
        state = State(
            *(scope, number, Stamp(version, commit_id), birth, updated, expires, entry_bytes, created, owner, parent),
            {} if labels is None else orjson.loads(labels),
            {name: Stamp(*stamp) for name, stamp in packed["s"].items()},
            {name: Log(line, Stamp(at, by), *rest) for name, (line, at, by, *rest) in packed["l"].items()},
            packed["o"],
            heads,
        )
        if state.crc(heads) == crc:
            return state
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise damaged(scope, "its row") from error
    raise damaged(scope, "its row")


def scope_of(tenant: str, kind: str, name: str) -> StateScope:
    """Return the scope of a row; ``name`` is what `StateScope.id` was."""
    if kind == "step":
        return StateScope.make(kind, *StateScope.parse(f"step:{name}").ids, tenant=tenant)
    return StateScope(kind, (name,) if name else (), tenant)


def entry_crc(section: str, key: str, value: bytes | int, stamp: tuple[int, int], expires: float | None) -> int:
    """Return what vouches for an entry."""
    told = zlib.crc32(f"{section}\0{key}\0{expires}".encode(), stamp[0] ^ stamp[1])
    return zlib.crc32(b"%d" % value if isinstance(value, int) else value, told)


def item_crc(seq: int, position: int, name: str, value: bytes, expires: float | None, mark: int) -> int:
    """Return what vouches for an item of a log."""
    told = zlib.crc32(name.encode(), (seq << 8) ^ (position << 2) ^ mark)
    return zlib.crc32(value, told if expires is None else zlib.crc32(b"%r" % expires, told))


def record_crc(data: bytes | None, told: str) -> int:
    """Return what vouches for a record that is kept as it came, and for what is told beside it."""
    return zlib.crc32(data or b"", zlib.crc32(told.encode()))


def item_of(scope: StateScope, log: str, row: Row) -> LogItem:
    """Return the item of a row ``seq, position, id, value, expires, mark, crc``."""
    item = LogItem(*row[:5])
    if item_crc(*item, row[5]) != row[6]:
        raise damaged(scope, f"item {item.position} of {log}")
    return item


def items_of(scope: StateScope, log: str, rows: Iterable[Row], first: int, last: int) -> tuple[LogItem, ...]:
    """Return the items of rows that must be those from position ``first`` to ``last``, all of them."""
    items: list[LogItem] = []
    for row in rows:
        # As `item_of`, without the calls: this is what most of a turn's read is.
        seq, position, name, value, expires, mark, crc = row
        told = zlib.crc32(name.encode(), (seq << 8) ^ (position << 2) ^ mark)
        if zlib.crc32(value, told if expires is None else zlib.crc32(b"%r" % expires, told)) != crc:
            raise damaged(scope, f"item {position} of {log}")
        items.append(LogItem(seq, position, name, value, expires))
    if len(items) != max(last - first + 1, 0):
        raise damaged(scope, f"{log}, which lacks items,")
    return tuple(items)


def damaged(scope: StateScope, what: str) -> DamagedStateError:
    """Return the error for bytes of a state that are not what was written."""
    return DamagedStateError(
        f"{scope} is damaged: {what} can't be what was written.",
        scope=scope,
        remedy="Restore the state file from a backup; nothing was overwritten.",
    )
