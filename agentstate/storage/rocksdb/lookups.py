"""Looking things up in a RocksDB store: what a turn doesn't need in its one read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agentstate.storage.protocol import (
    EntryPage,
    FeedItem,
    JournalRecord,
    LogItem,
    LogPage,
    ScopePage,
    ScopeQuery,
    Stamp,
)
from agentstate.storage.rocksdb import heads, history, listing, reading
from agentstate.storage.rocksdb.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.engine import Engine
    from agentstate.storage.rocksdb.rows import State

__all__ = ["Lookups"]


class Lookups(Store):
    """The part of `agentstate.storage.protocol.Storage` that looks things up."""

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`. The journal knows more than the last 32."""
        return await self._look(partial(history.outcome, scope=scope, commit_id=commit_id), scope)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""

        def count(state: State) -> int:
            found = state.logs.get(log)
            low, high = reading.page_range(found, start, end, limit) if found is not None else (0, 0)
            return high - low

        def begin(engine: Engine, state: State) -> Callable[[], LogPage]:
            found = state.logs.get(log)
            if found is None:
                return lambda: LogPage(None, ())
            rows = reading.items_between(engine, state, found, *reading.page_range(found, start, end, limit))
            return lambda: LogPage(found.view(), tuple([item for _, item, _ in rows]))

        return await self._page(scope, count, begin) or LogPage(None, ())

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""

        def find(engine: Engine) -> LogItem | None:
            state = engine.head(scope)
            found = state.logs.get(log) if state is not None and state.alive(self._clock()) else None
            return None if found is None or state is None else reading.find_item(engine, state, found, id)

        return await self._look(find, scope)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        begin = partial(reading.scan, section=section, prefix=prefix, cursor=cursor, now=self._clock(), limit=limit)
        return await self._page(scope, lambda _: limit, begin) or EntryPage((), None)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        return await self._list(partial(listing.page, query=query, now=self._clock()))

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        return await self._page(scope, lambda _: limit, partial(history.journal, after=after, limit=limit)) or ()

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        return await self._look(partial(heads.failures, scope=scope, now=self._clock()))

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`."""
        del partition
        return await self._list(partial(history.feed, after=after, limit=limit))
