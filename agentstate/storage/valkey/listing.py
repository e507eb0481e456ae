"""Pages of scopes: each partition's sorted indexes, merged.

A step asks all partitions at once, in one pipeline, for their next few candidates; the
partitions that ran out before the page was full are asked again, for more. Which states the
candidates are is looked up in a second pipeline, and those that the index alone can't judge
are filtered there. No command's cost grows with what the store holds.

An index entry whose state has gone (only the engine's own expiry leaves one) is taken out.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.errors import StorageError
from agentstate.scope import KINDS, StateScope
from agentstate.storage.index import decode_cursor, encode_cursor
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery
from agentstate.storage.valkey.decode_pages import info_of
from agentstate.storage.valkey.encode import encode_labels, name
from agentstate.storage.valkey.scripts import script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentstate.storage.valkey.connections import LoopConnections
    from agentstate.storage.valkey.dial import Command
    from agentstate.storage.valkey.keys import Keys

__all__ = ["page"]

FIRST_STEP = 4
STEP_GROWTH = 4
BATCH = 1000


class Span(NamedTuple):
    """A part of an index: of one view, between two bounds."""

    view: str
    low: bytes
    high: bytes


class At(NamedTuple):
    """Where a candidate stands in the order of the page."""

    place: float
    body: str


@dataclass(slots=True)
class Source:
    """One index of one partition, read bit by bit in the order of the page."""

    key: bytes
    view: str
    low: bytes
    high: bytes
    offset: int = 0
    step: int = FIRST_STEP
    ready: list[At] = field(default_factory=list[At])
    ended: bool = False


async def page(here: LoopConnections, keys: Keys, query: ScopeQuery, now: float) -> ScopePage:
    """Return one page.

    Raises:
        StorageError: the cursor is no cursor of such a query.
    """
    after = _cursor(query)
    found: list[ScopeInfo] = []
    for spans in _spans(query):
        merged = Merge(here, keys, query, spans, after)
        while candidates := await merged.take(query.limit + 1 - len(found)):
            found += await _living(here, keys, query, candidates, now)
            if len(found) > query.limit:
                found = found[: query.limit]
                return ScopePage(tuple(found), _cursor_of(found[-1], query) if found else query.cursor)
    return ScopePage(tuple(found), None)


def _cursor(query: ScopeQuery) -> At | None:
    if query.cursor is None:
        return None
    place, body = decode_cursor(query.cursor)
    if isinstance(place, float) != (query.order == "updated"):
        raise StorageError("The page cursor is of another order.", remedy="Pass the cursor of the page before.")
    return At(place if isinstance(place, float) else 0.0, body)


def _cursor_of(info: ScopeInfo, query: ScopeQuery) -> str:
    body = body_of(info.scope)
    return encode_cursor((info.updated_at, body) if query.order == "updated" else ("id", body))


def body_of(scope: StateScope) -> str:
    """Return the address without its tenant, as the indexes list it."""
    return StateScope(scope.kind, scope.ids).text


def _spans(query: ScopeQuery) -> Iterator[list[Span]]:
    """Return the parts of the indexes that hold the page: lists in order, each to be merged."""
    tenant = name(query.tenant)
    view = None
    if query.owner is not None:
        view = f"owner:{tenant}:{query.owner}"
    elif query.label is not None:
        view = f"label:{tenant}:{encode_labels(dict([query.label]))}"
    if query.order == "updated":
        low = b"-inf" if query.updated_after is None else b"(%r" % query.updated_after
        high = b"+inf" if query.updated_before is None else b"(%r" % query.updated_before
        kinds = KINDS if query.kind is None else (query.kind,)
        yield [Span(view, low, high)] if view else [Span(f"kind:{tenant}:{kind}", low, high) for kind in kinds]
        return
    view = view or f"all:{tenant}"
    if query.kind is None and not query.prefix:
        yield [Span(view, b"-", b"+")]
        return
    for kind in sorted(KINDS, reverse=query.reverse) if query.kind is None else (query.kind,):
        start = (kind if kind == "global" else f"{kind}:{query.prefix}").encode()
        if not (kind == "global" and query.prefix):
            yield [Span(view, b"[" + start, b"[" + start if kind == "global" else b"(" + start + b"\xff")]


class Merge:
    """The candidates of all partitions in the order of the page."""

    def __init__(
        self, here: LoopConnections, keys: Keys, query: ScopeQuery, spans: list[Span], after: At | None
    ) -> None:
        """Begin after the cursor."""
        self._here = here
        self._query = query
        self._after = after
        self._sources: list[Source] = []
        self._heap: list[tuple[Any, int]] = []
        by = "time" if query.order == "updated" else "id"
        for span in spans:
            low, high = self._bounds(span)
            self._sources += [Source(key, span.view, low, high) for key in keys.views(f"by-{by}:{span.view}")]

    def _bounds(self, span: Span) -> tuple[bytes, bytes]:
        low, high, after = span.low, span.high, self._after
        if after is None:
            return low, high
        if self._query.order == "updated":
            edge = b"%r" % after.place
            return (low, edge) if self._query.reverse else (edge, high)
        edge = b"(" + after.body.encode()
        if self._query.reverse:
            return low, edge if high == b"+" or edge[1:] < high[1:] else high
        return edge if low == b"-" or edge[1:] >= low[1:] else low, high

    async def take(self, count: int) -> list[tuple[str, At]]:
        """Return the next candidates, at most ``count``, each with the view that lists it."""
        found: list[tuple[str, At]] = []
        if not self._heap:
            await self._fill([source for source in self._sources if not source.ended])
        while self._heap and len(found) < min(count, BATCH):
            _, number = self._heap[0]
            source = self._sources[number]
            found.append((source.view, source.ready.pop(0)))
            if source.ready or source.ended:
                heapq.heappop(self._heap)
                self._push(number)
            else:
                # What comes next isn't known before this source has been asked again.
                heapq.heappop(self._heap)
                await self._fill([one for one in self._sources if not one.ready and not one.ended])
        return found

    def _push(self, number: int) -> None:
        ready = self._sources[number].ready
        if ready:
            heapq.heappush(self._heap, (_Order(ready[0], reverse=self._query.reverse), number))

    async def _fill(self, sources: list[Source]) -> None:
        while sources:
            replies = await self._here.ask_all(self._command(source) for source in sources)
            for source, reply in zip(sources, replies, strict=True):
                self._take_in(source, reply)
            sources = [source for source in sources if not source.ready and not source.ended]
        waiting = {number for _, number in self._heap}
        for number, source in enumerate(self._sources):
            if source.ready and number not in waiting:
                self._push(number)

    def _command(self, source: Source) -> Command:
        reverse, timed = self._query.reverse, self._query.order == "updated"
        command = ("ZREVRANGEBY" if reverse else "ZRANGEBY") + ("SCORE" if timed else "LEX")
        bounds = (source.high, source.low) if reverse else (source.low, source.high)
        scores = ("WITHSCORES",) if timed else ()
        return (command, source.key, *bounds, *scores, "LIMIT", source.offset, source.step)

    def _take_in(self, source: Source, reply: list[bytes]) -> None:
        if self._query.order == "updated":
            found = [At(float(score), body.decode()) for body, score in zip(reply[::2], reply[1::2], strict=True)]
        else:
            found = [At(0.0, body.decode()) for body in reply]
        source.ended = len(found) < source.step
        source.offset += len(found)
        source.step *= STEP_GROWTH
        source.ready += [at for at in found if not self._is_before(at)]

    def _is_before(self, at: At) -> bool:
        """Whether the page before had it: in the order of time a bound takes in its equals."""
        if self._after is None:
            return False
        return at >= self._after if self._query.reverse else at <= self._after


class _Order(NamedTuple):
    at: At
    reverse: bool

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Order)
        return self.at > other.at if self.reverse else self.at < other.at


async def _living(
    here: LoopConnections, keys: Keys, query: ScopeQuery, candidates: list[tuple[str, At]], now: float
) -> list[ScopeInfo]:
    prefix = f"@{name(query.tenant)}/" if query.tenant else ""
    scopes = [StateScope.parse(prefix + at.body) for _, at in candidates]
    found: list[ScopeInfo] = []
    replies = await here.ask_all(("HGETALL", keys.state(scope)) for scope in scopes)
    for (view, _), scope, flat in zip(candidates, scopes, replies, strict=True):
        info = info_of(scope, flat)
        if info is None:
            await here.ask(script("heal"), keys.state(scope), "", view)
        elif _matches(info, query, now):
            found.append(info)
    return found


def _matches(info: ScopeInfo, query: ScopeQuery, now: float) -> bool:
    return (
        (query.kind is None or info.scope.kind == query.kind)
        and info.scope.id.startswith(query.prefix)
        and (query.owner is None or info.owner == query.owner)
        and (query.label is None or info.labels.get(query.label[0]) == query.label[1])
        and (query.updated_before is None or info.updated_at < query.updated_before)
        and (query.updated_after is None or info.updated_at > query.updated_after)
        and (info.expires_at is None or info.expires_at > now)
    )
