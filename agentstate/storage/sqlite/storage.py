"""The SQLite backend, the default: one file, shared by any number of processes of one machine.

A turn is one hop to the reading thread and one to the writing thread. What is atomic: a read
sees the end of one commit; a commit is one transaction, or a part of a group's. Who may run at
once: any tasks, threads, event loops and processes; turns are kernel locks (`MachineLocks`)
that are given back on the writing thread when the commit is stored. On cancellation, a read
gives the turn back that it had just taken; a commit that was handed over is stored or refused
whole, and gives the turn back by itself. A forked child must make a storage of its own.
"""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

from agentstate.errors import LeaseLostError, StateError, StorageClosedError, UnsupportedError
from agentstate.storage.protocol import (
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
from agentstate.storage.sqlite import listing, reading
from agentstate.storage.sqlite.commit import Change
from agentstate.storage.sqlite.engine import Engine
from agentstate.storage.sqlite.options import DEFAULT_PATH, SqliteOptions
from agentstate.storage.sqlite.scopes import expiring_before, prolong
from agentstate.storage.sqlite.sweep import BriefTurns, Sweep, add_failure, drop
from agentstate.storage.sqlite.worker import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["SqliteOptions", "SqliteStorage"]

UNKNOWN_HOLDER = "another process"

Result = TypeVar("Result")


class SqliteStorage:
    """Keeps states in one SQLite file, safely between processes of one machine."""

    Options: ClassVar[type[SqliteOptions]] = SqliteOptions
    name = "sqlite"

    def __init__(
        self,
        path: Path | str = DEFAULT_PATH,
        *,
        durability: Literal["full", "normal"] = "full",
        clock: Callable[[], float] = time.time,
        allow_network_fs: bool = False,
    ) -> None:
        """Describe the storage; the file is opened, or made, on first use.

        Args:
            path: the file, counted from the working directory as it is now.
            durability: see `SqliteOptions`.
            clock: seconds since the epoch.
            allow_network_fs: see `SqliteOptions`.
        """
        self._path = Path(path).absolute()
        self._durable = durability == "full"
        self._clock = clock
        self._allow_network_fs = allow_network_fs
        self._starting = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False

    @classmethod
    def from_options(cls, options: SqliteOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(
            options.path,
            durability=options.durability,
            clock=clock or time.time,
            allow_network_fs=options.allow_network_fs,
        )

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def capabilities(self) -> Capabilities:
        """Shared by the processes of one machine; durable as configured."""
        return Capabilities(
            durability="power" if self._durable else "process",
            shared=True,
            leases="machine",
            atomic_scopes=True,
            partitions=1,
            taskless=True,
        )

    # -- opening and closing -------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, making it if it is missing. Idempotent; every call does it itself.

        Raises:
            NewerFormatError: a newer release wrote the file.
            ConfigError: the file is another application's.
            DamagedStateError: it is no database, or lacks our tables.
            StorageAccessError: it can't be made or opened, or lies on a network.
        """
        await self._open()

    async def _open(self) -> Engine:
        """Return the open engine; what every call begins with. Only the first one waits for the threads."""
        engine = self._engine
        if engine is not None and engine.ready:
            return engine
        if self._closed or (engine is not None and engine.forked):
            raise StorageClosedError(
                f"The storage of {self._path} was closed, or belongs to the parent of this forked process.",
                remedy="Make a new one in this process.",
            )
        with self._starting:
            if self._engine is None:
                self._engine = Engine(
                    self._path, durable=self._durable, clock=self._clock, allow_network_fs=self._allow_network_fs
                )
                weakref.finalize(self, self._engine.stop)
            engine = self._engine
        try:
            await engine.begin()
        except StateError:
            engine.stop()
            with self._starting:
                self._engine = None if self._engine is engine else self._engine
            raise
        return engine

    async def close(self) -> None:
        """Finish what was handed over, give back all turns, and close the file."""
        self._closed = True
        engine = self._engine
        if engine is not None and not engine.forked:
            await engine.close()

    async def ping(self) -> None:
        """Return when the file can be read."""
        await self._read(_look)

    async def trace(self, tell: Callable[[str, str], None] | None) -> None:
        """Call ``tell("read" or "write", sql)`` for every statement from now on; ``None`` ends it."""
        engine = await self._open()
        await engine.read(partial(_set_trace, "read", tell))
        job: Job[None, None] = Job(partial(_set_trace, "write", tell), tracks=True)
        await engine.write(job)

    async def _read(self, work: Callable[[Connection], Result]) -> Result:
        engine = await self._open()
        return await engine.read(work)

    # -- turns ---------------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`. One hop, and none when another holds the turn."""
        engine = self._engine
        if engine is None or not engine.ready:
            engine = await self._open()
        now, taken = self._clock(), ""
        if lease is not None:
            taken = engine.locks.take(scope.text, lease.nonce, lease.holder)
            if taken == "waits":
                holder = engine.locks.holder(scope.text) or Holder(UNKNOWN_HOLDER, now)
                return Snapshot(scope=scope, now=now, holder=holder)
        try:
            snapshot = await engine.read(partial(reading.snapshot, scope=scope, wants=wants, now=now, once=once))
            if snapshot.expires_at is not None and (lease is not None or touch is not None):
                await self._push_expiry(engine, snapshot, lease, touch)
        except BaseException:
            if lease is not None and taken == "took":
                engine.locks.leave(scope.text, lease.nonce)
            raise
        if lease is not None:
            snapshot.lease = Lease(scope, lease.nonce, 0, now + lease.seconds)
        return snapshot

    async def _push_expiry(
        self, engine: Engine, snapshot: Snapshot, lease: LeaseRequest | None, touch: float | None
    ) -> None:
        """Renew a sliding lifetime of which less than half is left; let no state expire under a turn."""
        before, now = snapshot.expires_at, snapshot.now
        assert before is not None
        until = now + touch if touch is not None and before - now < touch / 2 else before
        if lease is not None:
            until = max(until, now + lease.seconds)
        if until != before:
            await engine.write(Job(_nothing, partial(_prolong, [snapshot.scope], until)))
            snapshot.expires_at = until

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        engine = await self._open()
        await engine.locks.wait(scope.text, nonce, seconds)

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`. One hop; the turn is given back as soon as the commit is stored."""
        if len(parts) > 1 and len({part.scope for part in parts}) != len(parts):
            raise UnsupportedError("A commit holds one part per scope.")
        engine = self._engine
        if engine is None or not engine.ready:
            engine = await self._open()
        locks, known = engine.locks, engine.writer.known

        def check(connection: Connection) -> list[Change]:
            if lease is not None and not locks.holds(lease.scope.text, lease.nonce):
                raise LeaseLostError(
                    f"The turn of {lease.scope} was given back already; nothing was stored.",
                    scope=lease.scope,
                    remedy="Run the handler again.",
                )
            now = self._clock()
            changes = [Change(connection, known, part, now=now, lease=lease) for part in parts]
            for number, change in enumerate(changes):
                change.check(once if number == 0 else None)
            return changes

        def write(connection: Connection, changes: list[Change]) -> tuple[Committed, ...]:
            del connection
            return tuple([change.write(commit_id, None if n else once) for n, change in enumerate(changes)])

        def settle(kept: bool) -> None:
            if kept and release and lease is not None:
                locks.leave(lease.scope.text, lease.nonce)

        return await engine.write(Job(check, write, settle, tracks=True))

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`. Without a failure to keep it never waits."""
        engine = self._engine
        if failure is None:
            if engine is not None and engine.ready:
                engine.locks.leave(scope.text, nonce)
            return
        engine = await self._open()
        locks, now = engine.locks, self._clock()

        def write(connection: Connection, plan: None) -> None:
            del plan
            add_failure(connection, scope, failure, now)

        def settle(kept: bool) -> None:
            del kept
            locks.leave(scope.text, nonce)

        await engine.write(Job(_nothing, write, settle))

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`. A kernel lock needs no renewal; a state that would expire does."""
        engine = self._engine
        if engine is None or not engine.ready:
            return [False] * len(leases)
        held = [engine.locks.holds(lease.scope.text, lease.nonce) for lease in leases]
        until = self._clock() + seconds
        scopes = [lease.scope for lease, is_held in zip(leases, held, strict=True) if is_held]
        found = engine.read_blocking(partial(expiring_before, scopes=scopes, until=until)) if scopes else []
        if found:
            engine.write_blocking(Job(_nothing, partial(_prolong, found, until)))
        return held

    # -- looking up ----------------------------------------------------------------------

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`. The journal knows more than the last 32."""
        return await self._read(partial(reading.outcome, scope=scope, commit_id=commit_id))

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        now = self._clock()
        return await self._read(
            partial(reading.read_log, scope=scope, name=log, now=now, start=start, end=end, limit=limit)
        )

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        return await self._read(partial(reading.find_item, scope=scope, log=log, name=id, now=self._clock()))

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        now = self._clock()
        return await self._read(
            partial(reading.scan, scope=scope, section=section, now=now, prefix=prefix, cursor=cursor, limit=limit)
        )

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        return await self._read(partial(listing.page, query=query, now=self._clock()))

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        return await self._read(partial(reading.journal, scope=scope, now=self._clock(), after=after, limit=limit))

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        return await self._read(partial(reading.failures, scope=scope, now=self._clock()))

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`. There is one partition."""
        del partition
        return await self._read(partial(reading.feed, after=after, limit=limit))

    # -- removing ------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        engine = await self._open()
        now, turns = self._clock(), BriefTurns(engine.locks, "drop")

        def write(connection: Connection, plan: None) -> bool:
            del plan
            return drop(connection, scope, stamp, now, turns.take)

        return await engine.write(Job(_nothing, write, turns.settle))

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        engine = await self._open()
        now, turns = self._clock(), BriefTurns(engine.locks, "sweep")

        def write(connection: Connection, plan: None) -> Swept:
            del plan
            return Sweep(connection, now, limit, turns.take).run()

        return await engine.write(Job(_nothing, write, turns.settle))


def _nothing(connection: Connection) -> None:
    """Check nothing: the write decides by itself."""


def _look(connection: Connection) -> None:
    connection.execute("SELECT value FROM meta LIMIT 1").fetchall()


def _prolong(scopes: Sequence[StateScope], until: float, connection: Connection, plan: None) -> None:
    del plan
    for scope in scopes:
        prolong(connection, scope, until)


def _set_trace(kind: str, tell: Callable[[str, str], None] | None, connection: Connection) -> None:
    def trace(cursor: object, sql: str, bindings: object) -> bool:
        del cursor, bindings
        if tell is not None:
            tell(kind, sql)
        return True

    connection.set_exec_trace(trace if tell is not None else None)
