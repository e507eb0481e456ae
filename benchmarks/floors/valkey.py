"""Floors on Valkey: two trips of the usual client, and all callers of a loop pass in one packet."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import libvalkey
import orjson
import valkey.asyncio as valkey

from benchmarks.workload import TAIL, TEXT, message

WRITE = """
redis.call('RPUSH', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], 'count', ARGV[3])
"""
INCOMPLETE = object()


def keys(conversation: str) -> tuple[str, str]:
    return f"floor:{{{conversation}}}:log", f"floor:{{{conversation}}}:entries"


class TwoTripFloor:
    """A pipeline of two reads, and a MULTI/EXEC of two writes, by valkey-py."""

    name = "floor: 2 trips"

    def __init__(self, port: int) -> None:
        self.client = valkey.Valkey(port=port)

    async def open(self) -> None:
        await self.client.ping()

    async def close(self) -> None:
        await self.client.aclose()

    async def seed(self, conversation: str, messages: int) -> None:
        log, entries = keys(conversation)
        await self.client.delete(log, entries)
        await self.client.hset(entries, "other", orjson.dumps(TEXT))
        for start in range(0, messages, 500):
            await self.client.rpush(log, *(orjson.dumps(message(n)) for n in range(start, min(start + 500, messages))))

    async def turn(self, conversation: str) -> None:
        log, entries = keys(conversation)
        async with self.client.pipeline(transaction=False) as trip:
            items, (count, other) = await trip.lrange(log, -TAIL, -1).hmget(entries, ["count", "other"]).execute()
        _ = [orjson.loads(item) for item in items], orjson.loads(other)
        number = int(count or 0)
        async with self.client.pipeline(transaction=True) as trip:
            trip.rpush(log, orjson.dumps(message(number)), orjson.dumps(message(number, "assistant")))
            await trip.hset(entries, "count", number + 1).execute()


class _Pipeline(asyncio.Protocol):
    """A connection that sends what was asked in one pass of the loop as one packet."""

    def __init__(self) -> None:
        self.reader = libvalkey.Reader(notEnoughData=INCOMPLETE)
        self.pending: deque[asyncio.Future[Any]] = deque()
        self.outbox: list[bytes] = []
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        if not self.outbox:
            self.loop.call_soon(self._flush)
        self.outbox.append(libvalkey.pack_command(command))
        future = self.loop.create_future()
        self.pending.append(future)
        return future

    def _flush(self) -> None:
        self.transport.write(b"".join(self.outbox))
        self.outbox.clear()

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not INCOMPLETE:
            self.pending.popleft().set_result(reply)


class AutoPipelinedFloor(TwoTripFloor):
    """Two reads in one packet, one script for the write, and one packet for all callers of a loop pass."""

    name = "floor: auto-pipelined scripts"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.port = port

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.pipeline = await loop.create_connection(_Pipeline, "127.0.0.1", self.port)
        self.sha = await self.pipeline.ask("SCRIPT", "LOAD", WRITE)

    async def close(self) -> None:
        self.pipeline.transport.close()
        await super().close()

    async def turn(self, conversation: str) -> None:
        log, entries = keys(conversation)
        ask = self.pipeline.ask
        reading, (count, other) = ask("LRANGE", log, -TAIL, -1), await ask("HMGET", entries, "count", "other")
        _ = [orjson.loads(item) for item in await reading], orjson.loads(other)
        number = int(count or 0)
        pair = orjson.dumps(message(number)), orjson.dumps(message(number, "assistant"))
        await ask("EVALSHA", self.sha, 2, log, entries, *pair, number + 1)
