"""The values that cross the line between the core and a backend; see `agentstate.storage.protocol`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.scope import StateScope

__all__ = [
    "Capabilities",
    "Entry",
    "EntryPage",
    "FeedItem",
    "Holder",
    "JournalRecord",
    "Lease",
    "LeaseRequest",
    "LogItem",
    "LogPage",
    "LogView",
    "OnceRecord",
    "ScopeInfo",
    "ScopePage",
    "ScopeQuery",
    "Snapshot",
    "Stamp",
    "Swept",
    "Wants",
]

T = TypeVar("T")


class _New(Protocol):
    def __call__(self, kind: type[T], fields: tuple[Any, ...], /) -> T: ...


new: Final = cast("_New", tuple.__new__)  # pyright: ignore[reportUnknownMemberType] - its items' type
"""Makes a named tuple of all its fields, as ``new(Entry, (value, stamp, None))``, for half of what its class takes."""

INLINE_BYTES: Final = 32 * 1024
MAX_LABELS: Final = 8
KNOWN_COMMITS: Final = 32
ONCE_SECONDS: Final = 24 * 3600.0
ONCE_COUNT: Final = 1000
JOURNAL_COUNT: Final = 1000
FAILURE_SECONDS: Final = 7 * 24 * 3600.0
FAILURE_COUNT: Final = 20


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
        taskless: reads, commits and leaving use neither timeouts nor task groups nor anything else
            that asks for the current task, so they may run inside their caller's.
    """

    durability: Literal["none", "process", "power"]
    shared: bool
    leases: Literal["process", "machine", "network"]
    atomic_scopes: bool
    partitions: int
    native_expiry: bool = False
    push: bool = False
    taskless: bool = False
