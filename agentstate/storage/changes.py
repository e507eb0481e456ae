"""What a commit holds: the parts of it that cross the line between the core and a backend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.records import LogView, Stamp

__all__ = [
    "ANY",
    "KEEP",
    "Append",
    "Check",
    "Committed",
    "CutTail",
    "EditItem",
    "Increment",
    "Keep",
    "Kept",
    "Part",
    "Put",
    "TrimHead",
]


class Keep(Enum):
    """Stands for 'leave it as it is' (`KEEP`) and 'don't compare' (`ANY`)."""

    KEEP = "keep"
    ANY = "any"


KEEP: Final = Keep.KEEP
ANY: Final = Keep.ANY


class Check(NamedTuple):
    """A condition of a commit: this entry, section or log still has this stamp.

    ``None`` means absent. ``kind`` ``entry`` needs ``key``; ``section`` and ``log`` have none.
    A section that never held an entry and a log that never held an item are absent.
    """

    kind: Literal["entry", "section", "log"]
    name: str
    stamp: Stamp | None
    key: str = ""


class Put(NamedTuple):
    """Sets an entry. ``ttl`` in seconds is the entry's own."""

    section: str
    key: str
    value: bytes
    ttl: float | None = None


class Increment(NamedTuple):
    """Adds to a counter, which starts at 0. The result is in ``Committed.counters``."""

    section: str
    key: str
    by: int


class Append(NamedTuple):
    """Adds an item to a log.

    ``unique`` makes an id that the log already holds a no-op, so that a repeated delivery
    adds nothing; only such ids are indexed.
    """

    log: str
    id: str
    value: bytes
    ttl: float | None = None
    unique: bool = False


class EditItem(NamedTuple):
    """Replaces the value of the item at ``position``, which must still have ``seq``."""

    log: str
    position: int
    seq: int
    value: bytes


class CutTail(NamedTuple):
    """Removes every item whose position is ``position`` or more (``0``: all)."""

    log: str
    position: int


class TrimHead(NamedTuple):
    """Removes every item whose position is less than ``position``."""

    log: str
    position: int


class Kept(NamedTuple):
    """What a copy of a state keeps of its original.

    Attributes:
        version: the commit makes at least this version.
        created_at: of a state that the commit makes; seconds since the epoch, as is the next.
        updated_at: of the state, instead of the storage's clock.
        firsts: the position, and ``seq``, of the first item of logs that the commit makes; else 1.
    """

    version: int
    created_at: float
    updated_at: float
    firsts: Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class Part:
    """The change of one scope in a commit.

    Applied in this order: checks, ``clear``, cuts, trims, edits, deletes, puts, increments,
    appends. A part that holds ``clear`` and leaves nothing drops the scope, with a tombstone.

    Attributes:
        birth: `ANY` adds to whatever is there or creates it; a number demands this
            incarnation (0: the scope must be absent), else `ConflictError`.
        base: `ANY`, or the scope's whole stamp that must still hold (``None``: absent).
        owner: `KEEP`, or the new owner.
        ttl: `KEEP` leaves the expiry as it is (a new scope then never expires), ``None`` removes
            it, seconds set it: from now on (``sliding``), or only when the scope is new
            (``sliding=False``).
        record: the journal record, already encoded; ``None`` leaves the journal alone.
        checks_only: nothing of this scope changes, it gets no version and isn't created: the commit
            only relies on it. For commits of several scopes, with or without a part that changes something.
        kept: for copies; ``None`` in all other commits.
    """

    scope: StateScope
    birth: int | Keep = ANY
    base: Stamp | Keep | None = ANY
    checks: Sequence[Check] = ()
    clear: bool = False
    cuts: Sequence[CutTail] = ()
    trims: Sequence[TrimHead] = ()
    edits: Sequence[EditItem] = ()
    deletes: Sequence[tuple[str, str]] = ()
    puts: Sequence[Put] = ()
    increments: Sequence[Increment] = ()
    appends: Sequence[Append] = ()
    owner: str | Keep | None = KEEP
    parent: str | Keep | None = KEEP
    labels: Mapping[str, str] | Keep = KEEP
    ttl: float | Keep | None = KEEP
    sliding: bool = True
    record: bytes | None = None
    checks_only: bool = False
    kept: Kept | None = None


class Committed(NamedTuple):
    """What a commit made of one part.

    ``logs`` holds the heads of the logs it touched (without items): an appended item's
    position is ``head - n + 1 …``. ``stamp`` is ``None`` when the part dropped the scope.
    """

    stamp: Stamp | None
    birth: int
    logs: Mapping[str, LogView]
    counters: Mapping[tuple[str, str], int]
    expires_at: float | None = None
