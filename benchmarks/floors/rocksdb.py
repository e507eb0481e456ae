"""Floors on RocksDB, synced: a batch that syncs by itself, and batches that share a sync."""

from __future__ import annotations

import asyncio
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import rocksdict

from benchmarks.workload import TAIL, TEXT, message

if TYPE_CHECKING:
    from pathlib import Path

POSITION = struct.Struct(">Q")


class SyncedFloor:
    """Reads out of the engine's memory, and one batch that syncs, all on the event loop."""

    name = "floor: some reads, 1 synced batch"

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self.store = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))
        self.how = rocksdict.WriteOptions()
        self.how.sync = synced

    async def open(self) -> None:
        """Open already."""

    async def close(self) -> None:
        self.store.close()

    async def seed(self, conversation: str, messages: int) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for number in range(messages):
            batch.put(self.item(conversation, number + 1), orjson.dumps(message(number)))
        batch.put(self.key(conversation, "head"), POSITION.pack(messages))
        batch.put(self.key(conversation, "other"), orjson.dumps(TEXT))
        self.store.write(batch)

    async def turn(self, conversation: str) -> None:
        head, count = self.read(conversation)
        self.write(conversation, head, count)

    def read(self, conversation: str) -> tuple[int, int]:
        """Load the tail and two variables."""
        head = POSITION.unpack(self.store.get(self.key(conversation, "head")))[0]
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(self.item(conversation, head + 1))
        rows = self.store.items(from_key=self.item(conversation, max(head - TAIL + 1, 1)), read_opt=options)
        _ = [orjson.loads(value) for _, value in rows]
        found: list[Any] = [self.store.get(self.key(conversation, name)) for name in ("count", "other")]
        values = [orjson.loads(value) if value is not None else 0 for value in found]
        return head, values[0]

    def write(self, conversation: str, head: int, count: int) -> None:
        """Append two messages and set a variable."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch.put(self.item(conversation, head + 1), orjson.dumps(message(count)))
        batch.put(self.item(conversation, head + 2), orjson.dumps(message(count, "assistant")))
        batch.put(self.key(conversation, "head"), POSITION.pack(head + 2))
        batch.put(self.key(conversation, "count"), orjson.dumps(count + 1))
        self.store.write(batch, self.how)

    @staticmethod
    def key(conversation: str, name: str) -> bytes:
        return f"v{conversation}\0{name}".encode()

    @staticmethod
    def item(conversation: str, position: int) -> bytes:
        return f"i{conversation}\0".encode() + POSITION.pack(position)


class SharedSyncFloor(SyncedFloor):
    """Batches on the event loop, and a thread that syncs once for all who wait."""

    name = "floor: batches that share a sync"

    def __init__(self, path: Path) -> None:
        super().__init__(path, synced=False)
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[asyncio.Future[None]] = []
        self.syncing = False

    async def close(self) -> None:
        self.thread.shutdown()
        self.store.close()

    async def turn(self, conversation: str) -> None:
        head, count = self.read(conversation)
        self.write(conversation, head, count)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.waiting.append(future)
        if not self.syncing:
            self.syncing = True
            self.begin(loop)
        await future

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        served, self.waiting = self.waiting, []
        self.syncing = bool(served)
        if served:
            self.thread.submit(self.sync, loop, served)

    def sync(self, loop: asyncio.AbstractEventLoop, served: list[asyncio.Future[None]]) -> None:
        self.store.flush_wal(sync=True)
        loop.call_soon_threadsafe(self.deliver, loop, served)

    def deliver(self, loop: asyncio.AbstractEventLoop, served: list[asyncio.Future[None]]) -> None:
        for future in served:
            future.set_result(None)
        self.begin(loop)
