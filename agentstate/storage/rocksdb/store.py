"""A RocksDB directory that opens on first use, and the ways to work on it.

`Store._look` and `Store._write` run where the caller is, under the lock, and await only when it is
given back; `Store._page` goes to a thread when much is wanted. Cancelled while it waits for a
sync, a look has looked; cancelled while the engine is behind, a write has not happened.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from agentstate.errors import StorageClosedError
from agentstate.storage.lease_table import LeaseTable
from agentstate.storage.rocksdb.engine import Engine
from agentstate.storage.rocksdb.errors import StalledError
from agentstate.storage.rocksdb.options import RocksdbOptions
from agentstate.storage.rocksdb.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.rows import State

__all__ = ["INLINE_ROWS", "STALL_SECONDS", "Store"]

INLINE_ROWS: Final = 256
STALL_SECONDS: Final = 0.005

Result = TypeVar("Result")


class Store:
    """A RocksDB directory that opens on first use, and the ways to work on it."""

    def __init__(self, options: RocksdbOptions | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Describe the storage; the directory is opened, or made, on first use.

        Args:
            options: where it lies, and how; a relative directory counts from the working directory as it is now.
            clock: seconds since the epoch.
        """
        self._options = options or RocksdbOptions()
        self._path = self._options.path.absolute()
        self._durable = self._options.durability == "full"
        self._clock = clock
        self._lock = threading.Lock()
        self._leases = LeaseTable(clock, self._lock)
        self._workers = Workers(f"the store {self._path}")
        self._starting = threading.Lock()
        self._opened: Future[Engine] | None = None
        self._engine: Engine | None = None
        self._closed = False

    @property
    def location(self) -> str:
        """The path of the directory."""
        return str(self._path)

    # -- opening and closing -------------------------------------------------------------

    async def open(self) -> None:
        """Open the directory, making it if it is missing. Idempotent; every call does it itself.

        Raises:
            StoreInUseError: another process has it open.
            NewerFormatError: a newer release wrote it.
            ConfigError: it is another application's.
            DamagedStateError: the engine can't make sense of its files.
            StorageAccessError: it can't be made or opened.
        """
        await self._open()

    async def _open(self) -> Engine:
        """Return the open engine; what every call begins with. Only the first one waits."""
        engine = self._engine
        if self._closed or (engine is not None and engine.forked):
            raise StorageClosedError(
                f"The storage of {self._path} was closed, or belongs to the parent of this forked process.",
                remedy="Make a new one; in a forked child, in another directory.",
            )
        if engine is not None:
            return engine
        opened = await asyncio.shield(asyncio.wrap_future(self._begin()))
        self._engine = opened
        return opened

    def _begin(self) -> Future[Engine]:
        """Have the directory opened, once; again when that failed."""
        with self._starting:
            found = self._opened
            if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
                found = self._opened = self._workers.begin(
                    partial(Engine, self._path, self._options, self._lock, self._workers)
                )
            return found

    async def close(self) -> None:
        """Finish what was handed over, and close the directory. Cancelled, it is closed nevertheless."""
        self._closed = True
        if self._engine is None or not self._engine.forked:
            try:
                await asyncio.to_thread(self._close)
            except RuntimeError:
                # The interpreter ends and lends no thread any more: nobody is left to be kept waiting.
                self._close()

    def _close(self) -> None:
        self._workers.close()
        with self._starting, self._lock:
            found, self._opened, self._engine = self._opened, None, None
            if found is not None and not found.cancelled() and found.exception() is None:
                found.result().close()

    async def ping(self) -> None:
        """Return when the directory can be read."""
        await self._look(Engine.ping)

    async def property(self, name: str) -> str | None:
        """Return what the engine says of itself, as in ``rocksdb.block-cache-usage``; ``None`` if it knows no such."""
        return await self._look(lambda engine: engine.property(name))

    async def _look(self, work: Callable[[Engine], Result], scope: StateScope | None = None) -> Result:
        """Do what is quick, where the caller is; what it says of ``scope`` is on the disk then."""
        engine = await self._open()
        with engine.lock:
            result = work(engine)
            unsynced = scope in engine.unsynced
        if unsynced:
            await engine.synced()
        return result

    async def _write(self, work: Callable[[Engine], Result]) -> Result:
        """Do what writes, where the caller is; while the engine would hold it up, wait and do it anew."""
        engine = await self._open()
        while True:
            try:
                with engine.lock:
                    return work(engine)
            except StalledError:
                await asyncio.sleep(STALL_SECONDS)

    async def _page(
        self,
        scope: StateScope,
        count: Callable[[State], int],
        begin: Callable[[Engine, State], Callable[[], Result]],
    ) -> Result | None:
        """Return what is found of a live state: a few rows where the caller is, many on a thread.

        ``begin`` begins the walk under the lock, and returns what ends it.
        """
        engine = await self._open()
        result: Result | None = None
        end: Callable[[], Result] | None = None
        with engine.lock:
            state = engine.head(scope)
            if state is not None and state.alive(self._clock()):
                end = begin(engine, state)
                if count(state) <= INLINE_ROWS:
                    result, end = end(), None
            unsynced = scope in engine.unsynced
        if end is not None:
            result = await self._workers.run(end)
        if unsynced:
            await engine.synced()
        return result

    async def _list(self, work: Callable[[Engine], Result]) -> Result:
        """Return what ``work`` finds on a thread, without the lock, when all that it may have seen is synced."""
        engine = await self._open()
        result = await self._workers.run(partial(work, engine))
        if engine.unsynced:
            await engine.synced()
        return result
