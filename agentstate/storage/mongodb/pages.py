"""Looking at one state: pages of its logs and sections, its journal, its failed turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.mongodb.bodies import item_of, opened, opened_document, stamp_of
from agentstate.storage.mongodb.chain import still_there
from agentstate.storage.mongodb.keys import chain_id
from agentstate.storage.mongodb.loading import entry_of, load_items, newest
from agentstate.storage.mongodb.settle import settle_view
from agentstate.storage.mongodb.work import look
from agentstate.storage.protocol import (
    FAILURE_COUNT,
    FAILURE_SECONDS,
    JOURNAL_COUNT,
    Entry,
    EntryPage,
    JournalRecord,
    LogItem,
    LogPage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import LoopConnections
    from agentstate.storage.mongodb.view import View

__all__ = ["failures", "find_item", "journal", "read_log", "scan"]

LAST_CHARACTER: Final = "\U0010ffff"


async def read_log(
    here: LoopConnections,
    scope: StateScope,
    name: str,
    start: int | None,
    end: int | None,
    limit: int | None,
    now: Callable[[], float],
) -> LogPage:
    """Return a page of a log; see `Storage.read_log`."""

    async def see(view: View) -> LogPage:
        log = view.image.logs.get(name) if view.image.alive(now()) else None
        if log is None:
            return LogPage(None, ())
        low = log.first if start is None else start
        high = log.head + 1 if end is None else end
        if limit is not None and start is not None:
            high = min(high, max(low, log.first) + limit)
        elif limit is not None:
            low = max(low, min(high, log.head + 1) - limit)
        if await load_items(here, view, name, low, high):
            await still_there(here, view)
        return LogPage(log.view(), tuple(log.slice(low, high)))

    return await look(here, scope, see)


async def find_item(
    here: LoopConnections, scope: StateScope, name: str, item: str, now: Callable[[], float]
) -> LogItem | None:
    """Return the item with this unique id; see `Storage.find_item`."""

    async def see(view: View) -> LogItem | None:
        log = view.image.logs.get(name) if view.image.alive(now()) else None
        if log is None:
            return None
        await settle_view(here, view, all=True)
        found = await here.history.find({"unique": f"{view.key}/{name}/{item}"}).to_list()
        for one in newest(view, found, "seq"):
            at: int = one["position"]
            if log.first <= at <= log.head:
                await load_items(here, view, name, at, at + 1)
                (there,) = log.slice(at, at + 1)
                if there.seq == one["seq"]:
                    return there
        return None

    return await look(here, scope, see)


async def scan(
    here: LoopConnections,
    scope: StateScope,
    section: str,
    prefix: str,
    cursor: str | None,
    limit: int,
    now: Callable[[], float],
) -> EntryPage:
    """Return a page of a section; see `Storage.scan`."""

    async def see(view: View) -> EntryPage:
        if not view.image.alive(now()):
            return EntryPage((), None)
        if view.complete:
            keys = sorted(
                key
                for name, key in view.image.entries
                if name == section and key.startswith(prefix) and (cursor is None or key > cursor)
            )
            found = [(key, view.image.entry(section, key, now())) for key in keys]
            live = [(key, entry) for key, entry in found if entry is not None]
        else:
            live = await _scanned(here, view, section, prefix, cursor, limit + 1, now())
        return EntryPage(tuple(live[:limit]), live[limit - 1][0] if len(live) > limit else None)

    return await look(here, scope, see)


async def _scanned(
    here: LoopConnections, view: View, section: str, prefix: str, cursor: str | None, wanted: int, now: float
) -> list[tuple[str, Entry]]:
    await settle_view(here, view, all=True)
    live: list[tuple[str, Entry]] = []
    bounds: dict[str, Any] = {"$gte": prefix, "$lte": prefix + LAST_CHARACTER * 2}
    if cursor is not None:
        bounds["$gt"] = cursor
    while len(live) < wanted:
        query = {"scope": view.key, "section": section, "name": bounds}
        found = await here.states.find(query).sort([("name", 1), ("n", 1)]).limit(2 * wanted + 2).to_list()
        # The last name may have newer revisions beyond the end of what was asked for.
        last = found[-1]["name"] if len(found) == 2 * wanted + 2 else None
        for one in newest(view, (one for one in found if one["name"] != last), "entry"):
            entry = entry_of(one) if "gone" not in one else None
            if entry is not None and (entry.expires_at is None or entry.expires_at > now):
                live.append((one["name"], entry))
        if last is None:
            break
        bounds["$gte"] = last
    return live


async def journal(
    here: LoopConnections, scope: StateScope, after: int, limit: int, now: Callable[[], float]
) -> tuple[JournalRecord, ...]:
    """Return commits of a scope; see `Storage.journal`."""

    async def see(view: View) -> tuple[JournalRecord, ...]:
        if not view.image.alive(now()):
            return ()
        first = max(after, view.image.version - JOURNAL_COUNT)
        query = {"scope": view.key, "journal": {"$gt": first}, "_id": {"$gte": chain_id(view.key, view.born)}}
        found = await here.transitions.find(query, {"record": 1}).sort("journal", 1).limit(limit).to_list()
        return tuple(_record(opened(one["_id"], one["record"], scope)) for one in found)

    return await look(here, scope, see)


def _record(packed: dict[str, Any]) -> JournalRecord:
    removed: dict[str, list[LogItem]] = {}
    for one in packed["removed"]:
        removed.setdefault(one[0], []).append(item_of(one))
    ranges = {name: (first, last) for name, first, last in packed["ranges"]}
    items = {name: tuple(found) for name, found in removed.items()}
    return JournalRecord(stamp_of(*packed["stamp"]), packed["at"], packed["record"], ranges, items)


async def failures(here: LoopConnections, scope: StateScope, now: float) -> tuple[bytes, ...]:
    """Return what failed turns left; see `Storage.failures`."""

    async def see(view: View) -> tuple[bytes, ...]:
        await settle_view(here, view, all=True)
        query = {"failure": view.key, "n": {"$gt": view.failing}, "at": {"$gt": now - FAILURE_SECONDS}}
        found = await here.metadata.find(query).sort("n", -1).limit(FAILURE_COUNT).to_list()
        return tuple(opened_document(one, scope)["record"] for one in reversed(found))

    return await look(here, scope, see)
