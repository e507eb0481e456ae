"""The two threads of a SQLite state file: one reads, one writes, each with its own connection.

A hop to a thread costs more than a small transaction, so a job is a whole read or a whole
commit, and whatever waits when a thread comes round is done together: reads in one read
transaction, commits in one write transaction with one fsync. Jobs come back with one wake-up per
event loop; where several came back together, the next ones of that pass of the loop go over
together too, so that groups stay whole. A job that was handed over is finished whether or not
anybody still waits for it.

The two threads take turns (`Pace.baton`) at running statements: each statement gives the interpreter
lock away for a moment, and two threads that snatch it from each other get half as much done.
Nobody holds the baton during an fsync, and nobody waits for it longer than a long commit is
worth.

Of a group of commits, each is checked before it writes; a refused one has written nothing.
When the engine fails, the group is undone and its members run again, each alone.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import StateError, StorageClosedError
from agentstate.storage.sqlite import reading
from agentstate.storage.sqlite.errors import from_engine
from agentstate.storage.sqlite.jobs import deliver
from agentstate.storage.sqlite.known import KnownStates
from agentstate.storage.sqlite.pen import Pen
from agentstate.storage.sqlite.schema import connect, driver, prepare
from agentstate.storage.sqlite.walindex import WalIndex

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from agentstate.scope import StateScope
    from agentstate.storage.oslock import MachineLocks
    from agentstate.storage.protocol import Snapshot, Wants
    from agentstate.storage.sqlite.jobs import Job
    from agentstate.storage.sqlite.rows import State
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["BACKSTOP_SECONDS", "Pace", "Reader", "Writer"]

MOST_TOGETHER: Final = 256
BATON_SECONDS: Final = 0.005
BACKSTOP_SECONDS: Final = 10.0
RESTART_EVERY: Final = 1000


class Pace:
    """What the two threads of a file know of each other.

    Attributes:
        baton: whoever runs statements holds it.
        together: how many jobs came back together last.
    """

    def __init__(self) -> None:
        """Begin at rest."""
        self.baton = threading.Lock()
        self.together = 0


class _Worker:
    """A thread with a connection of its own that serves what was handed to it, in batches."""

    def __init__(self, path: Path, name: str, pace: Pace) -> None:
        self.connection: Connection | None = None
        self.ended: BlockingFuture[None] = BlockingFuture()
        self._path = path
        self._pace = pace
        self._index = WalIndex.use(path)
        self._queue: SimpleQueue[list[Job[Any]] | None] = SimpleQueue()
        self._passes: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
        self._ended = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"agentstate-sqlite-{name}", daemon=True)

    def start(self) -> None:
        """Begin; the file is opened on the thread."""
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Hand a job over: at once, or with what else this pass of a busy event loop brings."""
        loop = job.loop
        if loop is None or self._pace.together <= 1:
            self._put([job])
        elif loop in self._passes:
            self._passes[loop].append(job)
        else:
            for closed in [one for one in self._passes if one.is_closed()]:
                # It ended in the middle of a pass: what was asked for is done, turns are given back.
                self._end_pass(closed)
            self._passes[loop] = [job]
            loop.call_soon(self._end_pass, loop)

    def _end_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        self._put(self._passes.pop(loop, []))

    def _put(self, jobs: list[Job[Any]]) -> None:
        self._queue.put(jobs)
        if self._ended:
            self._refuse_rest()

    def stop(self) -> None:
        """Let the thread end when it has done what was handed over before."""
        self._queue.put(None)

    def _run(self) -> None:
        try:
            self.connection = self._open()
        except Exception as error:  # noqa: BLE001 - whoever waits for this thread is told
            self._failure = from_engine(error, self._path)
        while self._serve_next():
            pass
        self._shut()
        self.connection = None
        self._index.done()
        self._ended = True
        self._refuse_rest()
        self.ended.set_result(None)

    def _serve_next(self) -> bool:
        """Serve what waits, at least one job. Return whether to go on."""
        batch: list[Job[Any]] = []
        jobs = self._queue.get()
        while jobs is not None:
            batch += jobs
            if len(batch) >= MOST_TOGETHER or self._queue.empty():
                break
            jobs = self._queue.get()
        failure = self._failure
        if self.connection is not None:
            try:
                self._serve(self.connection, batch)
            except Exception as error:  # noqa: BLE001 - handed to the callers
                failure = from_engine(error, self._path, self.connection)
        for one in batch:
            one.error = failure or one.error
            one.settle(kept=one.error is None)
        self._pace.together = len(batch)
        deliver(batch)
        self._after(len(batch))
        return jobs is not None

    def _refuse_rest(self) -> None:
        while not self._queue.empty():
            with suppress(Empty):
                jobs = self._queue.get_nowait() or []
                for job in jobs:
                    job.error = StorageClosedError(f"The state file {self._path} was closed.", remedy="Open it again.")
                deliver(jobs)

    def _open(self) -> Connection:
        raise NotImplementedError

    def _serve(self, connection: Connection, batch: list[Job[Any]]) -> None:
        raise NotImplementedError

    def _after(self, served: int) -> None:
        """Do what nobody waits for."""

    def _shut(self) -> None:
        if self.connection is not None:
            self.connection.close()


