"""Waiting for a turn, and giving turns back.

A waiter that keeps polling keeps its place; one that wasn't seen for a second is passed over.
While it can be woken it polls just often enough for that, else faster, with a growing pause.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from agentstate.errors import StorageError
from agentstate.storage.postgresql.encode import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentstate.scope import StateScope
    from agentstate.storage.postgresql.connections import LoopConnections

__all__ = ["give_back", "leave", "wait_turn"]

WOKEN_POLL: Final = 0.4
FIRST_POLL: Final = 0.002
LAST_POLL: Final = 0.05
POLL_GROWTH: Final = 1.5

log = logging.getLogger("agentstate.postgresql")


async def wait_turn(
    here: LoopConnections, sql: str, scope: StateScope, nonce: int, seconds: float, now: Callable[[], float | None]
) -> None:
    """Return when it is worth reading again for the turn, after ``seconds`` at the latest."""
    waker = here.waker
    deadline = here.loop.time() + seconds
    pause = FIRST_POLL
    try:
        while True:
            # Expected before it is asked, so that no waking falls between the two.
            woken = waker.expect(nonce)
            pushed = await waker.listen()
            ((held,),) = await here.ask(sql, now(), *place_of(scope), nonce)
            left = deadline - here.loop.time()
            if held is None or left <= 0:
                return
            await asyncio.wait((woken,), timeout=min(WOKEN_POLL if pushed else pause, max(held, 0.001), left))
            if woken.done():
                return
            pause = min(pause * POLL_GROWTH, LAST_POLL)
    finally:
        waker.forget(nonce)


async def leave(
    here: LoopConnections, sql: str, scope: StateScope, nonce: int, now: float | None, failure: tuple[object, ...]
) -> None:
    """Give a turn back, or leave its line; ``failure`` is a token, a record and its CRC, or three times nothing."""
    ((channel, woken),) = await here.ask(sql, now, *place_of(scope), nonce, *failure)
    here.waker.tell(channel, woken)


async def give_back(here: LoopConnections, sql: str, held: Mapping[int, StateScope], now: float | None) -> None:
    """Give turns back before closing. What can't be given back lapses by itself."""
    leaving = [leave(here, sql, scope, nonce, now, (None,) * 3) for nonce, scope in held.items()]
    for result in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(result, StorageError):
            log.warning("a turn couldn't be given back while closing: %s", result)
        elif isinstance(result, BaseException):
            raise result
