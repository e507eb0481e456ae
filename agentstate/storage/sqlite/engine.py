"""An open SQLite state file: its two threads and its locks, and what a fork means for them."""

from __future__ import annotations

import asyncio
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agentstate.storage.oslock import MachineLocks
from agentstate.storage.sqlite.jobs import Task
from agentstate.storage.sqlite.worker import Pace, Reader, Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Snapshot, Wants
    from agentstate.storage.sqlite.jobs import Job
    from agentstate.storage.sqlite.options import SqliteOptions
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["Engine"]

LOCKS_SUFFIX = "-locks"

Result = TypeVar("Result")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
# A forked child must not close its parent's connections, not even by forgetting them.
_inherited: list[object] = []


class Engine:
    """Takes jobs from any thread and event loop.

    Attributes:
        ready: the file is open, and not closed again.
        known: the read cache.
        locks: the turns of this file's states, once it was ready.
        forked: this process inherited it and can't use it.
    """

    def __init__(self, options: SqliteOptions, path: Path, clock: Callable[[], float]) -> None:
        """Start the threads; they open the file, or make it."""

        def make_locks() -> MachineLocks:
            # One file under two names has one directory of locks.
            return MachineLocks(
                os.path.realpath(path) + LOCKS_SUFFIX, allow_network_fs=options.allow_network_fs, clock=clock
            )

        self.ready = False
        self.forked = False
        self.locks: MachineLocks
        pace = Pace()
        self.writer = Writer(
            *(path, pace),
            durable=options.durability == "full",
            cache=options.cache_size,
            page_cache=options.page_cache_size,
            make_locks=make_locks,
            now=clock(),
        )
        self.reader = Reader(path, pace, self.writer, page_cache=options.page_cache_size)
        self.known = self.writer.known
        _engines.add(self)
        self.writer.start()
        self.reader.start()

    async def begin(self) -> None:
        """Return when the file is open."""
        await self.read(_nothing)
        self.locks = self.writer.opened.result()
        self.ready = True

    def read(self, work: Callable[[Connection], Result]) -> Awaitable[Result]:
        """Run ``work`` on the reading thread, in a read transaction."""
        job = Task(work)
        result = job.awaited()
        self.reader.submit(job)
        return result

    def look(self, scope: StateScope, wants: Wants, now: float, once: str | None) -> Awaitable[Snapshot]:
        """Read a state on the reading thread; from then on it is known."""
        return self.read(partial(self.reader.look, scope=scope, wants=wants, now=now, once=once))

    def write(self, job: Job[Result]) -> Awaitable[Result]:
        """Run a job on the writing thread, in a write transaction."""
        result = job.awaited()
        self.writer.submit(job)
        return result

    def read_blocking(self, work: Callable[[Connection], Result]) -> Result:
        """Do as `read`, for a thread that may wait."""
        job = Task(work)
        result = job.blocking()
        self.reader.submit(job)
        return result.result()

    def write_blocking(self, job: Job[Result]) -> Result:
        """Do as `write`, for a thread that may wait."""
        result = job.blocking()
        self.writer.submit(job)
        return result.result()

    def stop(self) -> None:
        """Let the threads end after what was handed over before; nobody waits for it."""
        self.ready = False
        if not self.forked:
            self.reader.stop()
            self.writer.stop()

    async def close(self) -> None:
        """Return when the threads have ended and the file is closed."""
        self.stop()
        for worker in (self.reader, self.writer):
            await asyncio.shield(asyncio.wrap_future(worker.ended))


def _nothing(connection: Connection) -> None:
    pass


def _forked() -> None:
    for engine in list(_engines):
        engine.ready, engine.forked = False, True
        _inherited.extend((engine, engine.writer.connection, engine.reader.connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
