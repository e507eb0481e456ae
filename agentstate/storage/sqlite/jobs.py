"""What is handed to the threads of a SQLite state file: a whole read or a whole commit, and back.

Each job is done once, inside one transaction, whether or not anybody still waits for it; its
result goes back to the event loop it came from, with one wake-up for all that are done together.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agentstate.errors import LeaseLostError, StateError
from agentstate.storage.protocol import Committed
from agentstate.storage.sqlite.commit import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentstate.storage.oslock import MachineLocks
    from agentstate.storage.protocol import Lease, OnceRecord, Part
    from agentstate.storage.sqlite.known import KnownStates
    from agentstate.storage.sqlite.pen import Pen

__all__ = ["CommitJob", "Job", "Task", "deliver"]

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Work on its way to a thread and back."""

    __slots__ = ("error", "future", "loop", "result")

    def __init__(self) -> None:
        """Begin without a result."""
        self.result: Any = None
        self.error: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Result] | BlockingFuture[Result]

    def run(self, on: Any) -> None:
        """Do the work inside a transaction, with its connection, or its pen when it writes.

        What is raised here is the engine's failing and undoes the transaction, of others too; an error that is
        only this job's, which has written nothing, is kept in ``error``.
        """
        raise NotImplementedError

    def settle(self, *, kept: bool) -> None:
        """Do what has to follow on the thread when the transaction has ended: was this job's part of it kept?"""

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


class Task(Job[Result]):
    """A function to be called with the connection, or the pen."""

    __slots__ = ("_settle", "_work")

    def __init__(self, work: Callable[[Any], Result], settle: Callable[[], None] | None = None) -> None:
        """Describe the work; ``settle`` is called afterwards, however it ended."""
        super().__init__()
        self._work = work
        self._settle = settle

    def run(self, on: Any) -> None:
        """See `Job.run`."""
        self.error = None
        self.result = self._work(on)

    def settle(self, *, kept: bool) -> None:
        """See `Job.settle`."""
        del kept
        if self._settle is not None:
            self._settle()


class CommitJob(Job[tuple[Committed, ...]]):
    """A commit: every condition of all its parts is checked before anything is written."""

    __slots__ = ("_address", "_clock", "_commit_id", "_known", "_lease", "_locks", "_once", "_parts", "_release")

    def __init__(
        self,
        parts: Sequence[Part],
        commit_id: int,
        lease: Lease | None,
        once: OnceRecord | None,
        *,
        release: bool,
        locks: MachineLocks,
        known: KnownStates,
        clock: Callable[[], float],
    ) -> None:
        """See `Storage.commit`."""
        self.error = None
        self._parts = parts
        self._commit_id = commit_id
        self._lease = lease
        self._address = "" if lease is None else lease.scope.text
        self._once = once
        self._release = release
        self._locks = locks
        self._known = known
        self._clock = clock

    def run(self, on: Pen) -> None:
        """Check, then write."""
        self.error, once = None, self._once
        try:
            changes = self._checked(on)
        except StateError as error:
            self.error = error
            return
        self.result = tuple([change.write(self._commit_id, None if n else once) for n, change in enumerate(changes)])

    def _checked(self, pen: Pen) -> list[Change]:
        lease = self._lease
        if lease is not None and not self._locks.holds(self._address, lease.nonce):
            raise LeaseLostError(
                f"The turn of {lease.scope} was given back already; nothing was stored.",
                scope=lease.scope,
                remedy="Run the handler again.",
            )
        now, once = self._clock(), self._once
        changes: list[Change] = []
        for part in self._parts:
            change = Change(pen, self._known, part, now=now, lease=lease)
            change.check(once)
            changes.append(change)
            once = None
        return changes

    def settle(self, *, kept: bool) -> None:
        """Give the turn back when the commit is stored."""
        if kept and self._release and self._lease is not None:
            self._locks.leave(self._address, self._lease.nonce)


def deliver(jobs: list[Job[Any]]) -> None:
    """Tell all who wait, waking each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
    for job in jobs:
        if job.loop is None:
            job.finish()
        else:
            loops.setdefault(job.loop, []).append(job)
    for loop, done in loops.items():
        # A loop that was closed meanwhile has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish_all, done)


def _finish_all(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.finish()
