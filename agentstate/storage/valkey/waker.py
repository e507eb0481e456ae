"""Waking those who wait for a turn: one subscription per event loop.

Whoever gives a turn back grants it to the first in line and publishes the waiter's nonce on
the waiter's channel. It is only a courtesy: waiters poll as well, less often while they can
be woken.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agentstate.errors import StorageUnavailableError
from agentstate.storage.valkey.faults import LostError, ServerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.storage.valkey.pipeline import Pipeline

__all__ = ["Waker"]


class Waker:
    """The subscription of one event loop."""

    def __init__(self, prefix: str, dial: Callable[[Callable[[Any], None]], Awaitable[Pipeline]]) -> None:
        """Begin without a connection; ``dial`` makes one whose pushes go to a function."""
        self.channel = f"{quote(prefix, safe=':/')}wake:{secrets.token_hex(8)}"
        self.pipeline: Pipeline | None = None
        self._ended = False
        self._dial = dial
        self._dialing: asyncio.Task[bool] | None = None
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    async def listen(self) -> bool:
        """Subscribe, if need be; return whether waiters are woken from now on."""
        if self.pipeline is not None and self.pipeline.is_open:
            return True
        if self._ended:
            return False
        if self._dialing is None or self._dialing.done():
            self._dialing = asyncio.get_running_loop().create_task(self._subscribe())
        return await asyncio.shield(self._dialing)

    async def _subscribe(self) -> bool:
        # A server or a user that can't subscribe leaves its waiters polling.
        with suppress(OSError, LostError, ServerError, StorageUnavailableError):
            pipeline = await self._dial(self._on_push)
            reply = await pipeline.send(("SUBSCRIBE", self.channel))
            if isinstance(reply, ServerError) or self._ended:
                pipeline.abort()
                return False
            self.pipeline = pipeline
            return True
        return False

    def _on_push(self, message: Any) -> None:
        future = self._waiting.get(message[2])
        if future is not None and not future.done():
            future.set_result(None)

    def expect(self, nonce: int) -> asyncio.Future[None]:
        """Return a future that is resolved when this waiter is woken; `forget` it afterwards."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[b"%d" % nonce] = future
        return future

    def end(self) -> None:
        """Close at once, and connect no more."""
        self._ended = True
        if self.pipeline is not None:
            self.pipeline.abort()

    def forget(self, nonce: int) -> None:
        """Expect this waiter's waking no longer."""
        self._waiting.pop(b"%d" % nonce, None)
