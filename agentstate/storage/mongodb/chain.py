"""The chain of a state: insert-only documents ``scope/number`` in which everything happens in order.

Atomic: the insert of one document. Commits, drops, and every change of who holds the turn take the
next number, and a document carries the state's head after it; so whoever inserts number n + 1 has
seen everything up to n, and nothing else decides. That needs neither transactions nor conditional
updates of the server: two who insert one number are told apart by the uniqueness of ``_id``.

A view kept from before is good as long as its next number is free, which the insert finds out.
What lies far back may be deleted (see `agentstate.storage.mongodb.settle`), and then an old number
is free again: whoever inserts with a view older than `FRESH_SECONDS` looks first, and looks again
when the insert itself took that long.

Cancellation: these coroutines run in tasks of the storage's own, so an insert that was sent is
followed to its end. Where the reply was lost the same document is inserted again, until the server
says that it is there.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import CommitUnknownError, StateError, StorageUnavailableError
from agentstate.storage.mongodb.bodies import opened, sealed
from agentstate.storage.mongodb.faults import damaged, is_lost, too_large, typed
from agentstate.storage.mongodb.keys import chain_id, number_of
from agentstate.storage.mongodb.settle import settle_soon
from agentstate.storage.mongodb.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import Document, LoopConnections

__all__ = [
    "FRESH_SECONDS",
    "MovedError",
    "append",
    "changed_document",
    "fresh",
    "has_moved",
    "known",
    "pause",
    "still_there",
]

FRESH_SECONDS: Final = 60.0
IMAGE_EVERY: Final = 16
READ_AT_ONCE: Final = 24
DOCUMENT_BYTES: Final = 15 * 2**20
DECIDED_WITHIN: Final = 10.0
FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5
LAST: Final = 10**16 - 1
CHANGING: Final = {"commit", "drop", "sweep"}
FOR_READERS: Final = {"kind": 1, "head": 1, "change": 1, "image": 1}


class MovedError(Exception):
    """Somebody else took the next number. Internal: what was decided is decided anew.

    ``why`` is what to raise when it happens again and again.
    """

    def __init__(self, why: StateError | None = None) -> None:
        self.why = why
        super().__init__()


def known(here: LoopConnections, scope: StateScope) -> View | None:
    """Return the view kept of a state, if it is young enough to build upon."""
    view = here.views.get(scope)
    return view if view is not None and time.monotonic() - view.confirmed < FRESH_SECONDS else None


async def fresh(here: LoopConnections, scope: StateScope) -> View:
    """Return a view of a state as it is now: one round trip, a second one when much has happened."""
    kept = here.views.pop(scope, None)
    view = kept or View.of(scope)
    found = await (_step if here.scans and view.number else _read)(here, view.key, view.number, READ_AT_ONCE)
    if found and number_of(found[0]["_id"]) == view.number + 1 and kept is not None:
        view = follow(view, found)
    elif found:
        view = await _from_image(here, scope, found)
    elif view.number and await _is_gone(here, view):
        view = View.of(scope)
    here.keep(view)
    return view


async def has_moved(here: LoopConnections, view: View) -> bool:
    """Whether a kept view's chain goes on behind it."""
    if await here.transitions.find_one({"_id": chain_id(view.key, view.number + 1)}, {"_id": 1}) is not None:
        return True
    here.keep(view)
    return False


async def _is_gone(here: LoopConnections, view: View) -> bool:
    """Whether the document that a view ends with was deleted since, as a long dropped state's is."""
    if time.monotonic() - view.confirmed < FRESH_SECONDS:
        return False
    return await here.transitions.find_one({"_id": chain_id(view.key, view.number)}, {"_id": 1}) is None


async def still_there(here: LoopConnections, view: View) -> None:
    """Make sure that what was read beside the chain belongs to the view.

    Raises:
        MovedError: the chain has moved on, and what was read may be from after that.
    """
    if await has_moved(here, view):
        raise MovedError


async def _read(here: LoopConnections, key: str, after: int, limit: int) -> list[Document]:
    """Return the last documents after a number, oldest first."""
    bounds = {"$gt": chain_id(key, after), "$lte": chain_id(key, LAST)}
    cursor = here.transitions.find({"_id": bounds}, FOR_READERS).sort("_id", -1).limit(limit)
    return (await cursor.to_list())[::-1]


async def _step(here: LoopConnections, key: str, after: int, limit: int) -> list[Document]:
    """Return what `_read` does, document by document: quicker where the server would read them all."""
    found: list[Document] = []
    while (
        one := await here.transitions.find_one({"_id": chain_id(key, after + len(found) + 1)}, FOR_READERS)
    ) is not None:
        found.append(one)
        if len(found) == limit:
            return await _read(here, key, after, limit)
    return found or await _after_a_gap(here, key, after)


async def _after_a_gap(here: LoopConnections, key: str, after: int) -> list[Document]:
    """Return the last documents of a chain that goes on, but not where a view ends."""
    if await here.transitions.find_one({"_id": chain_id(key, after)}, {"_id": 1}) is not None:
        return []
    return await _read(here, key, after, READ_AT_ONCE)


async def _from_image(here: LoopConnections, scope: StateScope, found: list[Document]) -> View:
    view = View.of(scope)
    newest = found[-1]
    head = opened(newest["_id"], newest["head"], scope)
    image_at: int = head["from"][2]
    first = number_of(found[0]["_id"])
    if first > max(image_at, 1):
        bounds = {"$gte": chain_id(view.key, max(image_at, 1)), "$lt": found[0]["_id"]}
        older = await here.transitions.find({"_id": bounds}, FOR_READERS).sort("_id", 1).to_list()
        found = older + found
    found = [one for one in found if number_of(one["_id"]) >= max(image_at, 1)]
    if image_at:
        begin = found.pop(0) if found else newest
        if number_of(begin["_id"]) != image_at or "image" not in begin:
            raise damaged(scope, "The chain of transitions")
        picture = opened(begin["_id"], begin["image"], scope)
        view.take_picture(picture, image_at, opened(begin["_id"], begin["head"], scope))
    return follow(view, found)


