"""Turns: who holds a state, who waits for it, and giving it back.

All of it lies in the heads of the chain, so it is decided by who inserts the next document, like
everything else: a holder whose turn another took finds the other's nonce before its own commit can
have a number.

Waiting is polling, by one waiter of each event loop; the others of that loop are woken. A waiter
that waits or asks again keeps its place; one that wasn't seen for a second is passed over. Who was
seen is told in one document per event loop, since a chain that held it would grow by waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import LeaseLostError
from agentstate.storage.mongodb.bodies import opened, sealed
from agentstate.storage.mongodb.chain import fresh, has_moved, known
from agentstate.storage.mongodb.keys import chain_id, number_of, scope_key
from agentstate.storage.protocol import Holder, Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.synchronous.collection import Collection

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View
    from agentstate.storage.protocol import LeaseRequest

__all__ = ["check_lease", "leave", "renew", "take", "wait_turn"]

GONE_SECONDS: Final = 1.0
TELL_SECONDS: Final = 0.3
FIRST_POLL: Final = 0.005
LAST_POLL: Final = 0.05
POLL_GROWTH: Final = 1.5
RENEW_TRIES: Final = 20
LAST: Final = 10**16 - 1


async def take(
    here: LoopConnections, view: View, request: LeaseRequest, now: float
) -> tuple[Lease | None, Holder | None, bool]:
    """Take or renew the turn, or join the line; return also whether that changed the view."""
    turn, (nonce, seconds, holder) = view.turn, request
    free = turn.nonce == 0 or (turn.until <= now and turn.nonce != nonce)
    if free and await _is_next(here, view, nonce, now):
        turn.line.pop(nonce, None)
        here.waiting.pop(nonce, None)
        turn.nonce, turn.counter = nonce, turn.counter + 1
        turn.holder, turn.since = holder, now
    elif turn.nonce != nonce:
        await _seen(here, nonce, now)
        joins = nonce not in turn.line
        if joins:
            turn.line[nonce] = (now, here.home)
        return None, Holder(turn.holder, turn.since), joins
    turn.until = now + seconds
    return Lease(view.scope, nonce, turn.counter, turn.until), None, True


async def _is_next(here: LoopConnections, view: View, nonce: int, now: float) -> bool:
    """Whether nobody who still waits stands before this waiter. Who has gone leaves the line."""
    line = view.turn.line
    for waiting in list(itertools.takewhile(lambda one: one != nonce, line)):
        asked, home = line[waiting]
        asked = max(asked, here.waiting.get(waiting, 0.0), here.others.get(waiting, 0.0))
        if asked <= now - GONE_SECONDS and home != here.home:
            asked = await _asked_elsewhere(here, waiting, home)
        if asked > now - GONE_SECONDS:
            return False
        del line[waiting]
    return True


async def _asked_elsewhere(here: LoopConnections, waiting: int, home: str) -> float:
    """Return when a waiter of another event loop was seen last, as far as that loop has told."""
    told = await here.metadata.find_one({"_id": f"waiting/{home}"})
    here.others = {} if told is None else dict(zip(told["nonces"], told["asked"], strict=True))
    return here.others.get(waiting, 0.0)


async def _seen(here: LoopConnections, nonce: int, now: float) -> None:
    """Note that a waiter is still there, and tell others now and then."""
    here.waiting[nonce] = now
    if time.monotonic() - here.told < TELL_SECONDS:
        return
    here.told = time.monotonic()
    for one in [one for one, asked in here.waiting.items() if asked <= now - 2 * GONE_SECONDS]:
        del here.waiting[one]
    told = {"nonces": list(here.waiting), "asked": list(here.waiting.values()), "wall": time.time()}
    await here.metadata.replace_one({"_id": f"waiting/{here.home}"}, told, upsert=True)


def leave(view: View, nonce: int) -> bool:
    """Give the turn back, or leave the line; return whether that changed the view."""
    turn = view.turn
    changed = turn.line.pop(nonce, None) is not None
    if turn.nonce == nonce and nonce:
        turn.nonce = 0
        return True
    return changed


def check_lease(view: View, lease: Lease | None) -> None:
    """Raise `LeaseLostError` unless this holder is still the last one."""
    if lease is not None and view.turn.nonce != lease.nonce:
        raise LeaseLostError(
            f"Another holder took the turn of {lease.scope}; nothing was stored.",
            scope=lease.scope,
            remedy="Run the handler again, and keep it shorter than its lease can be renewed.",
        )


async def wait_turn(
    here: LoopConnections, scope: StateScope, nonce: int, seconds: float, now: Callable[[], float]
) -> None:
    """Return when it is worth reading again for the turn, after ``seconds`` at the latest.

    One waiter of a loop asks the server, the others see what it found.
    """
    deadline, wait = time.monotonic() + seconds, FIRST_POLL
    while True:
        moved = here.watch(scope)
        try:
            async with here.lock(scope):
                view = known(here, scope)
                if view is None or (time.monotonic() - view.confirmed > wait and await has_moved(here, view)):
                    view = await fresh(here, scope)
                await _seen(here, nonce, now())
                free = view.turn.nonce in (0, nonce) or view.turn.until <= now()
                if free and await _is_next(here, view, nonce, now()):
                    return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            await asyncio.wait((moved,), timeout=min(wait, left))
            wait = min(wait * POLL_GROWTH, LAST_POLL)
        finally:
            here.unwatch(scope, moved)


def renew(chains: Collection[Document], lease: Lease, seconds: float, now: float) -> bool:
    """Lengthen a lease, if it is still held. Blocking; another's insert in between is no obstacle."""
    import secrets

    from pymongo.errors import DuplicateKeyError

    key = scope_key(lease.scope)
    bounds = {"$gt": chain_id(key, 0), "$lte": chain_id(key, LAST)}
    for _ in range(RENEW_TRIES):
        found = list(chains.find({"_id": bounds}, {"head": 1}).sort("_id", -1).limit(1))
        if not found:
            return False
        head: dict[str, Any] = opened(found[0]["_id"], found[0]["head"], lease.scope)
        if head["turn"][0] != lease.nonce:
            return False
        at = chain_id(key, number_of(found[0]["_id"]) + 1)
        head["turn"][4] = now + seconds
        document: Document = {"_id": at, "scope": key, "kind": "turn", "wall": time.time(), "at": now}
        document["token"] = secrets.token_hex(8)
        if head["times"][2] is not None and head["times"][2] < now + seconds:
            head["times"][2] = now + seconds
            document["pending"] = key
        try:
            chains.insert_one({**document, "head": sealed(at, head)})
        except DuplicateKeyError:
            continue
        return True
    return False
