"""A storage that fails where a test says so.

Faults are counted per kind of call, begin with the next one, and strike once. What a fault
leaves is what a real one would: before the call nothing happened; after it everything did,
and only the reply is lost; a crash ends the process at once, as ``kill -9`` would.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Literal

from agentstate.errors import CommitUnknownError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import (
        Capabilities,
        Committed,
        EntryPage,
        FeedItem,
        JournalRecord,
        Lease,
        LeaseRequest,
        LogItem,
        LogPage,
        OnceRecord,
        Part,
        ScopePage,
        ScopeQuery,
        Snapshot,
        Stamp,
        Storage,
        Swept,
        Wants,
    )

__all__ = ["FaultyStorage"]

Call = Literal["read", "commit"]
Fault = Literal["before", "after", "crash"]


class FaultyStorage:
    """Passes everything on to another storage, except for the calls it was told to fail.

    Attributes:
        inner: the storage that does the work.
        calls: how many reads and commits there were.
    """

    def __init__(self, inner: Storage) -> None:
        """Wrap a storage; without `fail_at` nothing differs."""
        self.inner = inner
        self.calls: dict[Call, int] = {"read": 0, "commit": 0}
        self._faults: dict[tuple[Call, int], Fault] = {}

    def fail_at(self, *, read: int | None = None, commit: int | None = None, fault: Fault = "before") -> None:
        """Let the n-th read or commit from now on fail; 1 is the next.

        Args:
            read: which read.
            commit: which commit.
            fault: ``before``: nothing happens, `StorageUnavailableError`. ``after``: it happens
                and the reply is lost, `CommitUnknownError` for a commit. ``crash``: the
                process is killed before the call.
        """
        asked: dict[Call, int | None] = {"read": read, "commit": commit}
        for call, number in asked.items():
            if number is None:
                continue
            if number < 1:
                raise ValueError(f"{call}={number}: the next {call} is number 1.")
            self._faults[call, self.calls[call] + number] = fault

    def _begin(self, call: Call) -> Fault | None:
        self.calls[call] += 1
        fault = self._faults.pop((call, self.calls[call]), None)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "before":
            raise StorageUnavailableError(f"{call} {self.calls[call]} fails, as the test asked; nothing happened.")
        return fault

    # -- what can fail -------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`."""
        fault = self._begin("read")
        snapshot = await self.inner.read(scope, wants, lease=lease, once=once, touch=touch)
        if fault == "after":
            raise StorageUnavailableError("The reply to a read is lost, as the test asked.", scope=scope)
        return snapshot

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`."""
        fault = self._begin("commit")
        done = await self.inner.commit(parts, commit_id=commit_id, lease=lease, release=release, once=once)
        if fault == "after":
            raise CommitUnknownError("The reply to a commit is lost, as the test asked.", commit_id=commit_id)
        return done

    # -- what is passed on ---------------------------------------------------------------

    @property
    def name(self) -> str:
        """See `Storage.name`."""
        return self.inner.name

    @property
    def location(self) -> str:
        """See `Storage.location`."""
        return self.inner.location

    @property
    def capabilities(self) -> Capabilities:
        """See `Storage.capabilities`."""
        return self.inner.capabilities

    async def open(self) -> None:
        """See `Storage.open`."""
        await self.inner.open()

    async def close(self) -> None:
        """See `Storage.close`."""
        await self.inner.close()

    async def ping(self) -> None:
        """See `Storage.ping`."""
        await self.inner.ping()

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        await self.inner.wait_turn(scope, nonce, seconds)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`."""
        await self.inner.leave(scope, nonce, failure=failure)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`."""
        return self.inner.renew(leases, seconds)

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""
        return await self.inner.outcome(scope, commit_id)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        return await self.inner.read_log(scope, log, start=start, end=end, limit=limit)

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002 - the protocol's name
        """See `Storage.find_item`."""
        return await self.inner.find_item(scope, log, id)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        return await self.inner.scan(scope, section, prefix=prefix, cursor=cursor, limit=limit)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        return await self.inner.scopes(query)

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        return await self.inner.drop(scope, stamp=stamp)

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        return await self.inner.sweep(limit)

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        return await self.inner.journal(scope, after=after, limit=limit)

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        return await self.inner.failures(scope)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`."""
        return await self.inner.feed(partition, after=after, limit=limit)
