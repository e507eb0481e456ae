"""The connections of one event loop, lent out one call at a time.

It is our own, since asyncpg's makes a task for each release and asks the server to reset the
session, which is a hidden round trip; our calls leave nothing behind in a session. Lending
never awaits while there is a free connection. First come, first served: who waits gets the next
connection that becomes free or was made, whichever is sooner. A connection whose call was
cancelled or whose answer is missing isn't lent again.

Cancellation: who is cancelled while waiting leaves the line, and passes on what it was given in
that moment; a connection that was being made for it goes to the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from agentstate.errors import StateError, StorageUnavailableError
from agentstate.storage.postgresql.dial import close_socket, connect
from agentstate.storage.postgresql.faults import closed

if TYPE_CHECKING:
    import ssl

    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["Pool"]


class Pool:
    """Up to ``pool_size`` connections."""

    def __init__(self, options: PostgresqlOptions, tls: ssl.SSLContext | str) -> None:
        """Begin without a connection, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.ended = False
        self._options = options
        self._tls = tls
        self._idle: list[Any] = []
        self._all: set[Any] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[Any]] = deque()

    async def acquire(self) -> Any:
        """Return a connection; `release` it afterwards.

        Raises:
            StorageUnavailableError: none became free in time, or none can be made.
            StorageClosedError: the storage was closed.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._all.discard(connection)
        if self.ended:
            raise closed(self._options.location)
        future: asyncio.Future[Any] = self.loop.create_future()
        self._waiting.append(future)
        self._make_more()
        timer = self.loop.call_later(self._options.pool_timeout, self._give_up, future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.done() and future.exception() is None:
                self.release(future.result())
            future.cancel()
            raise
        finally:
            timer.cancel()

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            options = self._options
            future.set_exception(
                StorageUnavailableError(
                    f"All {options.pool_size} connections to {options.location} were busy for "
                    f"{options.pool_timeout:g} s.",
                    remedy="Raise pool_size, or run fewer calls at once.",
                )
            )

    def _make_more(self) -> None:
        """See that as many connections are being made as are waited for, within the limit."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        room = self._options.pool_size - len(self._all) - len(self._making)
        for _ in range(min(room, len(self._waiting) - len(self._making))):
            task = self.loop.create_task(self._make())
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _make(self) -> None:
        try:
            connection = await connect(self._options, self._tls)
        except StateError as error:
            # Who waits may still be served by the connections there are.
            if not self._all:
                self._fail(error)
            return
        self._all.add(connection)
        self.release(connection)

    def _fail(self, error: StateError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def release(self, connection: Any) -> None:
        """Take a connection back, or what is left of it."""
        if self.ended:
            connection.terminate()
        if connection.is_closed():
            self._all.discard(connection)
            self._make_more()
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self._idle.append(connection)

    def abort(self) -> None:
        """Close all connections at once, on the own loop."""
        self.ended = True
        for connection in self._all:
            connection.terminate()
        self._all.clear()
        self._idle.clear()
        self._fail(closed(self._options.location))

    async def close(self) -> None:
        """Close in order what is idle, and the rest at once."""
        self.ended = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close(timeout=1.0) for connection in idle), return_exceptions=True)
        self.abort()

    def close_sockets(self) -> None:
        """Close the sockets and nothing else."""
        for connection in self._all:
            close_socket(connection)