class Reader(_Worker):
    """Serves reads. In WAL mode they never wait for a writer's fsync."""

    def __init__(self, path: Path, pace: Pace, writer: Writer, *, page_cache: int) -> None:
        """``writer`` opens the file first: it makes the layout."""
        super().__init__(path, "reader", pace)
        self._writer = writer
        self._page_cache = page_cache
        self._head: bytes | None = None
        self._found: list[tuple[State, bool]] = []

    def look(self, connection: Connection, scope: StateScope, wants: Wants, now: float, once: str | None) -> Snapshot:
        """Read a state, and let it be known from now on; a job for this thread."""
        was = self._writer.known.was(scope)
        snapshot, known = reading.snapshot(connection, scope, wants, now, once, was)
        if known is not None:
            self._found.append((known, was is not None and known.heads is was.heads))
        return snapshot

    def _open(self) -> Connection:
        self._writer.opened.result()
        return connect(self._path, durable=False, page_cache=self._page_cache, read_only=True)

    def _serve(self, connection: Connection, batch: list[Job[Any]]) -> None:
        taken = self._pace.baton.acquire(timeout=BATON_SECONDS)
        try:
            for job in batch:
                if not job.abandoned():
                    self._read(connection, job)
            if connection.in_transaction:
                connection.execute("COMMIT")
        finally:
            if taken:
                self._pace.baton.release()

    def _read(self, connection: Connection, job: Job[Any]) -> None:
        begins = not connection.in_transaction
        try:
            if begins:
                self._head = self._index.head()
                connection.execute("BEGIN")
            job.run(connection)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            job.error = from_engine(error, self._path, connection)
            _undo(connection)
        if begins and self._index.head() != self._head:
            # Somebody committed while this transaction began: it may see the file before or after.
            self._head = None
        if self._found:
            self._writer.known.learn(self._head, self._found)
            self._found.clear()


class Writer(_Worker):
    """Serves commits, grouped. All processes' writers and checkpoints queue on one OS lock."""

    def __init__(
        self,
        path: Path,
        pace: Pace,
        *,
        durable: bool,
        cache: int,
        page_cache: int,
        make_locks: Callable[[], MachineLocks],
        now: float,
    ) -> None:
        """``make_locks`` opens the lock directory, on the thread."""
        super().__init__(path, "writer", pace)
        self.opened: BlockingFuture[MachineLocks] = BlockingFuture()
        self._durable = durable
        self._make_locks = make_locks
        self._now = now
        self._locks: MachineLocks | None = None
        self._page_cache = page_cache
        self._groups = 0
        self.known = KnownStates(cache, self._index)

    def _open(self) -> Connection:
        try:
            self._locks = locks = self._make_locks()
            with locks.exclusive("writer", BACKSTOP_SECONDS):
                connection = connect(self._path, durable=self._durable, page_cache=self._page_cache)
                try:
                    prepare(connection, self._path, self._now)
                    self._index.map()
                except BaseException:
                    connection.close()
                    raise
        except Exception as error:
            typed = from_engine(error, self._path)
            self.opened.set_exception(typed)
            raise typed from error
        self.opened.set_result(locks)
        return connection

    def _serve(self, connection: Connection, batch: list[Job[Any]]) -> None:
        if not batch:
            return
        with self.opened.result().exclusive("writer", BACKSTOP_SECONDS):
            failure = self._transact(connection, batch)
            if failure is not None and len(batch) == 1:
                raise failure
            if failure is not None:
                for job in batch:
                    job.error = self._transact(connection, [job]) or job.error

    def _transact(self, connection: Connection, jobs: list[Job[Any]]) -> Exception | None:
        """Run jobs in one transaction. Return what undid it, if anything did."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            taken = self._pace.baton.acquire(timeout=BATON_SECONDS)
            try:
                self.known.begin()
                pen = Pen(connection)
                for job in jobs:
                    job.run(pen)
                pen.flush()
            finally:
                if taken:
                    self._pace.baton.release()
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to the callers
            failure = from_engine(error, self._path, connection)
            self.known.end(kept=False)
            _undo(connection)
            return failure
        self.known.end(kept=True)
        return None

    def _after(self, served: int) -> None:
        # SQLite checkpoints by itself at 1,000 pages, inside a commit and so under the writers' lock. Only
        # readers that never leave a gap could keep the write-ahead log growing: now and then they are waited for.
        self._groups += served > 0
        if self._groups == RESTART_EVERY and self.connection is not None:
            self._groups = 0
            self._checkpoint(self.connection, driver().SQLITE_CHECKPOINT_RESTART)

    def _checkpoint(self, connection: Connection, mode: int) -> None:
        # Commits are safe in the write-ahead log. A checkpoint that can't be had now, because others
        # read or the disk is full, is tried again later; a fault of the disk shows in the next commit.
        with suppress(driver().Error, StateError), self.opened.result().exclusive("writer", BACKSTOP_SECONDS):
            connection.wal_checkpoint(None, mode)

    def _shut(self) -> None:
        if self.connection is not None:
            self.connection.set_busy_timeout(0)
            self._checkpoint(self.connection, driver().SQLITE_CHECKPOINT_TRUNCATE)
        super()._shut()
        if self._locks is not None:
            self._locks.close()


def _undo(connection: Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