def follow(view: View, found: Sequence[Document]) -> View:
    """Let a view follow documents of its chain, which must go on where it ends.

    What was cleared since is gone from older documents; then the clearing comes after them.
    """
    lacks = False
    for one in found:
        number = number_of(one["_id"])
        if number != view.number + 1:
            raise damaged(view.scope, "The chain of transitions")
        head = opened(one["_id"], one["head"], view.scope)
        if "change" in one:
            change = opened(one["_id"], one["change"], view.scope)
            lacks = lacks and not change.get("clear")
            view.apply(change, head)
        lacks = lacks or ("change" not in one and one["kind"] in CHANGING)
        view.take_head(number, head)
    if lacks:
        raise MovedError(damaged(view.scope, "The chain of transitions"))
    return view


def changed_document(view: View, kind: str, change: dict[str, Any] | None, **said: Any) -> Document:
    """Return the document that takes a changed view's next number.

    Args:
        view: the state as it is after the change.
        kind: what happened, for people.
        change: what it changed in entries and logs.
        said: further fields: ``commit``, ``version``, ``record``, and ``pending`` for what is to be
            carried into the other collections.
    """
    number = view.number + 1
    at = chain_id(view.key, number)
    picture = None
    if number - view.image_at >= IMAGE_EVERY or (change or {}).get("clear"):
        view.image_at = number
        picture = sealed(at, view.picture())
    pending = {"pending": view.key} if said.pop("pending", False) else {}
    document: Document = {"_id": at, "scope": view.key, "kind": kind, "wall": time.time(), **pending}
    document["token"] = secrets.token_hex(8)
    record = said.pop("record", None)
    document |= {name: value for name, value in said.items() if value is not None}
    document["head"] = sealed(at, view.head())
    blobs = {"change": change, "record": record}
    document |= {name: sealed(at, value) for name, value in blobs.items() if value is not None}
    if picture is not None:
        document["image"] = picture
    size = sum(len(one) for one in document.values() if isinstance(one, bytes))
    if size > DOCUMENT_BYTES:
        raise too_large(view.scope, size)
    return document


async def append(here: LoopConnections, view: View, document: Document, *, commit_id: int | None = None) -> None:
    """Insert a changed view's next document, and keep the view.

    Raises:
        MovedError: another document has that number.
        CommitUnknownError: the outcome of a commit couldn't be found out in time.
        StorageError: the server can't be reached or refused; nothing was stored.
    """
    began = min(view.confirmed, time.monotonic())
    if not await _inserted(here, view.scope, document, commit_id):
        raise MovedError
    if time.monotonic() - began > FRESH_SECONDS:
        await _look_again(here, view, document)
    view.number += 1
    view.prune()
    here.keep(view)
    here.moved(view.scope)
    if "pending" in document:
        here.unsettled[view.key] = view.scope
        settle_soon(here)


async def _inserted(here: LoopConnections, scope: StateScope, document: Document, commit_id: int | None) -> bool:
    from pymongo.errors import DuplicateKeyError, PyMongoError

    deadline = here.loop.time() + DECIDED_WITHIN
    wait, sent = FIRST_PAUSE, False
    while True:
        try:
            await here.transitions.insert_one(document)
        except DuplicateKeyError:
            if not sent:
                return False
            return await _is_ours(here, scope, document, commit_id)
        except PyMongoError as error:
            lost = is_lost(error)
            sent = sent or lost
            if not sent or (not lost and not isinstance(typed(error, here.location), StorageUnavailableError)):
                raise
            if here.loop.time() + wait > deadline:
                raise _unknown(here, scope, commit_id, error) from error
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_PAUSE)
        else:
            return True


async def _is_ours(here: LoopConnections, scope: StateScope, document: Document, commit_id: int | None) -> bool:
    from pymongo.errors import PyMongoError

    try:
        found = await here.transitions.find_one({"_id": document["_id"]}, {"token": 1})
    except PyMongoError as error:
        raise _unknown(here, scope, commit_id, error) from error
    return found is not None and found["token"] == document["token"]


def _unknown(here: LoopConnections, scope: StateScope, commit_id: int | None, error: Exception) -> Exception:
    if commit_id is None:
        return typed(error, here.location)
    return CommitUnknownError(
        f"MongoDB at {here.location} was lost while {scope} was committed ({typed(error, here.location)}).",
        commit_id=commit_id,
        scope=scope,
        remedy="Ask storage.outcome(scope, commit_id) when the server is back.",
    )


async def _look_again(here: LoopConnections, view: View, document: Document) -> None:
    """Take a document back that was inserted where others had been deleted."""
    (newest,) = await _read(here, view.key, 0, 1)
    number = number_of(document["_id"])
    before = await here.transitions.find_one({"_id": chain_id(view.key, number - 1)}, {"_id": 1})
    if number > 1 and before is None and number_of(newest["_id"]) != number:
        await here.transitions.delete_one({"_id": document["_id"], "token": document["token"]})
        raise MovedError


async def pause(tries: int) -> None:
    """Let those who were quicker go on, a little longer after each failure."""
    await asyncio.sleep(random.uniform(0, min(0.002 * 2**tries, 0.1)))  # noqa: S311 - spreads, hides nothing
