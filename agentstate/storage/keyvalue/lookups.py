"""Looking things up in a key-value storage: what a turn doesn't need in its one read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.storage.keyvalue import listing
from agentstate.storage.keyvalue.store import Store
from agentstate.storage.protocol import (
    FAILURE_SECONDS,
    EntryPage,
    FeedItem,
    JournalRecord,
    LogItem,
    LogPage,
    ScopePage,
    ScopeQuery,
    Stamp,
)

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.keyvalue.head import Head
    from agentstate.storage.keyvalue.segments import Segments

__all__ = ["Lookups"]


class Lookups(Store):
    """The part of `agentstate.storage.protocol.Storage` that looks things up."""

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""

        async def look(head: Head, segments: Segments) -> Stamp | None:
            known = [*head.image.commits, *(one.stamp for one in await segments.journal(0))]
            return next((stamp for stamp in known if stamp.commit_id == commit_id), None)

        return await self.look(scope, look)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""

        async def look(head: Head, segments: Segments) -> LogPage:
            found = head.image.logs.get(log) if head.image.alive(self._clock()) else None
            if found is None:
                return LogPage(None, ())
            low = max(found.first if start is None else start, found.first)
            high = min(found.head + 1 if end is None else end, found.head + 1)
            if limit is not None and start is not None:
                high = min(high, low + limit)
            elif limit is not None:
                low = max(low, high - limit)
            await segments.fill(log, low, high)
            return LogPage(found.view(), tuple(found.slice(low, high)) if low < high else ())

        return await self.look(scope, look)

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""

        async def look(head: Head, segments: Segments) -> LogItem | None:
            return await segments.find(log, id) if head.image.alive(self._clock()) else None

        return await self.look(scope, look)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        head, _ = await self.load(scope)
        return listing.entry_page(head.image, section, prefix, cursor, limit, self._clock())

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`. It reads the heads of all states that their keys don't rule out."""
        self._check_open()
        return await listing.page(self._access, self._prefix, query, self._clock())

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""

        async def look(head: Head, segments: Segments) -> tuple[JournalRecord, ...]:
            return tuple(await segments.journal(after))[:limit] if head.image.alive(self._clock()) else ()

        return await self.look(scope, look)

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        head, _ = await self.load(scope)
        return tuple(data for at, data in head.failures if at > self._clock() - FAILURE_SECONDS)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`."""
        del partition
        self._check_open()
        await self.owned(self.finish_all())
        return await self._feed.items(after, limit)
