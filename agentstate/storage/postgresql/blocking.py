"""A blocking connection of its own, for the thread that renews leases.

It doesn't need the caller's event loop: a handler that blocks its loop must not lose its turn.
It has a loop of its own, which runs only during a call. Calls are made one after the other; a
broken connection is made anew once, since renewing twice is renewing.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from agentstate.storage.postgresql.dial import close_socket, connect, driver, tls_context
from agentstate.storage.postgresql.faults import closed, from_server, is_ending, unreachable

if TYPE_CHECKING:
    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["BlockingLink"]

_inherited: list[object] = []


class BlockingLink:
    """The connection. It is made when it is first used."""

    def __init__(self, options: PostgresqlOptions) -> None:
        """Begin without a connection."""
        self._options = options
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Any = None
        self._closed = False

    def ask(self, sql: str, *arguments: object) -> Any:
        """Make a call that may be made twice, and return its rows.

        Raises:
            StorageError: the server can't be reached, or refused.
        """
        with self._lock:
            if self._closed:
                raise closed(self._options.location)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(self._ask(sql, arguments))

    async def _ask(self, sql: str, arguments: tuple[object, ...]) -> Any:
        asyncpg = driver()
        for last in (False, True):
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._options, tls_context(self._options))
            try:
                return await self._connection.fetch(sql, *arguments)
            except asyncpg.PostgresError as error:
                if last or not is_ending(error):
                    raise from_server(error, self._options.location) from error
            except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
                if last:
                    raise unreachable(self._options.location, error) from error
            self._connection.terminate()
        raise AssertionError

    def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        with self._lock:
            if self._connection is not None:
                self._connection.terminate()
            if self._loop is not None:
                # The transport closes in a pass of the loop. One that runs in this thread forbids another,
                # so the pass is made in a thread of its own.
                thread = threading.Thread(target=_end, args=(self._loop,))
                thread.start()
                thread.join()
            self._connection = self._loop = None

    def forget_inherited(self) -> None:
        """Drop what a forked child inherited."""
        self._lock = threading.Lock()
        if self._connection is not None:
            close_socket(self._connection)
        _inherited.append((self._connection, self._loop))
        self._connection = self._loop = None


def _end(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
