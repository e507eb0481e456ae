"""What a storage is: the values that cross the line between the core and a backend.

The core asks for two things in a turn, and each is one round trip: `Storage.read` (which
may take the lease and look an idempotency key up on the way) and `Storage.commit` (all or
nothing, which may give the lease back). Everything else is housekeeping.

Rules every backend keeps, and `agentstate.testing` checks:

* Values are opaque bytes, except counters, which are signed 64-bit integers.
* Every commit of a scope adds one to its version and sets its stamp to that version and
  the commit id; the entries, sections and logs it touched take the same stamp.
* Checks compare whole stamps for equality, never order, inside the commit's atomic step.
* A log item has a ``seq`` that is never used twice and a dense ``position``.
* An expired scope, entry or item reads as absent, whether it was swept or not.
* The journal record, the indexes and the feed belong to the commit's atomic step.
* Whoever holds no lease may read and commit; a lease only refuses late holders.

Calls may come from any event loop and any thread. Cancelling one of them never leaves a
commit half done: the backend finishes it, or nothing of it happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentstate.scope import StateScope

__all__ = [
    "ANY",
    "KEEP",
    "Append",
    "Capabilities",
    "Check",
    "Committed",
    "CutTail",
    "EditItem",
    "Entry",
    "EntryPage",
    "FeedItem",
    "Holder",
    "Increment",
    "JournalRecord",
    "Keep",
    "Lease",
    "LeaseRequest",
    "LogItem",
    "LogPage",
    "LogView",
    "OnceRecord",
    "Part",
    "Put",
    "ScopeInfo",
    "ScopePage",
    "ScopeQuery",
    "Snapshot",
    "Stamp",
    "Storage",
    "Swept",
    "TrimHead",
    "Wants",
]

INLINE_BYTES: Final = 32 * 1024
MAX_LABELS: Final = 8
KNOWN_COMMITS: Final = 32
ONCE_SECONDS: Final = 24 * 3600.0
ONCE_COUNT: Final = 1000
JOURNAL_COUNT: Final = 1000
FAILURE_SECONDS: Final = 7 * 24 * 3600.0
FAILURE_COUNT: Final = 20


class Keep(Enum):
    """Stands for 'leave it as it is' (`KEEP`) and 'don't compare' (`ANY`)."""

    KEEP = "keep"
    ANY = "any"


KEEP: Final = Keep.KEEP
ANY: Final = Keep.ANY


class Stamp(NamedTuple):
    """A version and the random 64-bit id of the commit that made it."""

    version: int
    commit_id: int

    def __str__(self) -> str:
        return f"{self.version}-{self.commit_id:016x}"


class Entry(NamedTuple):
    """One entry: bytes, or an integer for a counter."""

    value: bytes | int
    stamp: Stamp
    expires_at: float | None = None


class LogItem(NamedTuple):
    """One item of a log. ``value`` is empty for an item that has expired and was swept."""

    seq: int
    position: int
    id: str
    value: bytes
    expires_at: float | None = None


class LogView(NamedTuple):
    """The head of a log, and the items that were asked for, oldest first.

    ``first`` to ``head`` are the positions of its items; an empty log has ``first = head + 1``.
    ``size`` is the bytes of all its values.
    """

    first: int
    head: int
    next_seq: int
    stamp: Stamp
    size: int = 0
    items: tuple[LogItem, ...] = ()


class Wants(NamedTuple):
    """What a read brings.

    Attributes:
        sections: sections whose entries are wanted; ``None`` means all.
        keys: ``(section, key)`` pairs wanted even when the state is large.
        tails: ``(log, n)`` pairs: the last n items of these logs.
        inline_bytes: all entries of ``sections`` come when the scope's entries hold no more
            than this many bytes in all, else only ``keys``.
    """

    sections: tuple[str, ...] | None = None
    keys: tuple[tuple[str, str], ...] = ()
    tails: tuple[tuple[str, int], ...] = ()
    inline_bytes: int = INLINE_BYTES


