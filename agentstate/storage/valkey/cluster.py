"""The servers of a cluster, and which of them has a key's slot.

Our keys name their partition in braces, so all keys of a partition have one slot, and the few
hundred slots that occur are worked out once. The map of slots is read from any node when there
is none, when a server says that a slot has moved, and when one can't be reached.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from typing import TYPE_CHECKING, Any, cast

from agentstate.errors import StorageUnavailableError
from agentstate.storage.valkey.faults import LostError, ServerError, unreachable
from agentstate.storage.valkey.node import Node
from agentstate.storage.valkey.pipeline import Pipeline, dial
from agentstate.storage.valkey.routes import NOT_YET, attempts, first_answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from agentstate.storage.valkey.dial import Command
    from agentstate.storage.valkey.options import Address, ValkeyOptions

__all__ = ["Cluster", "slot_of"]

SLOTS = 16384
_SERVES = (b"master", b"online")


def slot_of(key: bytes) -> int:
    """Return the slot of a key: a checksum of what stands in its first braces, else of the whole key."""
    start = key.find(b"{") + 1
    end = key.find(b"}", start)
    return crc_hqx(key[start:end] if start and end > start else key, 0) % SLOTS


class Cluster:
    """There are several servers, each with some of the slots."""

    def __init__(self, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection."""
        self._options = options
        self._tls = tls
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        self._slots: dict[bytes, int] = {}
        self._mapping: asyncio.Task[None] | None = None

    def found(self, key: bytes | None) -> Pipeline | None:
        """See `Route.found`."""
        if key is None:
            return next((found for node in self._nodes.values() if (found := node.found()) is not None), None)
        owner = self._owners[self._slot(key)]
        return owner.found() if owner is not None else None

    def _slot(self, key: bytes) -> int:
        tag = key[: key.find(b"}") + 1]
        slot = self._slots.get(tag)
        if slot is None:
            slot = self._slots[tag] = slot_of(key)
        return slot

    async def pipeline(self, key: bytes | None) -> Pipeline:
        """See `Route.pipeline`."""
        error: StorageUnavailableError | None = None
        async for _ in attempts(self._options.failover_timeout):
            try:
                if error is not None or not self._nodes:
                    await self._map()
                return await self._owner(key).open()
            except StorageUnavailableError as unavailable:
                error = unavailable
        assert error is not None
        raise error

    def _owner(self, key: bytes | None) -> Node:
        owner = next(iter(self._nodes.values())) if key is None else self._owners[self._slot(key)]
        if owner is None:
            raise unreachable(self._options.location, "nobody in the cluster has the key's slot")
        return owner

    async def _map(self) -> None:
        """Read who has which slot. Everybody who wants to know waits for the same answer."""
        if self._mapping is None or self._mapping.done():
            self._mapping = asyncio.get_running_loop().create_task(self._read_map())
        await asyncio.shield(self._mapping)

    async def _read_map(self) -> None:
        known = [*self._nodes, *(one for one in self._options.addresses if one not in self._nodes)]
        shards = await first_answer(known, self._options, self._tls, ("CLUSTER", "SHARDS"))
        owners: list[Node | None] = [None] * SLOTS
        serving: set[Address] = set()
        for shard in map(_named, shards):
            # After a failover the one that has gone is still named beside its successor.
            serves = (one for one in map(_named, shard[b"nodes"]) if (one[b"role"], one[b"health"]) == _SERVES)
            primary = next(serves, None)
            if primary is None:
                continue
            node = self._node(_address_of(primary, tls=self._tls is not None))
            serving.add(node.address)
            slots = cast("list[int]", shard[b"slots"])
            for low, high in zip(slots[::2], slots[1::2], strict=True):
                owners[low : high + 1] = [node] * (high - low + 1)
        self._owners = owners
        for gone in [address for address in self._nodes if address not in serving]:
            self._nodes.pop(gone).end()

    def _node(self, address: Address) -> Node:
        found = self._nodes.get(address)
        if found is None:
            found = self._nodes[address] = Node(address, self._options, self._tls)
        return found

    async def again(self, refusal: ServerError, command: Command, key: bytes | None) -> Any:
        """See `Route.again`. Where a slot is being moved, its keys are with its old or its new owner."""
        reply: Any = refusal
        async for _ in attempts(self._options.failover_timeout):
            if type(reply) is not ServerError:
                break
            if reply.code == "ASK":
                pipeline = await self._node(_place_of(reply)[1]).open()
                # Nothing comes between the two: both are packed before the loop goes on.
                asking, asked = pipeline.send(("ASKING",)), pipeline.send(command)
                await asking
                reply = await asked
            elif reply.code == "MOVED":
                slot, address = _place_of(reply)
                self._owners[slot] = node = self._node(address)
                reply = await (await node.open()).send(command)
            elif reply.code in NOT_YET:
                await self._map()
                reply = await (await self.pipeline(key)).send(command)
            else:
                break
        return reply

    async def dial(self, on_push: Callable[[Any], None]) -> Pipeline:
        """See `Route.dial`: what is published anywhere is heard everywhere."""
        error: Exception | None = None
        for address in [*self._nodes] or self._options.addresses:
            try:
                return await dial(address, self._options, self._tls, on_push)
            except (OSError, LostError, ServerError) as refused:
                error = refused
        raise LostError(str(error), sent=False)

    def nodes(self) -> Iterable[Node]:
        """See `Route.nodes`."""
        return tuple(self._nodes.values())


def _named(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _address_of(node: dict[bytes, Any], *, tls: bool) -> Address:
    port = node.get(b"tls-port" if tls else b"port") or node[b"port"]
    return cast("bytes", node[b"endpoint"] or node[b"ip"]).decode(), int(port)


def _place_of(refusal: ServerError) -> tuple[int, Address]:
    _, slot, place = str(refusal).split(" ")
    host, _, port = place.rpartition(":")
    return int(slot), (host, int(port))
