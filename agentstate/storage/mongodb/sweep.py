"""Removing what has expired, and what is kept no longer, in bounded steps.

What may be due is found by index. Whether it is, is decided on the state's own chain.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.scope import StateScope
from agentstate.storage.mongodb.chain import changed_document
from agentstate.storage.mongodb.change import drop_change, sweep_change
from agentstate.storage.mongodb.keys import chain_id, scope_of
from agentstate.storage.mongodb.loading import load_entries, load_items
from agentstate.storage.mongodb.settle import KEPT_SECONDS, expired_failures, settle_all
from agentstate.storage.mongodb.work import change
from agentstate.storage.protocol import ONCE_SECONDS, Part, Stamp, Swept

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View

__all__ = ["drop", "sweep"]

HEAD_ITEMS: Final = 100


async def drop(here: LoopConnections, scope: StateScope, stamp: Stamp | None, now: Callable[[], float]) -> bool:
    """Remove a state; see `Storage.drop`."""

    async def decide(view: View) -> tuple[bool, Document | None]:
        image, at = view.image, now()
        if view.turn.held(at) or not image.alive(at) or (stamp is not None and image.stamp != stamp):
            return False, None
        return True, dropped(view, at)

    return await change(here, scope, decide)


def dropped(view: View, now: float) -> Document:
    """Clear a view, and return the document that says so."""
    view.image.apply(Part(scope=view.scope, clear=True), 0, now, alive=True, once=None)
    return changed_document(view, "drop", drop_change(view), at=now, fed=True, pending=True)


class _Due(NamedTuple):
    """What of one state may be due."""

    entries: set[tuple[str, str]]
    items: set[tuple[str, int]]


async def sweep(here: LoopConnections, limit: int, now: Callable[[], float]) -> Swept:
    """Remove what has expired; see `Storage.sweep`."""
    await settle_all(here)
    at = now()
    gone: list[StateScope] = []
    entries = items = 0
    async for row in here.metadata.find({"expires": {"$lte": at}, "live": True}, {"text": 1}).sort("expires", 1):
        if len(gone) == limit:
            return Swept(tuple(gone), 0, 0, done=False)
        scope = StateScope.parse(row["text"])
        if scope not in gone and await _expire(here, scope, now):
            gone.append(scope)
    for key, due in (await _due(here, at, limit)).items():
        left = limit - len(gone) - entries - items
        if left <= 0:
            break
        removed = await _empty(here, scope_of(key), due, left, now)
        entries, items = entries + removed[0], items + removed[1]
    done = len(gone) + entries + items < limit
    if done:
        await _forget(here, at)
    return Swept(tuple(gone), entries, items, done=done)


async def _expire(here: LoopConnections, scope: StateScope, now: Callable[[], float]) -> bool:
    async def decide(view: View) -> tuple[bool, Document | None]:
        at = now()
        if view.turn.held(at) or view.image.stamp is None or view.image.alive(at):
            return False, None
        return True, dropped(view, at)

    return await change(here, scope, decide)


async def _due(here: LoopConnections, now: float, limit: int) -> dict[str, _Due]:
    found: dict[str, _Due] = {}
    due: Any = {"expires": {"$lte": now}}
    async for one in here.states.find(due, {"scope": 1, "section": 1, "name": 1}).limit(10 * limit):
        found.setdefault(one["scope"], _Due(set(), set())).entries.add((one["section"], one["name"]))
    due = {**due, "value": {"$nin": ["", b""]}}
    async for one in here.history.find(due, {"scope": 1, "log": 1, "position": 1}).limit(10 * limit):
        found.setdefault(one["scope"], _Due(set(), set())).items.add((one["log"], one["position"]))
    return found


async def _empty(
    here: LoopConnections, scope: StateScope, due: _Due, limit: int, now: Callable[[], float]
) -> tuple[int, int]:
    async def decide(view: View) -> tuple[tuple[int, int], Document | None]:
        at, image = now(), view.image
        if view.turn.held(at) or not image.alive(at):
            return (0, 0), None
        await load_entries(here, view, sorted(due.entries))
        positions = {one for one in due.items if _has(view, *one)}
        for name, position in positions:
            await load_items(here, view, name, position, position + 1)
        for name in {name for name, _ in positions}:
            await load_items(here, view, name, image.logs[name].first, image.logs[name].first + HEAD_ITEMS)
        made = sweep_change(view, at, due.entries, positions, limit)
        removed = len(made["deletes"]), len(made["edits"])
        if not any(removed) and not made["gone"]:
            return removed, None
        return removed, changed_document(view, "sweep", made, at=at, pending=True)

    return await change(here, scope, decide)


def _has(view: View, name: str, position: int) -> bool:
    log = view.image.logs.get(name)
    return log is not None and log.first <= position <= log.head


async def _forget(here: LoopConnections, now: float) -> None:
    """Delete what is kept for a while only: traces of deleted entries and states, keys, failed turns."""
    long_ago = time.time() - KEPT_SECONDS
    async for row in here.metadata.find({"live": False, "wall": {"$lt": long_ago}}, {"state": 1, "n": 1}):
        # The last document stays, so that a state made again goes on where this one ended.
        before = {"$gte": chain_id(row["state"], 0), "$lt": chain_id(row["state"], row["n"])}
        await here.transitions.delete_many({"_id": before})
        await here.metadata.delete_one({"_id": row["_id"]})
    await here.states.delete_many({"gone": {"$lt": long_ago}})
    await here.metadata.delete_many({"once": {"$lt": now - ONCE_SECONDS}})
    await here.metadata.delete_many(expired_failures(now))
