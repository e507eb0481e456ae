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

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agentstate.storage.changes import (
    ANY,
    KEEP,
    Append,
    Check,
    Committed,
    CutTail,
    EditItem,
    Increment,
    Keep,
    Kept,
    Part,
    Put,
    TrimHead,
)
from agentstate.storage.records import (
    FAILURE_COUNT,
    FAILURE_SECONDS,
    INLINE_BYTES,
    JOURNAL_COUNT,
    KNOWN_COMMITS,
    MAX_LABELS,
    ONCE_COUNT,
    ONCE_SECONDS,
    Capabilities,
    Entry,
    EntryPage,
    FeedItem,
    Holder,
    JournalRecord,
    Lease,
    LeaseRequest,
    LogItem,
    LogPage,
    LogView,
    OnceRecord,
    ScopeInfo,
    ScopePage,
    ScopeQuery,
    Snapshot,
    Stamp,
    Swept,
    Wants,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope

__all__ = [
    "ANY",
    "FAILURE_COUNT",
    "FAILURE_SECONDS",
    "INLINE_BYTES",
    "JOURNAL_COUNT",
    "KEEP",
    "KNOWN_COMMITS",
    "MAX_LABELS",
    "ONCE_COUNT",
    "ONCE_SECONDS",
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
    "Kept",
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
        """Return items with ``start <= position < end``.

        Of more than ``limit`` the first when ``start`` is given, else the last.
        """
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
