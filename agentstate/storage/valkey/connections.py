"""The connections of a storage: one set for each event loop that uses it.

A set is closed with its loop: it hangs on an asynchronous generator, which `asyncio.run` and
every other well-mannered runner closes before the loop. Of loops that end otherwise the
sockets are closed when the next set is made. A forked child closes the sockets it inherited,
which the parent doesn't notice, and makes connections of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from agentstate.storage.valkey.blocking import BlockingLink
from agentstate.storage.valkey.dial import Command, driver, tls_context
from agentstate.storage.valkey.faults import LostError, ServerError, closed, from_server, unreachable
from agentstate.storage.valkey.pipeline import Pipeline, dial
from agentstate.storage.valkey.waker import Waker

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Iterable

    from agentstate.scope import StateScope
    from agentstate.storage.valkey.options import ValkeyOptions
    from agentstate.storage.valkey.scripts import Script

__all__ = ["Connections", "LoopConnections"]


class LoopConnections:
    """The connections of one event loop: one for commands, one to be woken by."""

    def __init__(self, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.location = options.location
        self.opening = asyncio.Lock()
        self.waker = Waker(options, tls) if options.max_connections > 1 else None
        self._options = options
        self._tls = tls
        self._pipeline: Pipeline | None = None
        self._dialing: asyncio.Task[Pipeline] | None = None
        self._ended = False
        self._life = self._until_the_loop_ends()

    async def start(self) -> None:
        """Hang the set on its loop's life."""
        await anext(self._life)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.abort()

    async def pipeline(self) -> Pipeline:
        """Return the connection for commands, made anew when it has broken.

        Raises:
            StorageError: the server can't be reached, or refuses us.
            StorageClosedError: the storage was closed.
        """
        found = self._pipeline
        if found is not None and found.is_open:
            return found
        if self._ended:
            raise closed(self.location)
        if self._dialing is None or self._dialing.done():
            self._dialing = self.loop.create_task(self._dial())
        # The connection is everybody's: who is cancelled while it is made leaves it to the others.
        return await asyncio.shield(self._dialing)

    async def _dial(self) -> Pipeline:
        where = self.location
        try:
            self._pipeline = await dial(self._options, self._tls)
        except ServerError as error:
            raise from_server(error, where) from error
        except TimeoutError:
            raise unreachable(where, f"no answer in {self._options.socket_connect_timeout:g} s") from None
        except (OSError, LostError) as error:
            raise unreachable(where, error) from error
        if self._ended:
            self.abort()
            raise closed(where)
        return self._pipeline

    async def send(self, command: Command) -> Any:
        """Send a command once and return its reply.

        Raises:
            StorageError: the server refused it, or can't be reached.
            LostError: the connection broke, and nobody knows whether it was carried out.
        """
        found = self._pipeline
        if found is None or not found.is_open:
            found = await self.pipeline()
        reply = await found.send(command)
        if type(reply) is ServerError:
            raise from_server(reply, self.location) from reply
        return reply

    async def run(self, script: Script, key: bytes, *arguments: str | bytes | float) -> Any:
        """Run a script once and return its reply. Raises as `send` does."""
        found = self._pipeline
        if found is None or not found.is_open:
            found = await self.pipeline()
        reply = await found.send(("EVALSHA", script.digest, 1, key, *arguments))
        if type(reply) is not ServerError:
            return reply
        if reply.code == "NOSCRIPT":
            return await self.send(("EVAL", script.body, 1, key, *arguments))
        raise from_server(reply, self.location) from reply

    async def ask(self, script: Script, key: bytes, *arguments: str | bytes | float) -> Any:
        """Run a script that may run twice, once more when the connection broke.

        Raises:
            StorageError: the server refused it, or can't be reached.
        """
        try:
            try:
                return await self.run(script, key, *arguments)
            except LostError as lost:
                if lost.timed_out and not self._options.retry_on_timeout:
                    raise
            return await self.run(script, key, *arguments)
        except LostError as lost:
            raise unreachable(self.location, lost) from lost

    async def ask_all(self, commands: Iterable[Command], *, errors: bool = False) -> list[Any]:
        """Send commands that may run twice together, once more when the connection broke.

        With ``errors`` a refusal is a reply like any other.

        Raises:
            StorageError: the server refused one, or can't be reached.
        """
        pending = list(commands)
        try:
            try:
                replies = await self._gather(pending)
            except LostError as lost:
                if lost.timed_out and not self._options.retry_on_timeout:
                    raise
                replies = await self._gather(pending)
        except LostError as lost:
            raise unreachable(self.location, lost) from lost
        for reply in replies:
            if type(reply) is ServerError and not errors:
                raise from_server(reply, self.location) from reply
        return replies

    async def _gather(self, commands: list[Command]) -> list[Any]:
        pipeline = await self.pipeline()
        return await asyncio.gather(*map(pipeline.send, commands))

    async def close(self) -> None:
        """Close, on the own loop, and wait until it is done."""
        await self._life.aclose()
        for one in self._pipelines():
            await one.closed

    def abort(self) -> None:
        """Close at once, on the own loop."""
        self._ended = True
        if self.waker is not None:
            self.waker.ended = True
        for one in self._pipelines():
            one.abort()

    def close_sockets(self) -> None:
        """Close the sockets and nothing else."""
        for one in self._pipelines():
            one.close_socket()

    def _pipelines(self) -> list[Pipeline]:
        both = (self._pipeline, self.waker.pipeline if self.waker is not None else None)
        return [one for one in both if one is not None]


class Connections:
    """The sets of one storage, and what it holds on the server.

    Attributes:
        link: the blocking connection.
        held: the turns that were taken, by nonce, to be given back when the storage is closed.
    """

    def __init__(self, options: ValkeyOptions) -> None:
        """Begin without any."""
        self.link = BlockingLink(options)
        self.held: dict[int, StateScope] = {}
        self._options = options
        self._tls: ssl.SSLContext | None = None
        self._ready = False
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
        if not self._ready:
            driver()
            self._tls = tls_context(self._options)
            self._ready = True
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
