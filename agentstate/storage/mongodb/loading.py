"""Bringing what a view lacks into it, from the collections that the chains were carried into.

A small state lacks nothing: its chain has its entries and the ends of its logs. What is read here
may be newer than the view; then the view is made anew (`MovedError`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentstate.storage.mongodb.bodies import opened_document, stamp_of, unsigned
from agentstate.storage.mongodb.chain import MovedError
from agentstate.storage.mongodb.faults import damaged
from agentstate.storage.mongodb.keys import entry_id, once_id
from agentstate.storage.mongodb.settle import settle_view
from agentstate.storage.mongodb.window import Window
from agentstate.storage.protocol import Entry, LogItem, OnceRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View
    from agentstate.storage.protocol import Part, Wants

__all__ = [
    "bytes_of",
    "entry_of",
    "load_entries",
    "load_for_part",
    "load_for_wants",
    "load_items",
    "load_once",
    "load_unique",
    "newest",
]


async def load_for_wants(here: LoopConnections, view: View, wants: Wants, once: str | None) -> bool:
    """Load what a read brings; return whether anything had to be asked for."""
    asked = False
    if view.image.entry_bytes <= wants.inline_bytes:
        asked = await _load_all_entries(here, view)
    if view.image.entry_bytes > wants.inline_bytes or wants.sections is not None:
        asked = await load_entries(here, view, wants.keys) or asked
    for name, count in wants.tails:
        log = view.image.logs.get(name)
        if log is not None and count > 0:
            asked = await load_items(here, view, name, log.head - count + 1, log.head + 1) or asked
    if once is not None and view.image.stamp is not None:
        asked = await load_once(here, view, once) or asked
    return asked


async def load_for_part(here: LoopConnections, view: View, part: Part, once: OnceRecord | None) -> None:
    """Load what a part of a commit checks and touches."""
    image = view.image
    touched = [(one.section, one.key) for one in part.puts] + [(one.section, one.key) for one in part.increments]
    checked = [(one.name, one.key) for one in part.checks if one.kind == "entry"]
    await load_entries(here, view, [*part.deletes, *touched, *checked])
    for name, start, end in _touched_items(part):
        if name in image.logs:
            await load_items(here, view, name, max(start, image.logs[name].first), min(end, image.logs[name].head + 1))
    unique = {(one.log, one.id) for one in part.appends if one.unique}
    unique |= {(one.log, item.id) for one in part.edits for item in _at(view, one.log, one.position)}
    await load_unique(here, view, [at for at in unique if at[0] in image.logs])
    for log in image.logs.values():
        log.ids.clear()
    for name, id in unique:  # noqa: A001 - that is what it is
        seq = view.ids.get((name, id))
        if seq is not None and name in image.logs:
            image.logs[name].ids[id] = seq
    if once is not None:
        await load_once(here, view, once.key)


def _touched_items(part: Part) -> list[tuple[str, int, int]]:
    touched = [(one.log, one.position, sys.maxsize) for one in part.cuts]
    touched += [(one.log, 0, one.position) for one in part.trims]
    return touched + [(one.log, one.position, one.position + 1) for one in part.edits]


def _at(view: View, name: str, position: int) -> list[LogItem]:
    log = view.image.logs.get(name)
    return log.slice(position, position + 1) if log is not None else []


# -- entries -----------------------------------------------------------------------------------


def bytes_of(value: Any) -> bytes | int:
    """Return a stored value as it was given."""
    return value.encode() if isinstance(value, str) else value


def newest(view: View, found: Iterable[Document], by: str) -> list[Document]:
    """Return the newest revision of each, of this incarnation, in the order they first appear.

    Raises:
        MovedError: one is newer than the view.
        DamagedStateError: one isn't what was written.
    """
    best: dict[Any, Document] = {}
    for raw in found:
        one = opened_document(raw, view.scope)
        if one["n"] > view.number:
            raise MovedError
        if one["n"] >= view.born and (one[by] not in best or best[one[by]]["n"] < one["n"]):
            best[one[by]] = one
    return list(best.values())


def entry_of(one: Document) -> Entry:
    """Return an entry's document as an entry."""
    return Entry(bytes_of(one["value"]), stamp_of(one["version"], one["commit"]), one["expires"])


