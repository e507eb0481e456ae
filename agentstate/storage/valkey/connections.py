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
from agentstate.storage.valkey.cluster import Cluster
from agentstate.storage.valkey.dial import Command, driver, tls_context
from agentstate.storage.valkey.faults import LostError, ServerError, closed, from_server, unreachable
from agentstate.storage.valkey.routes import Alone, Watched
from agentstate.storage.valkey.waker import Waker

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from agentstate.scope import StateScope
    from agentstate.storage.valkey.options import ValkeyOptions
    from agentstate.storage.valkey.pipeline import Pipeline
    from agentstate.storage.valkey.routes import Route
    from agentstate.storage.valkey.scripts import Script

__all__ = ["Connections", "LoopConnections"]

ROUTES: dict[str | None, Callable[[ValkeyOptions, ssl.SSLContext | None], Route]] = {
    None: Alone,
    "cluster": Cluster,
    "sentinel": Watched,
}


class LoopConnections:
    """The connections of one event loop: for commands, and one to be woken by."""

    def __init__(self, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.location = options.location
        self.opening = asyncio.Lock()
        self.route: Route = ROUTES[options.group](options, tls)
        self.waker = Waker(options.key_prefix, self.route.dial) if options.max_connections > 1 else None
        self._options = options
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

    async def _pipeline(self, key: bytes | None) -> Pipeline:
        if self._ended:
            raise closed(self.location)
        pipeline = await self.route.pipeline(key)
        if self._ended:
            self.abort()
            raise closed(self.location)
        return pipeline

    async def run(self, script: Script, key: bytes, *arguments: str | bytes | float) -> Any:
        """Run a script once and return its reply.

        Raises:
            StorageError: the server refused it, or can't be reached.
            LostError: the connection broke, and nobody knows whether it was carried out.
        """
        found = self.route.found(key) or await self._pipeline(key)
        reply = await found.send(("EVALSHA", script.digest, 1, key, *arguments))
        return reply if type(reply) is not ServerError else await self._refused(reply, script, key, arguments)

    async def _refused(self, reply: Any, script: Script, key: bytes, arguments: tuple[str | bytes | float, ...]) -> Any:
        reply = await self.route.again(reply, ("EVALSHA", script.digest, 1, key, *arguments), key)
        if type(reply) is ServerError and reply.code == "NOSCRIPT":
            command = ("EVAL", script.body, 1, key, *arguments)
            reply = await (await self._pipeline(key)).send(command)
            if type(reply) is ServerError:
                reply = await self.route.again(reply, command, key)
        if type(reply) is ServerError:
            raise from_server(reply, self.location) from reply
        return reply

    async def ask(self, script: Script, key: bytes, *arguments: str | bytes | float) -> Any:
        """Run a script that may run twice, once more when the connection broke.

        Raises:
            StorageError: the server refused it, or can't be reached.
        """
        try:
            try:  # as `run` does, without its own coroutine: this is on the way of every turn
                found = self.route.found(key) or await self._pipeline(key)
                reply = await found.send(("EVALSHA", script.digest, 1, key, *arguments))
                return reply if type(reply) is not ServerError else await self._refused(reply, script, key, arguments)
            except LostError as lost:
                if lost.timed_out and not self._options.retry_on_timeout:
                    raise
            return await self.run(script, key, *arguments)
        except LostError as lost:
            raise unreachable(self.location, lost) from lost

    async def ask_all(self, commands: Iterable[Command], *, errors: bool = False) -> list[Any]:
        """Send commands that may run twice together, once more when the connection broke.

        What stands second in a command is its key, if it is bytes. With ``errors`` a refusal is
        a reply like any other.

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
        keys = [_key_of(command) for command in commands]
        sent: list[Awaitable[Any]] = []
        for command, key in zip(commands, keys, strict=True):
            sent.append((self.route.found(key) or await self._pipeline(key)).send(command))
        replies = await asyncio.gather(*sent)
        for number, reply in enumerate(replies):
            if type(reply) is ServerError:
                replies[number] = await self.route.again(reply, commands[number], keys[number])
        return replies

    async def ask_everybody(self, command: Command) -> list[Any]:
        """Send a command without a key to each server that has keys, and return the replies, refusals too.

        Raises:
            StorageError: one can't be reached.
        """
        await self._pipeline(None)
        try:
            return [await (await node.open()).send(command) for node in self.route.nodes()]
        except LostError as lost:
            raise unreachable(self.location, lost) from lost

    async def close(self) -> None:
        """Close, on the own loop, and wait until it is done."""
        await self._life.aclose()
        for one in self._pipelines():
            await one.closed

    def abort(self) -> None:
        """Close at once, on the own loop."""
        self._ended = True
        for node in self.route.nodes():
            node.end()
        if self.waker is not None:
            self.waker.end()

    def close_sockets(self) -> None:
        """Close the sockets and nothing else."""
        for one in self._pipelines():
            one.close_socket()

    def _pipelines(self) -> list[Pipeline]:
        all_of_them = [node.pipeline for node in self.route.nodes()]
        all_of_them += [self.waker.pipeline] if self.waker is not None else []
        return [one for one in all_of_them if one is not None]


def _key_of(command: Command) -> bytes | None:
    second = command[1] if len(command) > 1 else None
    return second if type(second) is bytes else None


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
