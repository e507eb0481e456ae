"""Which server a command goes to: the only one, the one that sentinels name, or the owner of its key's slot.

A command that a server refuses because it isn't the one to ask, or not yet, was not carried
out, so it may be sent again: to the server that the refusal names, or, for at most
``failover_timeout`` seconds, to whoever takes over.

Each route belongs to one event loop. Callers that find a server gone look for the new one
together; who is cancelled meanwhile leaves the search to the others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from agentstate.errors import StorageUnavailableError
from agentstate.storage.valkey.faults import LostError, ServerError, from_server, unreachable
from agentstate.storage.valkey.node import Node
from agentstate.storage.valkey.pipeline import Pipeline, dial

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable

    from agentstate.storage.valkey.dial import Command
    from agentstate.storage.valkey.options import Address, ValkeyOptions

__all__ = ["Alone", "Route", "Watched", "attempts", "first_answer"]

FIRST_PAUSE = 0.02
LAST_PAUSE = 0.25
NOT_YET = frozenset({"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"})
"""The server didn't carry the command out, and another one, or the same one later, will."""


class Route(Protocol):
    """How one event loop's commands find their server."""

    def found(self, key: bytes | None) -> Pipeline | None:
        """Return the open connection to whoever has a key; ``None`` for the key means anybody."""
        ...

    async def pipeline(self, key: bytes | None) -> Pipeline:
        """Return the connection to whoever has a key, made when there is none.

        Raises:
            StorageError: nobody can be reached, or refuses us.
            StorageClosedError: the storage was closed.
        """
        ...

    async def again(self, refusal: ServerError, command: Command, key: bytes | None) -> Any:
        """Return what becomes of a refused command elsewhere or later; else the refusal."""
        ...

    async def dial(self, on_push: Callable[[Any], None]) -> Pipeline:
        """Return a connection of one's own to a server that hears what is published."""
        ...

    def nodes(self) -> Iterable[Node]:
        """Return all servers that there are connections to."""
        ...


class Alone:
    """There is one server."""

    def __init__(self, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection."""
        self._options = options
        self._tls = tls
        self._node = Node(options.address, options, tls)

    def found(self, key: bytes | None) -> Pipeline | None:  # noqa: ARG002
        """See `Route.found`."""
        return self._node.found()

    async def pipeline(self, key: bytes | None) -> Pipeline:  # noqa: ARG002
        """See `Route.pipeline`."""
        return await self._node.open()

    async def again(self, refusal: ServerError, command: Command, key: bytes | None) -> Any:  # noqa: ARG002
        """Return the refusal: there is nobody else to ask."""
        return refusal

    async def dial(self, on_push: Callable[[Any], None]) -> Pipeline:
        """See `Route.dial`."""
        return await dial(self._node.address, self._options, self._tls, on_push)

    def nodes(self) -> Iterable[Node]:
        """See `Route.nodes`."""
        return (self._node,)


class Watched:
    """There is one server at a time; sentinels know which."""

    def __init__(self, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection."""
        self._options = options
        self._tls = tls
        self._node: Node | None = None
        self._looking: asyncio.Task[Pipeline] | None = None

    def found(self, key: bytes | None) -> Pipeline | None:  # noqa: ARG002
        """See `Route.found`."""
        return self._node.found() if self._node is not None else None

    async def pipeline(self, key: bytes | None) -> Pipeline:
        """See `Route.pipeline`."""
        found = self.found(key)
        if found is not None:
            return found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Pipeline:
        error: StorageUnavailableError | None = None
        async for _ in attempts(self._options.failover_timeout):
            try:
                address = await self._primary()
                if self._node is None or self._node.address != address:
                    if self._node is not None:
                        self._node.end()
                    self._node = Node(address, self._options, self._tls)
                pipeline = await self._node.open()
                role = await pipeline.send(("ROLE",))
                if type(role) is ServerError or role[0] == b"master":
                    return pipeline
                pipeline.abort()  # it was one, and the sentinels haven't agreed on another yet
                error = unreachable(self._options.location, "the server that the sentinels name is a replica")
            except StorageUnavailableError as unavailable:
                error = unavailable
            except LostError as lost:
                error = unreachable(self._options.location, lost)
        assert error is not None
        raise error

    async def _primary(self) -> Address:
        """Ask the sentinels, one after the other, who serves."""
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._options.watched)
        reply = await first_answer(self._options.addresses, self._options, self._tls, command, sentinel=True)
        if not reply:
            raise unreachable(self._options.location, f"the sentinels don't watch {self._options.watched!r}")
        host, port = reply
        return host.decode(), int(port)

    async def again(self, refusal: ServerError, command: Command, key: bytes | None) -> Any:
        """See `Route.again`."""
        reply: Any = refusal
        async for _ in attempts(self._options.failover_timeout):
            if type(reply) is not ServerError or reply.code not in NOT_YET:
                break
            if reply.code == "READONLY" and self._node is not None:
                self._node.abort()
            reply = await (await self.pipeline(key)).send(command)
        return reply

    async def dial(self, on_push: Callable[[Any], None]) -> Pipeline:
        """See `Route.dial`."""
        return await dial(await self._primary(), self._options, self._tls, on_push)

    def nodes(self) -> Iterable[Node]:
        """See `Route.nodes`."""
        return () if self._node is None else (self._node,)


async def attempts(seconds: float) -> AsyncIterator[None]:
    """Yield for each attempt, at growing distances, until the time is over; at least once."""
    clock = asyncio.get_running_loop().time
    deadline, pause = clock() + seconds, FIRST_PAUSE
    while True:
        yield
        if clock() + pause > deadline:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)


async def first_answer(
    addresses: Iterable[Address],
    options: ValkeyOptions,
    tls: ssl.SSLContext | None,
    command: Command,
    *,
    sentinel: bool = False,
) -> Any:
    """Return the answer of the first server that gives one, over a connection of its own.

    Raises:
        StorageError: none does.
    """
    error: Exception | None = None
    for address in addresses:
        try:
            pipeline = await dial(address, options, tls, sentinel=sentinel)
        except (OSError, LostError, ServerError) as refused:
            error = refused
            continue
        try:
            reply = await pipeline.send(command)
        except LostError as lost:
            error = lost
            continue
        finally:
            pipeline.abort()
        if type(reply) is not ServerError:
            return reply
        error = reply
    raise (
        from_server(error, options.location) if isinstance(error, ServerError) else unreachable(options.location, error)
    )
