"""Waiting for a turn, and giving turns back.

A waiter that keeps polling keeps its place; one that wasn't seen for a second is passed over.
While it can be woken it polls just often enough for that, else faster, with a growing pause.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentstate.errors import StorageError
from agentstate.storage.ending import in_thread
from agentstate.storage.valkey.scripts import script

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import LeaseRequest
    from agentstate.storage.valkey.blocking import BlockingLink
    from agentstate.storage.valkey.connections import LoopConnections
    from agentstate.storage.valkey.keys import Keys

__all__ = ["give_back", "lease_arguments", "wait_turn"]

WOKEN_POLL = 0.4
FIRST_POLL = 0.002
LAST_POLL = 0.05
POLL_GROWTH = 1.5
NO_CHANNEL = "-"

log = logging.getLogger("agentstate.valkey")


def lease_arguments(request: LeaseRequest, here: LoopConnections) -> tuple[Any, ...]:
    """Return a lease request as ``read.lua`` takes it."""
    channel = here.waker.channel if here.waker is not None else NO_CHANNEL
    return request.nonce, request.seconds, request.holder.replace("\n", " "), channel


async def wait_turn(here: LoopConnections, key: bytes, nonce: int, seconds: float, now: Callable[[], str]) -> None:
    """Return when it is worth reading again for the turn, after ``seconds`` at the latest."""
    waker = here.waker
    deadline = here.loop.time() + seconds
    pause = FIRST_POLL
    try:
        while True:
            # Expected before it is asked, so that no waking falls between the two.
            woken = waker.expect(nonce) if waker is not None else here.loop.create_future()
            pushed = waker is not None and await waker.listen()
            said = await here.ask(script("wait"), key, now(), nonce)
            left = deadline - here.loop.time()
            if said == b"go" or left <= 0:
                return
            await asyncio.wait((woken,), timeout=min(WOKEN_POLL if pushed else pause, max(float(said), 0.001), left))
            if woken.done():
                return
            pause = min(pause * POLL_GROWTH, LAST_POLL)
    finally:
        if waker is not None:
            waker.forget(nonce)


async def give_back(here: LoopConnections, keys: Keys, held: Mapping[int, StateScope], now: str) -> None:
    """Give turns back before closing. What can't be given back lapses by itself."""
    leave = script("leave")
    leaving = [here.ask(leave, keys.state(scope), now, nonce) for nonce, scope in held.items()]
    for result in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(result, StorageError):
            log.warning("a turn couldn't be given back while closing: %s", result)
        elif isinstance(result, BaseException):
            raise result


async def give_back_elsewhere(link: BlockingLink, keys: Keys, held: Mapping[int, StateScope], now: str) -> None:
    """Do the same from a loop without connections, on the blocking one: their own loop may have ended."""
    calls = [(keys.state(scope), (now, nonce)) for nonce, scope in held.items()]
    try:
        await in_thread(lambda: link.run_all(script("leave"), calls))
    except StorageError as error:
        log.warning("turns couldn't be given back while closing: %s", error)
