"""The feed of a partition: the commits in their order, each once.

A position is taken by inserting it, so positions have no gaps and no reader overtakes a writer. A
commit that another process has put in already is refused by the index on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.scope import StateScope
from agentstate.storage.mongodb.bodies import stamp_of
from agentstate.storage.mongodb.keys import PARTITIONS, feed_id, number_of
from agentstate.storage.protocol import FeedItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.mongodb.connections import Document, LoopConnections

__all__ = ["DUPLICATE", "FeedEntry", "add_to_feed", "read_feed"]

KEPT: Final = 10_000
LAST: Final = 10**16 - 1
TRIM_EVERY: Final = 1000
DUPLICATE: Final = 11000


class FeedEntry(NamedTuple):
    """A commit that belongs into the feed; ``stamp`` is packed, ``None`` for a drop."""

    chain: str
    scope: StateScope
    stamp: list[int] | None
    at: float
    wall: float


async def add_to_feed(here: LoopConnections, entries: Sequence[tuple[float, FeedEntry]]) -> None:
    """Put commits into the feeds of their partitions, in the given order."""
    if not entries:
        return
    chains = [one.chain for _, one in entries]
    known = {one["chain"] async for one in here.feed.find({"chain": {"$in": chains}}, {"chain": 1})}
    parts: dict[int, list[FeedEntry]] = {}
    for _, one in entries:
        if one.chain not in known:
            parts.setdefault(one.scope.partition(PARTITIONS), []).append(one)
    for partition, wanted in parts.items():
        await _add(here, partition, wanted)


async def _add(here: LoopConnections, partition: int, wanted: list[FeedEntry]) -> None:
    from pymongo.errors import BulkWriteError

    end = first = here.feed_ends.get(partition) or await _end(here, partition)
    while wanted:
        documents = [_document(partition, end + number, one) for number, one in enumerate(wanted)]
        try:
            await here.feed.insert_many(documents, ordered=True)
        except BulkWriteError as error:
            if any(one["code"] != DUPLICATE for one in error.details["writeErrors"]):
                raise
            done: int = error.details["nInserted"]
            wanted = wanted[done:]
            if await here.feed.find_one({"chain": wanted[0].chain}, {"_id": 1}) is not None:
                wanted = wanted[1:]
            end = await _end(here, partition)
            continue
        end += len(wanted)
        wanted = []
    here.feed_ends[partition] = end
    if end // TRIM_EVERY != first // TRIM_EVERY and end > KEPT:
        await here.feed.delete_many({"_id": {"$gte": feed_id(partition, 0), "$lt": feed_id(partition, end - KEPT)}})


async def _end(here: LoopConnections, partition: int) -> int:
    bounds = {"$gte": feed_id(partition, 0), "$lte": feed_id(partition, LAST)}
    last = await here.feed.find({"_id": bounds}, {"_id": 1}).sort("_id", -1).limit(1).to_list()
    return number_of(last[0]["_id"]) + 1 if last else 1


def _document(partition: int, position: int, one: FeedEntry) -> Document:
    where = {"_id": feed_id(partition, position), "chain": one.chain, "scope": one.scope.text}
    return {**where, "stamp": one.stamp, "at": one.at}


async def read_feed(here: LoopConnections, partition: int, after: str | None, limit: int) -> tuple[FeedItem, ...]:
    """Return a page of a partition's feed."""
    first: dict[str, Any] = {"$gt": after} if after is not None else {"$gte": feed_id(partition, 0)}
    bounds = {**first, "$lte": feed_id(partition, LAST)}
    found = await here.feed.find({"_id": bounds}).sort("_id", 1).limit(limit).to_list()
    return tuple(
        FeedItem(
            one["_id"],
            StateScope.parse(one["scope"]),
            None if one["stamp"] is None else stamp_of(*one["stamp"]),
            one["at"],
        )
        for one in found
    )
