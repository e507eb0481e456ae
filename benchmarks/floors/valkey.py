"""Floors on Valkey: two trips of the usual client, and all callers of a loop pass in one packet."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import valkey.asyncio as valkey

from benchmarks.workload import TAIL, TEXT, message

WRITE = """
redis.call('RPUSH', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], 'count', ARGV[3])
"""


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


class AutoPipelinedFloor(TwoTripFloor):
    """The same reads, a script for the write, and one pipeline of valkey-py for all callers of a loop pass."""

    name = "floor: auto-pipelined scripts"

    async def open(self) -> None:
        self.sha = await self.client.script_load(WRITE)
        self.waiting: list[tuple[asyncio.Future[Any], tuple[Any, ...]]] = []
        self.sending: set[asyncio.Task[None]] = set()

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self._flush)
        future = loop.create_future()
        self.waiting.append((future, command))
        return future

    def _flush(self) -> None:
        together, self.waiting = self.waiting, []
        task = asyncio.create_task(self._send(together))
        self.sending.add(task)
        task.add_done_callback(self.sending.discard)

    async def _send(self, together: list[tuple[asyncio.Future[Any], tuple[Any, ...]]]) -> None:
        async with self.client.pipeline(transaction=False) as trip:
            for _, command in together:
                trip.execute_command(*command)
            for (future, _), reply in zip(together, await trip.execute(), strict=True):
                future.set_result(reply)

    async def turn(self, conversation: str) -> None:
        log, entries = keys(conversation)
        reading, asked = self.ask("LRANGE", log, -TAIL, -1), self.ask("HMGET", entries, "count", "other")
        items, (count, other) = await reading, await asked
        _ = [orjson.loads(item) for item in items], orjson.loads(other)
        number = int(count or 0)
        pair = orjson.dumps(message(number)), orjson.dumps(message(number, "assistant"))
        await self.ask("EVALSHA", self.sha, 2, log, entries, *pair, number + 1)
