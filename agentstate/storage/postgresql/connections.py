"""The connections of a storage: one set for each event loop that uses it.

A set is closed with its loop: it hangs on an asynchronous generator, which `asyncio.run` and
every other well-mannered runner closes before the loop. Of loops that end otherwise the
sockets are closed when the next set is made. A forked child closes the sockets it inherited,
which the parent doesn't notice, and makes connections of its own.

Cancelling a call closes its connection: the server carries the call out or undoes it, whole.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentstate.storage.postgresql.blocking import BlockingLink
from agentstate.storage.postgresql.dial import close_socket, driver, tls_context
from agentstate.storage.postgresql.faults import AGAIN, LostError, closed, from_server, is_ending, unreachable
from agentstate.storage.postgresql.pool import Pool
from agentstate.storage.postgresql.waker import Waker

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agentstate.scope import StateScope
    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["Connections", "LoopConnections"]

T = TypeVar("T")

TRIES: Final = 20
PAUSE: Final = 0.002


class LoopConnections:
    """The connections of one event loop: a pool for calls, one to be woken by."""

    def __init__(self, options: PostgresqlOptions, tls: ssl.SSLContext | str) -> None:
        """Begin without a connection, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.location = options.location
        self.opening = asyncio.Lock()
        self.pool = Pool(options, tls)
        self.waker = Waker(options, tls)
        self.entering: dict[StateScope, asyncio.Future[None]] = {}
        self._driver = driver()
        self._life = self._until_the_loop_ends()

    async def start(self) -> None:
        """Hang the set on its loop's life."""
        await anext(self._life)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.abort()
            await asyncio.sleep(0)  # the transports close in the next pass of the loop

    async def run(self, sql: str, *arguments: object) -> Any:
        """Make a call once and return its rows.

        Raises:
            StorageError: the server refused it, or can't be reached.
            LostError: the connection broke, and nobody knows whether it was carried out.
        """
        tries = 0
        while True:
            connection = await self.pool.acquire()
            try:
                return await connection.fetch(sql, *arguments)
            except self._driver.PostgresError as error:
                if is_ending(error):
                    connection.terminate()
                    raise LostError(error, sent=True) from error
                tries += 1
                if error.sqlstate not in AGAIN or tries == TRIES:
                    raise from_server(error, self.location) from error
            except (OSError, TimeoutError, self._driver.InterfaceError, self._driver.InternalClientError) as error:
                sent = not connection.is_closed() or not isinstance(error, self._driver.InterfaceError)
                connection.terminate()
                raise LostError(error, sent=sent) from error
            except BaseException:
                connection.terminate()
                raise
            finally:
                self.pool.release(connection)
            await asyncio.sleep(PAUSE * tries)

    async def lend(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do work of several statements on one connection.

        Raises:
            StorageError: the server refused it, or can't be reached.
        """
        connection = await self.pool.acquire()
        try:
            return await work(connection)
        except self._driver.PostgresError as error:
            raise from_server(error, self.location) from error
        except (OSError, TimeoutError, self._driver.InterfaceError) as error:
            connection.terminate()
            raise unreachable(self.location, error) from error
        except asyncio.CancelledError:
            connection.terminate()
            raise
        finally:
            self.pool.release(connection)

    async def ask(self, sql: str, *arguments: object) -> Any:
        """Make a call that may be made twice, once more when the connection broke; return its rows.

        Raises:
            StorageError: the server refused it, or can't be reached.
        """
        try:
            try:
                return await self.run(sql, *arguments)
            except LostError:
                return await self.run(sql, *arguments)
        except LostError as lost:
            raise unreachable(self.location, lost) from lost

    async def close(self) -> None:
        """Close, on the own loop, and wait until it is done."""
        await self.pool.close()
        await self._life.aclose()

    def abort(self) -> None:
        """Close at once, on the own loop."""
        self.waker.abort()
        self.pool.abort()

    def close_sockets(self) -> None:
        """Close the sockets and nothing else."""
        self.pool.close_sockets()
        if self.waker.connection is not None:
            close_socket(self.waker.connection)


class Connections:
    """The sets of one storage, and what it holds on the server.

    Attributes:
        link: the blocking connection.
        held: the turns that were taken, by nonce, to be given back when the storage is closed.
    """

    def __init__(self, options: PostgresqlOptions) -> None:
        """Begin without any."""
        self.link = BlockingLink(options)
        self.held: dict[int, StateScope] = {}
        self._options = options
        self._tls: ssl.SSLContext | str | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._sets: dict[asyncio.AbstractEventLoop, LoopConnections] = {}
        _living.add(self)

    def found(self) -> LoopConnections | None:
        """Return the running loop's set, if there is one."""
        return self._sets.get(asyncio.get_running_loop())

    async def here(self) -> LoopConnections:
        """Return the running loop's set.

        Raises:
            StorageClosedError: the storage was closed.
            MissingDependencyError: the driver isn't installed.
            ConfigError: the TLS files can't be used.
        """
        found = self.found()
        if found is not None:
            return found
        if self._closed:
            raise closed(self._options.location)
        if self._tls is None:
            self._tls = tls_context(self._options)
        made = LoopConnections(self._options, self._tls)
        with self._lock:
            for loop in [loop for loop in self._sets if loop.is_closed()]:
                self._sets.pop(loop).close_sockets()
            found = self._sets.setdefault(made.loop, made)
        if found is made:
            await made.start()
        return found

    async def close(self) -> None:
        """Close all sets; those of other loops as soon as these run."""
        self._closed = True
        self.link.close()
        with self._lock:
            sets, self._sets = self._sets, {}
        mine = sets.pop(asyncio.get_running_loop(), None)
        for other in sets.values():
            try:
                other.loop.call_soon_threadsafe(other.abort)
            except RuntimeError:  # that loop is closed
                other.close_sockets()
        if mine is not None:
            await mine.close()

    def forget_inherited(self) -> None:
        """Drop what a forked child inherited."""
        self._lock = threading.Lock()
        self.link.forget_inherited()
        self.held.clear()
        for one in self._sets.values():
            one.close_sockets()
        _inherited.append(self._sets)
        self._sets = {}


_living: weakref.WeakSet[Connections] = weakref.WeakSet()
# A child keeps its parent's transports for ever: collected, they would touch the parent's selector.
_inherited: list[object] = []


def _forget_inherited() -> None:
    for one in list(_living):
        one.forget_inherited()


os.register_at_fork(after_in_child=_forget_inherited)
