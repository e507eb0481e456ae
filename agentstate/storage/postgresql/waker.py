"""Waking those who wait for a turn: one connection per event loop, which listens and notifies.

Whoever gives a turn back learns whom it was granted to, and notifies that waiter's loop
afterwards: never inside the commit, where NOTIFY would make all commits of the server queue.
What is to be said goes together, at most every 20 ms. It is only a courtesy: waiters poll as
well, less often while they can be woken.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import StateError
from agentstate.storage.postgresql.dial import connect, driver

if TYPE_CHECKING:
    import ssl

    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["Waker"]

NOTIFY_EVERY: Final = 0.02
NOTIFY: Final = """
SELECT set_config('synchronous_commit', 'off', true), (
    SELECT count(pg_notify(channel, nonce)) FROM unnest($1::text[], $2::text[]) AS said(channel, nonce))"""


class Waker:
    """The listener of one event loop. Once it has ``ended`` it connects no more."""

    def __init__(self, options: PostgresqlOptions, tls: ssl.SSLContext | str) -> None:
        """Begin without a connection, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.channel = f"agentstate_{secrets.token_hex(8)}"
        self.connection: Any = None
        self.ended = False
        self._options = options
        self._tls = tls
        self._listening: asyncio.Task[bool] | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._said: list[tuple[str, str]] = []
        self._saying: asyncio.Task[None] | None = None

    async def listen(self) -> bool:
        """Listen, if need be; return whether waiters are woken from now on."""
        if self.connection is not None and not self.connection.is_closed():
            return True
        if self.ended or self._options.pooler:
            return False
        if self._listening is None or self._listening.done():
            self._listening = self.loop.create_task(self._listen())
        return await asyncio.shield(self._listening)

    async def _listen(self) -> bool:
        asyncpg = driver()
        # A server or a user that can't listen leaves its waiters polling.
        with suppress(StateError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await connect(self._options, self._tls)
            try:
                await connection.add_listener(self.channel, self._on_notice)
                self.connection = connection
            finally:
                if self.connection is not connection or self.ended:
                    connection.terminate()
            return not self.ended
        return False

    def _on_notice(self, connection: Any, process: int, channel: str, payload: str) -> None:
        del connection, process, channel
        self._wake(payload)

    def _wake(self, nonce: str) -> None:
        future = self._waiting.get(nonce)
        if future is not None and not future.done():
            future.set_result(None)

    def expect(self, nonce: int) -> asyncio.Future[None]:
        """Return a future that is resolved when this waiter is woken; `forget` it afterwards."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._waiting[str(nonce)] = future
        return future

    def forget(self, nonce: int) -> None:
        """Expect this waiter's waking no longer."""
        self._waiting.pop(str(nonce), None)

    def tell(self, channel: str | None, nonce: int | None) -> None:
        """Wake the waiter that a turn was granted to, wherever it is; ``None`` wakes nobody."""
        if channel == self.channel:
            self._wake(str(nonce))
        elif channel and not self.ended and not self._options.pooler:
            self._said.append((channel, str(nonce)))
            if self._saying is None:
                self._saying = self.loop.create_task(self._say())

    async def _say(self) -> None:
        asyncpg = driver()
        try:
            while self._said and await self.listen():
                said, self._said = self._said, []
                # Who isn't told finds out by polling.
                with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await self.connection.fetch(NOTIFY, *map(list, zip(*said, strict=True)))
                await asyncio.sleep(NOTIFY_EVERY)
        finally:
            self._said.clear()
            self._saying = None

    def abort(self) -> None:
        """Close the connection at once, on the own loop."""
        self.ended = True
        for task in (self._saying, self._listening):
            if task is not None:
                task.cancel()
        if self.connection is not None:
            self.connection.terminate()