async def load_entries(here: LoopConnections, view: View, wanted: Sequence[tuple[str, str]]) -> bool:
    """Load some entries; return whether any had to be asked for."""
    lacking = {at for at in wanted if at not in view.image.entries and at not in view.missing}
    if view.complete or not lacking:
        return False
    await settle_view(here, view)
    names = [entry_id(view.key, *at) for at in lacking]
    found = await here.states.find({"entry": {"$in": names}}).to_list()
    for one in newest(view, found, "entry"):
        if "gone" not in one:
            view.image.entries[one["section"], one["name"]] = entry_of(one)
    view.missing |= {at for at in lacking if at not in view.image.entries}
    return True


async def _load_all_entries(here: LoopConnections, view: View) -> bool:
    if view.complete:
        return False
    await settle_view(here, view)
    found = await here.states.find({"scope": view.key}).to_list()
    entries = {
        (one["section"], one["name"]): entry_of(one) for one in newest(view, found, "entry") if "gone" not in one
    }
    sizes = (len(at[1]) + (8 if isinstance(one.value, int) else len(one.value)) for at, one in entries.items())
    if sum(sizes) != view.image.entry_bytes:
        raise MovedError(damaged(view.scope, "The entries"))
    view.image.entries = entries
    view.complete = True
    view.missing.clear()
    return True


# -- log items ---------------------------------------------------------------------------------


async def load_items(here: LoopConnections, view: View, name: str, start: int, end: int) -> bool:
    """Load the items of a log with ``start <= position < end``; return whether any had to be asked for."""
    log = view.image.logs[name]
    assert isinstance(log.items, Window)
    lacking = log.items.lacks(start - log.first, end - log.first)
    if lacking is None:
        return False
    await settle_view(here, view)
    low, high = lacking[0] + log.first, lacking[1] + log.first
    positions = {"$gte": low, "$lt": high}
    found = (
        await here.history.find({"scope": view.key, "log": name, "position": positions}).sort("position", 1).to_list()
    )
    at: dict[int, Document] = {}
    for one in newest(view, found, "seq"):
        if one["position"] not in at or at[one["position"]]["seq"] < one["seq"]:
            at[one["position"]] = one
    for position in range(low, high):
        if position not in at:
            raise MovedError(damaged(view.scope, f"Item {position} of {name}"))
        log.items.load(position - log.first, _item(at[position]))
        if "unique" in at[position]:
            view.ids[name, at[position]["id"]] = at[position]["seq"]
    return True


def _item(one: Document) -> LogItem:
    value = bytes_of(one["value"])
    assert isinstance(value, bytes)
    return LogItem(one["seq"], one["position"], one["id"], value, one["expires"])


async def load_unique(here: LoopConnections, view: View, wanted: Iterable[tuple[str, str]]) -> bool:
    """Find out which of some unique ids their logs hold; return whether anything had to be asked for."""
    lacking = {f"{view.key}/{at[0]}/{at[1]}": at for at in wanted if at not in view.ids}
    if not lacking:
        return False
    await settle_view(here, view)
    found = await here.history.find({"unique": {"$in": list(lacking)}}).sort("seq", 1).to_list()
    for at in lacking.values():
        view.ids[at] = None
    for one in newest(view, found, "seq"):
        log = view.image.logs.get(one["log"])
        if log is not None and log.first <= one["position"] <= log.head:
            await load_items(here, view, one["log"], one["position"], one["position"] + 1)
            (there,) = log.slice(one["position"], one["position"] + 1)
            if there.seq == one["seq"] and (there.value or there.expires_at is None):
                view.ids[one["log"], one["id"]] = one["seq"]
    return True


# -- idempotency keys --------------------------------------------------------------------------


async def load_once(here: LoopConnections, view: View, key: str) -> bool:
    """Find out what an idempotency key did; return whether it had to be asked for."""
    if key in view.image.once or key in view.no_once or view.number == 0:
        return False
    await settle_view(here, view)
    found = await here.metadata.find_one({"_id": once_id(view.key, view.born, key)})
    if found is None:
        view.no_once.add(key)
        return True
    one = opened_document(found, view.scope)
    said = (key, one["fingerprint"], unsigned(one["commit"]), one["result"], one["once"])
    view.image.once[key] = OnceRecord(*said)
    return True