class LeaseRequest(NamedTuple):
    """Asks for the turn. The same nonce again renews what it holds.

    Attributes:
        nonce: random, not zero, below 2**63.
        seconds: how long the lease lasts unless renewed.
        holder: who asks, for others' error messages.
    """

    nonce: int
    seconds: float
    holder: str


class Lease(NamedTuple):
    """A turn that was taken. ``counter`` rises with each change of holder, where kept."""

    scope: StateScope
    nonce: int
    counter: int
    expires_at: float


class Holder(NamedTuple):
    """Who holds the turn, and since when (seconds since the epoch, storage clock)."""

    holder: str
    since: float


class OnceRecord(NamedTuple):
    """What an idempotency key did. ``result`` is ``None`` when it couldn't be stored."""

    key: str
    fingerprint: str
    commit_id: int
    result: bytes | None
    at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """One state at one stamp, as far as it was asked for.

    Attributes:
        stamp: ``None`` when the state is absent.
        birth: the commit id of the commit that created this incarnation; 0 when absent.
        complete: ``entries`` holds every live entry of the wanted sections.
        sections: stamp of the last change in each section that ever held an entry.
        logs: heads of all logs, with the items that were wanted.
        entry_bytes: bytes of all entries.
        lease: the lease, when one was asked for and is held now.
        holder: who holds the turn instead. Then nothing else of the state was read.
        once: what the idempotency key did, when one was asked for and is known.
        now: the storage's clock.
    """

    scope: StateScope
    now: float
    stamp: Stamp | None = None
    birth: int = 0
    owner: str | None = None
    parent: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    created_at: float = 0.0
    updated_at: float = 0.0
    expires_at: float | None = None
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict[tuple[str, str], Entry])
    complete: bool = True
    sections: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    logs: dict[str, LogView] = field(default_factory=dict[str, LogView])
    entry_bytes: int = 0
    lease: Lease | None = None
    holder: Holder | None = None
    once: OnceRecord | None = None


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


class LogPage(NamedTuple):
    """A page of a log, oldest first, with the head it was read at."""

    view: LogView | None
    items: tuple[LogItem, ...]


class EntryPage(NamedTuple):
    """A page of a section, ordered by key (code points of the UTF-8 bytes)."""

    entries: tuple[tuple[str, Entry], ...]
    cursor: str | None


class ScopeQuery(NamedTuple):
    """Which scopes to list.

    Attributes:
        prefix: of the id (see `StateScope.id`).
        label: a ``(name, value)`` pair.
        updated_before: seconds since the epoch; so is ``updated_after``.
        order: ``id`` (kind, then id) or ``updated``.
        cursor: of the page before, opaque.
    """

    kind: str | None = None
    prefix: str = ""
    owner: str | None = None
    label: tuple[str, str] | None = None
    updated_before: float | None = None
    updated_after: float | None = None
    order: Literal["id", "updated"] = "id"
    reverse: bool = False
    cursor: str | None = None
    limit: int = 100
    tenant: str = ""


class ScopeInfo(NamedTuple):
    """What a listing says of one scope."""

    scope: StateScope
    stamp: Stamp
    owner: str | None
    created_at: float
    updated_at: float
    expires_at: float | None
    labels: Mapping[str, str]
    entry_bytes: int
    log_lengths: Mapping[str, int]


class ScopePage(NamedTuple):
    """A page of scopes. ``cursor`` is ``None`` on the last one."""

    items: tuple[ScopeInfo, ...]
    cursor: str | None


class JournalRecord(NamedTuple):
    """One commit as the journal keeps it.

    ``removed`` holds the log items that it cut, trimmed or edited, as they were.
    ``ranges`` names the ``seq`` of the first and last item it appended to each log.
    """

    stamp: Stamp
    at: float
    record: bytes
    ranges: Mapping[str, tuple[int, int]]
    removed: Mapping[str, tuple[LogItem, ...]]


