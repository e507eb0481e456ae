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

import asyncio
import threading
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from agentstate.errors import StateError, StorageClosedError
from agentstate.storage.sqlite.errors import from_engine
from agentstate.storage.sqlite.known import KnownStates
from agentstate.storage.sqlite.schema import connect, driver, prepare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agentstate.storage.oslock import MachineLocks
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["BACKSTOP_SECONDS", "Job", "Pace", "Reader", "Writer"]

MOST_TOGETHER: Final = 256
BATON_SECONDS: Final = 0.005
BACKSTOP_SECONDS: Final = 10.0
RESTART_EVERY: Final = 1000

Result = TypeVar("Result")
Plan = TypeVar("Plan")


class Job(Generic[Plan, Result]):
    """A whole read or a whole commit on its way to a thread and back."""

    __slots__ = ("check", "error", "future", "loop", "result", "settle", "tracks", "write")

    def __init__(
        self,
        check: Callable[[Connection], Plan],
        write: Callable[[Connection, Plan], Result] | None = None,
        settle: Callable[[bool], None] | None = None,
        *,
        tracks: bool = False,
    ) -> None:
        """Describe the work.

        Args:
            check: reads; whatever it raises concerns this job only. What it returns is the
                result of a job without ``write``.
            write: writes, after ``check`` and in its transaction.
            settle: called on the thread when the transaction has ended: was this job's part kept?
            tracks: ``write`` keeps the writer's `KnownStates` up to date.
        """
        self.check = check
        self.write = write
        self.settle = settle
        self.tracks = tracks
        self.result: Any = None
        self.error: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Result] | BlockingFuture[Result]

    def awaited(self) -> Awaitable[Result]:
        """Return what the caller's coroutine awaits."""
        self.loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = self.loop.create_future()
        self.future = future
        return future

    def blocking(self) -> BlockingFuture[Result]:
        """Return what a caller on a thread of its own waits for."""
        self.future = BlockingFuture()
        return self.future

    def run(self, connection: Connection) -> None:
        """Do the work inside a transaction; only an error of ``check`` of our own kind is this job's alone."""
        self.result, self.error = None, None
        try:
            plan = self.check(connection)
        except StateError as error:
            self.error = error
        else:
            self.result = plan if self.write is None else self.write(connection, plan)

    def abandoned(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.future.cancelled()

    def finish(self) -> None:
        """Tell whoever waits, on their own loop."""
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def deliver(jobs: list[Job[Any, Any]]) -> None:
    """Tell all who wait, waking each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Job[Any, Any]]] = {}
    for job in jobs:
        if job.loop is None:
            job.finish()
        else:
            loops.setdefault(job.loop, []).append(job)
    for loop, done in loops.items():
        # A loop that was closed meanwhile has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish_all, done)


def _finish_all(jobs: list[Job[Any, Any]]) -> None:
    for job in jobs:
        job.finish()


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
        self._queue: SimpleQueue[list[Job[Any, Any]] | None] = SimpleQueue()
        self._passes: dict[asyncio.AbstractEventLoop, list[Job[Any, Any]]] = {}
        self._ended = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"agentstate-sqlite-{name}", daemon=True)

    def start(self) -> None:
        """Begin; the file is opened on the thread."""
        self._thread.start()

    def submit(self, job: Job[Any, Any]) -> None:
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

    def _put(self, jobs: list[Job[Any, Any]]) -> None:
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
        self._ended = True
        self._refuse_rest()
        self.ended.set_result(None)

    def _serve_next(self) -> bool:
        """Serve what waits, at least one job. Return whether to go on."""
        batch: list[Job[Any, Any]] = []
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
            if one.settle is not None:
                one.settle(one.error is None)
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

    def _serve(self, connection: Connection, batch: list[Job[Any, Any]]) -> None:
        raise NotImplementedError

    def _after(self, served: int) -> None:
        """Do what nobody waits for."""

    def _shut(self) -> None:
        if self.connection is not None:
            self.connection.close()


class Reader(_Worker):
    """Serves reads. In WAL mode they never wait for a writer's fsync."""

    def __init__(self, path: Path, pace: Pace, writer: Writer) -> None:
        """``writer`` opens the file first: it makes the layout."""
        super().__init__(path, "reader", pace)
        self._writer = writer

    def _open(self) -> Connection:
        self._writer.opened.result()
        return connect(self._path, durable=False, read_only=True)

    def _serve(self, connection: Connection, batch: list[Job[Any, Any]]) -> None:
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

    def _read(self, connection: Connection, job: Job[Any, Any]) -> None:
        try:
            if not connection.in_transaction:
                connection.execute("BEGIN")
            job.run(connection)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            job.error = from_engine(error, self._path, connection)
            _undo(connection)


class Writer(_Worker):
    """Serves commits, grouped. All processes' writers and checkpoints queue on one OS lock."""

    def __init__(
        self,
        path: Path,
        pace: Pace,
        *,
        durable: bool,
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
        self._groups = 0
        self.known = KnownStates()

    def _open(self) -> Connection:
        try:
            self._locks = locks = self._make_locks()
            with locks.exclusive("writer", BACKSTOP_SECONDS):
                connection = connect(self._path, durable=self._durable)
                try:
                    prepare(connection, self._path, self._now)
                except BaseException:
                    connection.close()
                    raise
        except Exception as error:
            typed = from_engine(error, self._path)
            self.opened.set_exception(typed)
            raise typed from error
        self.opened.set_result(locks)
        return connection

    def _serve(self, connection: Connection, batch: list[Job[Any, Any]]) -> None:
        if not batch:
            return
        with self.opened.result().exclusive("writer", BACKSTOP_SECONDS):
            failure = self._transact(connection, batch)
            if failure is not None and len(batch) == 1:
                raise failure
            if failure is not None:
                for job in batch:
                    job.error = self._transact(connection, [job]) or job.error

    def _transact(self, connection: Connection, jobs: list[Job[Any, Any]]) -> Exception | None:
        """Run jobs in one transaction. Return what undid it, if anything did."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            taken = self._pace.baton.acquire(timeout=BATON_SECONDS)
            try:
                self.known.begin(connection)
                for job in jobs:
                    job.run(connection)
                    if not job.tracks:
                        self.known.forget()
            finally:
                if taken:
                    self._pace.baton.release()
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to the callers
            failure = from_engine(error, self._path, connection)
            self.known.forget()
            _undo(connection)
            return failure
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
