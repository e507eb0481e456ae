"""Listing states, by the indexes of the collection that has a row for each.

A row is inserted anew with every change and its predecessor deleted, so both may be there for a
moment. A page asks once more which rows are the newest of their states, and leaves out the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentstate.scope import StateScope
from agentstate.storage.index import decode_cursor, encode_cursor
from agentstate.storage.mongodb.bodies import opened_document, stamp_of
from agentstate.storage.mongodb.keys import label_of, label_text
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.storage.mongodb.connections import Document, LoopConnections

__all__ = ["newest_rows", "page"]

LAST_CHARACTER = "\U0010ffff"


async def page(here: LoopConnections, query: ScopeQuery, now: float) -> ScopePage:
    """Return one page of live states. What is pending was carried over before."""
    found: list[Document] = []
    last: tuple[Any, str] | None = decode_cursor(query.cursor) if query.cursor is not None else None
    by = ("kind", "id") if query.order == "id" else ("updated", "text")
    way = -1 if query.reverse else 1
    while len(found) <= query.limit:
        wanted = query.limit + 1 - len(found)
        cursor = here.metadata.find(_filter(query, last, now)).sort([(one, way) for one in by]).limit(wanted)
        rows = await cursor.to_list()
        found += await newest_rows(here, rows)
        if len(rows) < wanted:
            break
        last = (rows[-1][by[0]], rows[-1][by[1]])
    items = tuple(map(_info, found[: query.limit]))
    more = len(found) > query.limit
    end = found[query.limit - 1] if more else None
    return ScopePage(items, encode_cursor((end[by[0]], end[by[1]])) if end is not None else None)


async def newest_rows(here: LoopConnections, rows: Iterable[Document]) -> list[Document]:
    """Return those rows that are the newest ones of their states."""
    rows = list(rows)
    if not rows:
        return []
    newest: dict[str, int] = {}
    names = {"state": 1, "n": 1, "_id": 0}
    async for one in here.metadata.find({"state": {"$in": [row["state"] for row in rows]}}, names):
        newest[one["state"]] = max(newest.get(one["state"], 0), one["n"])
    return [opened_document(row, row["text"]) for row in rows if newest.get(row["state"], row["n"]) == row["n"]]


def _filter(query: ScopeQuery, last: tuple[Any, str] | None, now: float) -> dict[str, Any]:
    wanted: dict[str, Any] = {"live": True, "tenant": query.tenant}
    if query.kind is not None:
        wanted["kind"] = query.kind
    if query.prefix:
        wanted["id"] = {"$gte": query.prefix, "$lte": query.prefix + LAST_CHARACTER * 2}
    if query.owner is not None:
        wanted["owner"] = query.owner
    if query.label is not None:
        wanted["labels"] = label_text(*query.label)
    times = {"$lt": query.updated_before, "$gt": query.updated_after}
    if bounds := {how: when for how, when in times.items() if when is not None}:
        wanted["updated"] = bounds
    both: list[dict[str, Any]] = [{"$or": [{"expires": None}, {"expires": {"$gt": now}}]}]
    if last is not None:
        both.append(_beyond(query, last))
    return {**wanted, "$and": both}


def _beyond(query: ScopeQuery, last: tuple[Any, str]) -> dict[str, Any]:
    first, second = ("kind", "id") if query.order == "id" else ("updated", "text")
    how = "$lt" if query.reverse else "$gt"
    return {"$or": [{first: {how: last[0]}}, {first: last[0], second: {how: last[1]}}]}


def _info(row: Document) -> ScopeInfo:
    return ScopeInfo(
        StateScope.parse(row["text"]),
        stamp_of(row["version"], row["commit"]),
        row["owner"],
        row["created"],
        row["updated"],
        row["expires"],
        dict(label_of(one) for one in row["labels"]),
        row["bytes"],
        {one["log"]: one["items"] for one in row["logs"]},
    )