class FeedItem(NamedTuple):
    """One commit in the order of its partition. ``stamp`` is ``None`` for a drop."""

    cursor: str
    scope: StateScope
    stamp: Stamp | None
    at: float


class Swept(NamedTuple):
    """What one bounded step of a sweep removed. ``done``: nothing expired was left."""

    scopes: tuple[StateScope, ...]
    entries: int
    items: int
    done: bool


class Capabilities(NamedTuple):
    """What a backend is, honestly.

    Attributes:
        durability: what an acknowledged commit survives: nothing (``none``), the death of the
            process (``process``), or power loss too (``power``).
        shared: several processes may use it at once.
        leases: how far a turn excludes others: one ``process``, one ``machine``, a ``network``.
        atomic_scopes: a commit may hold parts of several scopes.
        partitions: how many, fixed when the store was created.
        native_expiry: the engine itself forgets what has expired.
        push: waiters and watchers are woken, not only polling.
    """

    durability: Literal["none", "process", "power"]
    shared: bool
    leases: Literal["process", "machine", "network"]
    atomic_scopes: bool
    partitions: int
    native_expiry: bool = False
    push: bool = False


@runtime_checkable
class Storage(Protocol):
    """A backend. All calls are safe from several tasks, threads and loops at once."""

    @property
    def name(self) -> str:
        """The backend's short name, as in ``sqlite``."""
        ...

    @property
    def location(self) -> str:
        """Where the data lies, for people: a path or a URL without its password."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this storage promises, as it is configured."""
        ...

    async def open(self) -> None:
        """Connect, create what is missing, check versions. Idempotent; every call does it itself when needed."""
        ...

    async def close(self) -> None:
        """Give back leases and close everything. Later calls raise `StorageClosedError`."""
        ...

    async def ping(self) -> None:
        """Return when the storage answers.

        Raises:
            StorageUnavailableError: it doesn't.
        """
        ...

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """Read a state in one round trip, taking the turn on the way when ``lease`` is given.

        When another holds the turn, the snapshot has only ``holder``, and this nonce is in the
        line: call `wait_turn`, then read again, or `leave`.
        ``touch`` is a sliding lifetime in seconds, renewed when less than half of it is left.
        """
        ...

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """Return when it is worth reading again for the turn, after ``seconds`` at the latest."""
        ...

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """Apply all parts or none, in one round trip. ``once`` belongs to the first part.

        Raises:
            ConflictError: a check, base or birth failed, or ``once`` is known already.
            LeaseLostError: another took the turn since.
            UnsupportedError: several scopes, and the backend can't.
            CommitUnknownError: the reply was lost and the outcome can't be found out.
        """
        ...

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """Give the turn back without a commit, or leave the line. Keeps ``failure`` in the journal.

        A nonce that holds nothing is no error.
        """
        ...

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """Lengthen leases, and say which are still held. Blocking: called on a thread of its own."""
        ...

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """Return the stamp that a commit made, if it is among the scope's last 32 or in its journal."""
        ...

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """Return items with ``start <= position < end``: the first ``limit`` from ``start``, else the last before ``end``."""
        ...

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """Return the item with this ``unique`` id."""
        ...

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """Return live entries in the order of their keys."""
        ...

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """List states by index, never by scanning all keys."""
        ...

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """Remove a state if its stamp is still ``stamp`` (``None``: whatever it is) and nobody holds its turn.

        Returns whether it was removed. What goes is its entries, logs, keys, failures and
        journal; a tombstone keeps its stamp for as long as a lease can live.
        """
        ...

    async def sweep(self, limit: int = 100) -> Swept:
        """Remove at most ``limit`` expired scopes, entries and items, not those whose turn is held."""
        ...

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """Return commits of a scope with a version greater than ``after``, oldest first."""
        ...

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """Return the records that failed turns left, oldest first."""
        ...

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """Return a partition's commits in commit order."""
        ...
