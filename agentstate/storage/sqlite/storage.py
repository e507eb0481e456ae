"""The SQLite backend, the default: one file, shared by any number of processes of one machine.

A turn is one hop to the writing thread, and before it one to the reading thread, unless the state
is known and nobody has changed it since (`KnownStates`). What is atomic: a read sees the end of one
commit; a commit is one transaction, or a part of a group's. Who may run at once: any tasks, threads,
event loops and processes; turns are kernel locks (`MachineLocks`) that are given back on the writing
thread when the commit is stored. On cancellation, a read gives the turn back that it had just taken; a
commit that was handed over is stored or refused whole, and gives the turn back by itself. A forked
child must make a storage of its own.
"""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar, Unpack

from agentstate.errors import StateError, StorageClosedError, UnsupportedError
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
from agentstate.storage.records import new
from agentstate.storage.sqlite import listing, reading
from agentstate.storage.sqlite.engine import Engine
from agentstate.storage.sqlite.jobs import CommitJob, Task
from agentstate.storage.sqlite.known import CacheInfo
from agentstate.storage.sqlite.options import DEFAULT_PATH, MoreOptions, SqliteOptions
from agentstate.storage.sqlite.scopes import expiring_before, prolong
from agentstate.storage.sqlite.sweep import BriefTurns, Sweep, add_failure, drop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.sqlite.known import KnownStates
    from agentstate.storage.sqlite.pen import Pen
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["SqliteOptions", "SqliteStorage"]

NO_CACHE = CacheInfo(0, 0, 0, 0, 0)
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
        clock: Callable[[], float] = time.time,
        **options: Unpack[MoreOptions],
    ) -> None:
        """Describe the storage; the file is opened, or made, on first use.

        Args:
            path: the file, counted from the working directory as it is now.
            clock: seconds since the epoch.
            options: those of `SqliteOptions` but ``url``.
        """
        self._path = Path(path).absolute()
        self._options = SqliteOptions(**options)
        self._clock = clock
        self._starting = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False

    @classmethod
    def from_options(cls, options: SqliteOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        made = cls(options.path, clock=clock or time.time)
        made._options = options
        return made

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def capabilities(self) -> Capabilities:
        """Shared by the processes of one machine; durable as configured."""
        return Capabilities(
            durability="power" if self._options.durability == "full" else "process",
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
                self._engine = Engine(self._options, self._path, self._clock)
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

    def cache_info(self) -> CacheInfo:
        """Return what the read cache did and holds."""
        return NO_CACHE if self._engine is None else self._engine.known.info()

    async def trace(self, tell: Callable[[str, str], None] | None) -> None:
        """Call ``tell("read" or "write", sql)`` for every statement from now on; ``None`` ends it."""
        engine = await self._open()
        await engine.read(lambda _: _set_trace("read", tell, engine.reader.connection))
        await engine.write(Task(lambda _: _set_trace("write", tell, engine.writer.connection)))

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
        """See `Storage.read`. One hop; none when the state is known, or another holds the turn."""
        engine = self._engine
        if engine is None or not engine.ready:
            engine = await self._open()
        now, taken = self._clock(), ""
        if lease is not None:
            taken = engine.locks.take(scope.text, lease.nonce, lease.holder)
            if taken == "waits":
                holder = engine.locks.holder(scope.text) or Holder(UNKNOWN_HOLDER, now)
                return Snapshot(scope=scope, now=now, holder=holder)
        known = engine.known.look(scope, wants) if once is None else None
        try:
            snapshot = (
                await engine.look(scope, wants, now, once) if known is None else reading.view(known, wants, now, {})
            )
            if snapshot.expires_at is not None and (lease is not None or touch is not None):
                await self._push_expiry(engine, snapshot, lease, touch)
        except BaseException:
            if lease is not None and taken == "took":
                engine.locks.leave(scope.text, lease.nonce)
            raise
        if lease is not None:
            snapshot.lease = new(Lease, (scope, lease.nonce, 0, now + lease.seconds))
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
            await engine.write(Task(partial(_prolong, engine.known, [snapshot.scope], until)))
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
        job = CommitJob(
            *(parts, commit_id, lease, once),
            release=release,
            locks=engine.locks,
            known=engine.known,
            clock=self._clock,
        )
        return await engine.write(job)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`. Without a failure to keep it never waits."""
        engine = self._engine
        if failure is None:
            if engine is not None and engine.ready:
                engine.locks.leave(scope.text, nonce)
            return
        engine = await self._open()
        await engine.write(
            Task(
                partial(add_failure, scope=scope, record=failure, now=self._clock()),
                partial(engine.locks.leave, scope.text, nonce),
            )
        )

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
            engine.write_blocking(Task(partial(_prolong, engine.known, found, until)))
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
        now, turns, known = self._clock(), BriefTurns(engine.locks, "drop"), engine.known

        def write(pen: Pen) -> bool:
            known.put(scope, None)
            return drop(pen, scope, stamp, now, turns.take)

        return await engine.write(Task(write, turns.settle))

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        engine = await self._open()
        now, turns, known = self._clock(), BriefTurns(engine.locks, "sweep"), engine.known

        def write(pen: Pen) -> Swept:
            step = Sweep(pen, now, limit, turns.take)
            swept = step.run()
            for scope in (*swept.scopes, *step.changed):
                known.put(scope, None)
            return swept

        return await engine.write(Task(write, turns.settle))


def _look(connection: Connection) -> None:
    connection.execute("SELECT value FROM meta LIMIT 1").fetchall()


def _prolong(known: KnownStates, scopes: Sequence[StateScope], until: float, pen: Pen) -> None:
    for scope in scopes:
        known.put(scope, None)
        prolong(pen, scope, until)


def _set_trace(kind: str, tell: Callable[[str, str], None] | None, connection: Connection | None) -> None:
    assert connection is not None

    def trace(cursor: object, sql: str, bindings: object) -> bool:
        del cursor, bindings
        if tell is not None:
            tell(kind, sql)
        return True

    connection.set_exec_trace(trace if tell is not None else None)
