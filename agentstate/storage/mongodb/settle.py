"""Carrying what the chains hold into the collections that listings and large states are read from.

Everything here may happen twice, at once in several processes, and late: documents are inserted
under names that say which number of the chain wrote them, the newest one counts, and what it
replaces is deleted afterwards. A chain's document says ``pending`` until it has been carried over.

Each commit of this process is carried over in the background, many at a time; whoever needs the
other collections carries over what is left first, whoever wrote it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.mongodb.bodies import close_document, opened
from agentstate.storage.mongodb.feeding import DUPLICATE, FeedEntry, add_to_feed
from agentstate.storage.mongodb.keys import (
    chain_id,
    entry_id,
    item_id,
    label_text,
    number_of,
    once_id,
    scope_of,
)
from agentstate.storage.protocol import FAILURE_COUNT, FAILURE_SECONDS, JOURNAL_COUNT, KNOWN_COMMITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.errors import BulkWriteError

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View

__all__ = ["settle", "settle_all", "settle_soon", "settle_view", "text_or_bytes"]

SETTLE_AFTER: Final = 0.05
# A server that takes long to carry over is left alone for this many times as long, up to some seconds.
RESTS: Final = 10
LONGEST_REST: Final = 3.0
AT_ONCE: Final = 500
TRIM_EVERY: Final = 64
KEPT_SECONDS: Final = 900.0

log = logging.getLogger("agentstate.mongodb")


@dataclass(slots=True)
class _Plan:
    """What the pending documents of one scope come to."""

    key: str
    scope: StateScope
    first: int = 0
    number: int = 0
    image_at: int = 0
    wiped: int = 0
    dropped: int = 0
    entries: dict[tuple[str, str], Document] = field(default_factory=dict[tuple[str, str], "Document"])
    items: dict[tuple[str, int], Document] = field(default_factory=dict[tuple[str, int], "Document"])
    edited: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    gone: list[tuple[str, int, int, int]] = field(default_factory=list[tuple[str, int, int, int]])
    others: list[Document] = field(default_factory=list["Document"])
    once: dict[str, Document] = field(default_factory=dict[str, "Document"])
    failed: bool = False
    row: Document = field(default_factory=dict[str, Any])
    feed: list[FeedEntry] = field(default_factory=list[FeedEntry])

    def add(self, document: Document) -> None:
        """Add the next pending document."""
        self.number = number_of(document["_id"])
        self.first = self.first or self.number
        head = opened(document["_id"], document["head"], self.scope)
        if "change" in document:
            self._add_change(opened(document["_id"], document["change"], self.scope), document["at"], head["from"][0])
        self.row = _row(self.key, self.scope, self.number, head)
        self.image_at = head["from"][2]
        if document.get("fed"):
            self.feed.append(FeedEntry(document["_id"], self.scope, head["stamp"], document["at"], document["wall"]))

    def _add_change(self, change: dict[str, Any], at: float, born: int) -> None:
        number = self.number
        if change.get("clear"):
            self.wiped = number if change["again"] else self.wiped
            self.entries.clear()
            self.items.clear()
            self.once.clear()
        if change.get("drop"):
            self.dropped = number
            self.others.clear()
        for section, name, value, version, commit, expires_at in change.get("puts", ()):
            more = {"value": text_or_bytes(value), "version": version, "commit": commit, "expires": expires_at}
            self.entries[section, name] = self._entry(section, name, more)
        for section, name in change.get("deletes", ()):
            self.entries[section, name] = self._entry(section, name, {"gone": time.time()})
        for name, low, high in change.get("gone", ()):
            self.gone.append((name, low, high, number))
            for at_item in [one for one in self.items if one[0] == name and low <= one[1] <= high]:
                del self.items[at_item]
        for packed in (*change.get("items", ()), *change.get("edits", ())):
            self._add_item(packed)
        self.edited.update((packed[0], packed[1]) for packed in change.get("edits", ()))
        if once := change.get("once"):
            said = {"fingerprint": once[1], "commit": once[2], "result": once[3], "once": once[4]}
            where = once_id(self.key, born, once[0])
            self.once[where] = {"_id": where, "scope": self.key, "n": number, **said}
        if (failure := change.get("failure")) is not None:
            self.failed = True
            said = {"failure": self.key, "record": failure, "at": at, "n": number}
            self.others.append({"_id": f"failure/{chain_id(self.key, number)}", **said})

    def _entry(self, section: str, name: str, more: dict[str, Any]) -> Document:
        where = entry_id(self.key, section, name)
        named = {"scope": self.key, "entry": where, "section": section, "name": name, "n": self.number}
        return {"_id": f"{where}/{self.number:016}", **named, **more}

    def _add_item(self, packed: Sequence[Any]) -> None:
        name, seq, position, item, value, expires_at, unique = packed
        where = item_id(self.key, name, seq)
        document: Document = {"_id": f"{where}/{self.number:016}", "scope": self.key, "log": name, "seq": seq}
        document |= {"position": position, "id": item, "value": text_or_bytes(value), "expires": expires_at}
        document |= {"n": self.number}
        if unique:
            document["unique"] = f"{self.key}/{name}/{item}"
        self.items[name, seq] = document


def text_or_bytes(value: bytes | int) -> str | bytes | int:
    """Return a value as people can read it, where it is text; the reader turns text into bytes again."""
    if isinstance(value, int):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value
    return value if "\0" in text else text


def _row(key: str, scope: StateScope, number: int, head: dict[str, Any]) -> Document:
    row: Document = {"_id": f"state/{chain_id(key, number)}", "state": key, "n": number, "tenant": scope.tenant}
    row |= {"kind": scope.kind, "id": scope.id, "text": scope.text, "updated": head["times"][1]}
    if head["stamp"] is None:
        return {**row, "live": False, "wall": time.time()}
    created, _, expires_at = head["times"]
    lengths = [{"log": name, "items": length} for name, _, length, *_ in head["logs"]]
    row |= {"live": True, "version": head["stamp"][0], "commit": head["stamp"][1], "owner": head["owner"]}
    row |= {"created": created, "expires": expires_at, "bytes": head["bytes"], "logs": lengths}
    return {**row, "labels": [label_text(name, value) for name, value in head["labels"]]}


def settle_soon(here: LoopConnections) -> None:
    """Carry over what this loop committed, a moment from now."""
    if here.settler is None or here.settler.done():
        here.settler = here.loop.create_task(_settle_later(here))


async def _settle_later(here: LoopConnections) -> None:
    while here.unsettled:
        with suppress(TimeoutError):
            await asyncio.wait_for(here.closing.wait(), max(SETTLE_AFTER, here.settled_in * RESTS))
        began = time.monotonic()
        waiting, here.unsettled = here.unsettled, {}
        numbers = {scope: view.number for scope in waiting.values() if (view := here.views.get(scope)) is not None}
        try:
            await settle(here, waiting)
        except Exception as error:  # noqa: BLE001 - whoever needs it next does it, and hears why not
            log.warning("commits couldn't be carried over yet: %s", error)
            return
        here.settled_in = min(time.monotonic() - began, LONGEST_REST / RESTS)
        for scope, number in numbers.items():
            if (view := here.views.get(scope)) is not None:
                view.settled = max(view.settled, min(number, view.number))


async def settle_view(here: LoopConnections, view: View, *, all: bool = False) -> None:  # noqa: A002
    """Carry over what is pending of a view's state, unless the view has it.

    ``all`` carries over that as well.
    """
    if view.settled < (view.number if all else view.followed - 1):
        await settle(here, [view.key])
        view.settled = view.number


async def settle_all(here: LoopConnections) -> None:
    """Carry over everything that is pending in the store."""
    while True:
        found = await here.transitions.find({"pending": {"$gt": ""}}).sort("_id", 1).limit(AT_ONCE).to_list()
        await _carry(here, found)
        if len(found) < AT_ONCE:
            return


async def settle(here: LoopConnections, keys: Iterable[str]) -> None:
    """Carry over what is pending of some scopes, by their keys."""
    wanted = list(keys)
    for start in range(0, len(wanted), AT_ONCE):
        pending = {"pending": {"$in": wanted[start : start + AT_ONCE]}}
        await _carry(here, await here.transitions.find(pending).sort("_id", 1).to_list())


async def _carry(here: LoopConnections, found: Sequence[Document]) -> None:
    if not found:
        return
    plans: dict[str, _Plan] = {}
    for one in found:
        key = one["scope"]
        if key not in plans:
            plans[key] = _Plan(key, scope_of(key))
        plans[key].add(one)
    everything = plans.values()
    await _insert(here.states, [one for plan in everything for one in plan.entries.values()])
    await _insert(here.history, [one for plan in everything for one in plan.items.values()])
    rows = [one for plan in everything for one in (*plan.others, plan.row)]
    await _insert(here.metadata, rows)
    await _put_once(here, [one for plan in everything for one in plan.once.values()])
    await add_to_feed(here, sorted(_in_time(everything), key=lambda one: one[0]))
    await _replace(here, everything)
    ids = [one["_id"] for one in found]
    await here.transitions.update_many({"_id": {"$in": ids}}, {"$unset": {"pending": ""}})
    for plan in everything:
        if plan.failed:
            await _trim_failures(here, plan.key)
        if plan.number // TRIM_EVERY > (plan.first - 1) // TRIM_EVERY:
            await _trim_chain(here, plan)


def _in_time(plans: Iterable[_Plan]) -> list[tuple[float, FeedEntry]]:
    """Return feed entries with when they happened, which never goes back within a scope."""
    timed: list[tuple[float, FeedEntry]] = []
    for plan in plans:
        latest = 0.0
        for one in plan.feed:
            latest = max(latest, one.wall)
            timed.append((latest, one))
    return timed


async def _insert(collection: AsyncCollection[Document], documents: Sequence[Document]) -> None:
    """Insert documents, of which some may be there already."""
    from pymongo.errors import BulkWriteError

    if not documents:
        return
    try:
        await collection.insert_many([close_document(one) for one in documents], ordered=False)
    except BulkWriteError as error:
        _check_duplicates(error)


def _check_duplicates(error: BulkWriteError) -> None:
    """Raise the error again, unless it is that others were quicker to do the same."""
    if any(one["code"] != DUPLICATE for one in error.details["writeErrors"]):
        raise error


async def _put_once(here: LoopConnections, documents: Sequence[Document]) -> None:
    """Put what idempotency keys did in place, also over what one did a day ago."""
    from pymongo.errors import DuplicateKeyError

    for one in documents:
        with suppress(DuplicateKeyError):  # another was quicker to do the same
            await here.metadata.replace_one({"_id": one["_id"]}, close_document(one), upsert=True)


async def _replace(here: LoopConnections, plans: Iterable[_Plan]) -> None:
    """Delete what newer documents have replaced."""
    entries: dict[Any, int] = {}
    rows: dict[Any, int] = {}
    for plan in plans:
        entries |= {one["entry"]: one["n"] for one in plan.entries.values()}
        rows[plan.key] = plan.number
        await _wipe(here, plan)
        for name, low, high, number in plan.gone:
            seqs = {"$gte": low, "$lte": high}
            await here.history.delete_many({"scope": plan.key, "log": name, "seq": seqs, "n": {"$lt": number}})
        edited = ((plan.items[at]["n"], at) for at in plan.edited if at in plan.items)
        for number, (name, seq) in edited:
            await here.history.delete_many({"scope": plan.key, "log": name, "seq": seq, "n": {"$lt": number}})
    await _delete_older(here.states, "entry", entries)
    await _delete_older(here.metadata, "state", rows)


async def _delete_older(collection: AsyncCollection[Document], by: str, newest: dict[Any, int]) -> None:
    if not newest:
        return
    found = await collection.find({by: {"$in": list(newest)}}, {by: 1, "n": 1}).to_list()
    stale = [one["_id"] for one in found if one["n"] < newest[one[by]]]
    if stale:
        await collection.delete_many({"_id": {"$in": stale}})


async def _wipe(here: LoopConnections, plan: _Plan) -> None:
    """Delete what a state held before it was cleared or dropped."""
    if plan.wiped:
        older = {"scope": plan.key, "n": {"$lt": plan.wiped}}
        for collection in (here.states, here.history, here.metadata):
            await collection.delete_many(older)
        # The chain's numbers stay taken for those who are about to insert; what they held goes now.
        before = {"$gte": chain_id(plan.key, 0), "$lt": chain_id(plan.key, plan.wiped)}
        held = {"change": "", "image": "", "record": "", "journal": ""}
        await here.transitions.update_many({"_id": before}, {"$unset": held})
    if plan.dropped:
        await here.metadata.delete_many({"failure": plan.key, "n": {"$lte": plan.dropped}})


async def _trim_failures(here: LoopConnections, key: str) -> None:
    found = await here.metadata.find({"failure": key}, {"_id": 1}).sort("n", -1).skip(FAILURE_COUNT).to_list()
    if found:
        await here.metadata.delete_many({"_id": {"$in": [one["_id"] for one in found]}})


async def _trim_chain(here: LoopConnections, plan: _Plan) -> None:
    """Delete what nobody needs of a chain: long past, carried over, and too old for the journal."""
    version = plan.row.get("version", 0)
    past = {"scope": plan.key, "pending": None, "wall": {"$lt": time.time() - KEPT_SECONDS}}
    end = min(plan.number - TRIM_EVERY, plan.image_at)
    numbered = {"$lt": chain_id(plan.key, max(end, 0)), "$gt": chain_id(plan.key, 0)}
    unfiled = {"journal": None, "version": {"$lt": version - KNOWN_COMMITS}}
    for filed in (unfiled, {"journal": {"$lt": version - JOURNAL_COUNT}}, {"version": None}):
        await here.transitions.delete_many({"_id": numbered, **past, **filed})


def expired_failures(now: float) -> Document:
    """Return the filter for failed turns that are kept no longer."""
    return {"failure": {"$gt": ""}, "at": {"$lt": now - FAILURE_SECONDS}}
