"""The file backend: states as readable JSON Lines, one directory each, shared by processes.

A scope's log holds whole commits; at ``durability="full"`` a commit is acknowledged when its
line has reached the disk. What is atomic is one commit of one scope: several scopes in one
commit are refused. Any number of tasks, loops, threads and processes of one machine may use a
directory at once; a forked child may not use what its parent opened.

A read of a state that this process knows already takes no thread: it is one `lstat`, which on
a local disk costs a microsecond. Everything else that touches the disk runs on worker threads.

Cancellation: whatever was handed to a worker thread is carried through, and the caller just
doesn't hear of it; a read that had taken a turn gives it back.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from agentstate.errors import StorageClosedError, UnsupportedError
from agentstate.storage.ending import in_thread
from agentstate.storage.file import legacy
from agentstate.storage.file.disk import Disk
from agentstate.storage.file.jobs import Commit, Drop, Fail, Prolong, Push, pushed_expiry
from agentstate.storage.file.journal import find_commit, records
from agentstate.storage.file.look import entry_page, found_item, held_of, log_page, snapshot
from agentstate.storage.file.options import DIRECTORY, Durability, FileOptions
from agentstate.storage.file.queue import ScopeCache
from agentstate.storage.file.root import Root
from agentstate.storage.file.service import Service
from agentstate.storage.file.sweep import complete, reconcile, sweep
from agentstate.storage.file.workers import Workers
from agentstate.storage.protocol import (
    FAILURE_SECONDS,
    Capabilities,
    Committed,
    EntryPage,
    FeedItem,
    Holder,
    JournalRecord,
    Lease,
    LeaseRequest,
    LogItem,
    LogPage,
    OnceRecord,
    Part,
    ScopePage,
    ScopeQuery,
    Snapshot,
    Stamp,
    Swept,
    Wants,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.file.held import Held
    from agentstate.storage.file.queue import ScopeQueue
    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["FileOptions", "FileStorage"]

T = TypeVar("T")


class FileStorage:
    """Keeps states as files in a directory of this machine."""

    Options: ClassVar[type[FileOptions]] = FileOptions
    name = "file"

    def __init__(
        self,
        directory: str | Path = DIRECTORY,
        *,
        durability: Durability = "full",
        clock: Callable[[], float] = time.time,
        allow_network_fs: bool = False,
    ) -> None:
        """Name the directory; nothing is touched before the first use.

        Args:
            directory: made when it is missing, readable by its owner only.
            durability: ``full``: a commit survives a loss of power; ``normal``: the death of the process.
            clock: returns seconds since the epoch.
            allow_network_fs: don't refuse a network file system. Right only for one process.
        """
        path = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
        self.location = str(path)
        self.capabilities = Capabilities(
            durability="power" if durability == "full" else "process",
            shared=True,
            leases="machine",
            atomic_scopes=False,
            partitions=1,
            taskless=True,
        )
        self._clock = clock
        self._root = Root(path, Disk(), synced=durability == "full", clock=clock, allow_network_fs=allow_network_fs)
        self._workers = Workers(f"the file store {path}")
        self._scopes = ScopeCache(self._root, Service(self._root, self._workers))
        self._process = os.getpid()
        self._opening = threading.Lock()
        self._opened = self._closed = False

    @classmethod
    def from_options(cls, options: FileOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(
            options.directory,
            durability=options.durability,
            clock=clock or time.time,
            allow_network_fs=options.allow_network_fs,
        )

    # -- opening and closing ---------------------------------------------------------------

    async def open(self) -> None:
        """See `Storage.open`. Cancelled, it opens nevertheless."""
        self._check_open()
        if not self._opened:
            await self._workers.run(self._open)

    def _open(self) -> None:
        with self._opening:
            if not self._opened:
                self._root.open(reconcile)
                self._opened = True

    async def close(self) -> None:
        """See `Storage.close`. Cancelled, what was handed over still ends."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        await in_thread(self._workers.close)
        self._root.close()

    async def ping(self) -> None:
        """See `Storage.ping`."""
        await self.open()
        await self._workers.run(self._root.check)

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise StorageClosedError(
                f"The file store {self.location} was opened by the parent of this process.",
                remedy="Make a storage of its own in a forked child.",
            )
        if self._closed:
            raise StorageClosedError(f"The file store {self.location} was closed.", remedy="Make a new one.")

    def _usable(self) -> bool:
        return self._opened and not self._closed and os.getpid() == self._process

    async def _queue(self, scope: StateScope) -> ScopeQueue:
        if not self._usable():
            await self.open()
        return self._scopes.get(scope)

    # -- turns -----------------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`. Cancelled after it took a turn, it gives it back."""
        queue = self._scopes.get(scope) if self._usable() else await self._queue(scope)
        if lease is None:
            return await self._read(queue, wants, None, once, touch)
        locks = self._root.locks
        taken = locks.take(queue.address, lease.nonce, lease.holder)
        if taken == "waits":
            now = self._clock()
            return Snapshot(scope=scope, now=now, holder=locks.holder(queue.address) or Holder("", now))
        try:
            found = await self._read(queue, wants, lease, once, touch)
        except BaseException:
            if taken == "took":
                locks.leave(queue.address, lease.nonce)
            raise
        found.lease = Lease(scope, lease.nonce, 0, found.now + lease.seconds)
        return found

    async def _read(
        self, queue: ScopeQueue, wants: Wants, lease: LeaseRequest | None, once: str | None, touch: float | None
    ) -> Snapshot:
        def look(held: Held) -> Snapshot | None:
            now = self._clock()
            pushed = held.image.expires_at is not None and pushed_expiry(held, now, lease, touch) is not None
            return None if pushed else snapshot(held, now, wants, once)

        glanced = queue.glance(look)
        found = glanced[0] if glanced is not None else await queue.view(lambda files: look(held_of(files)))
        if found is None:
            found = await queue.write(Push(touch, lease, lambda held, now: snapshot(held, now, wants, once)))
        return found

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`. Cancelled, the nonce has left the line."""
        await self.open()
        await self._root.locks.wait(scope.text, nonce, seconds)

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`. One scope only. Cancelled, it is carried through."""
        if len(parts) != 1:
            raise UnsupportedError(
                f"The file backend commits one state at a time, not {len(parts)}.",
                remedy="Use the sqlite backend for commits of several states.",
            )
        (part,) = parts
        queue = self._scopes.get(part.scope) if self._usable() else await self._queue(part.scope)
        address = queue.address if lease is None or lease.scope == part.scope else lease.scope.text
        locks = self._root.locks
        write = Commit(
            part=part, address=address, commit_id=commit_id, locks=locks, lease=lease, release=release, once=once
        )
        return (await queue.write(write),)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`. Cancelled, the failure is kept and the turn given back nevertheless."""
        try:
            if failure is not None:
                queue = await self._queue(scope)
                await queue.write(Fail(failure))
        finally:
            if self._opened:
                self._root.locks.leave(scope.text, nonce)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`. A kernel lock needs no renewal; a state that would expire does."""
        return [self._renew(lease, seconds) for lease in leases]

    def _renew(self, lease: Lease, seconds: float) -> bool:
        if not self._opened or not self._root.locks.holds(lease.scope.text, lease.nonce):
            return False
        queue, write = self._scopes.get(lease.scope), Prolong(seconds)
        if queue.glance(lambda held: write.needed(held, self._clock())) != (False,):
            queue.write_here(write)
        return True

    # -- looking up ------------------------------------------------------------------------

    async def _look(self, scope: StateScope, look: Callable[[Held, float], T]) -> T:
        """Return what ``look`` finds in the image, without a thread where it is fresh."""
        queue = await self._queue(scope)
        glanced = queue.glance(lambda held: look(held, self._clock()))
        return (
            glanced[0] if glanced is not None else await queue.view(lambda files: look(held_of(files), self._clock()))
        )

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""

        def look(files: ScopeFiles) -> Stamp | None:
            known = held_of(files).image.commits
            found = next((stamp for stamp in known if stamp.commit_id == commit_id), None)
            return found or find_commit(files, commit_id)

        return await (await self._queue(scope)).view(look)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        return await self._look(scope, lambda held, now: log_page(held, now, log, start, end, limit))

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        return await self._look(scope, lambda held, now: found_item(held, now, log, id))

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        return await self._look(scope, lambda held, now: entry_page(held, now, section, prefix, cursor, limit))

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        return await self._look(
            scope, lambda held, now: tuple(data for at, data in held.failures if at > now - FAILURE_SECONDS)
        )

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""

        def look(files: ScopeFiles) -> tuple[JournalRecord, ...]:
            return records(files, after, limit) if held_of(files).image.alive(self._clock()) else ()

        return await (await self._queue(scope)).view(look)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""

        def look() -> ScopePage:
            complete(self._root)
            return self._root.feed.page(query, self._clock())

        await self.open()
        return await self._workers.run(look)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`."""
        del partition

        def look() -> tuple[FeedItem, ...]:
            complete(self._root)
            with self._root.translated("read the feed", self._root.feed.path):
                return self._root.feed.items(after, limit)

        await self.open()
        return await self._workers.run(look)

    # -- removing --------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        queue = await self._queue(scope)
        return await queue.write(Drop(scope, stamp, self._root.locks))

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        await self.open()
        return await self._workers.run(lambda: sweep(self._root, limit))

    # -- what others wrote -----------------------------------------------------------------

    @property
    def legacy_url(self) -> str:
        """The URL of this directory, where AgentUp may have written, too."""
        return Path(self.location).as_uri()

    async def legacy_record(self, context_id: str) -> bytes | None:
        """Return a record that AgentUp itself wrote, as it is."""
        path = legacy.path_of(self.location, context_id)
        if path is None or not legacy.lies_there(path):
            return None
        return await self._workers.run(lambda: legacy.read(path))
