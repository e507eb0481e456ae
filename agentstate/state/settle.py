"""Carrying a storage's work through, whatever happens to the caller.

A commit that was sent can't be unsent, and a read may take a lease that must be given back.
So cancelling the caller doesn't cancel the work: it goes on in a task of the store's own, and
whoever needs its outcome first learns it and is cancelled then.

That task is made when a cancellation comes, and not before: in the usual case the work runs
inside its caller's task, at a tenth of the cost. Code that asks for the current task (timeouts,
task groups) would get the caller's there, so only storages whose capabilities say ``taskless``
are run like this; the work of others has its own task from the beginning.

Either way the work has an empty context. anyio delivers a cancellation again on every pass of
the loop, so where anyio is loaded the wait goes on inside one of its shielded scopes.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")

_tasks: set[asyncio.Task[Any]] = set()


def own_task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work that belongs to the store: it has an empty context and isn't forgotten."""
    task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


class _Guard:
    """Stands for a future towards the task that waits for it: cancelling the task leaves the future alone."""

    __slots__ = ("_asyncio_future_blocking", "_future", "_waiting")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._asyncio_future_blocking = True  # asyncio's sign of a future that is awaited
        self._future = future
        self._waiting: tuple[Callable[[Any], None], contextvars.Context | None] | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(self, fn: Callable[[Any], None], *, context: contextvars.Context | None = None) -> None:
        self._waiting = fn, context
        self._future.add_done_callback(fn, context=context)

    def cancel(self, msg: str | None = None) -> bool:
        """Wake the task with its cancellation, unless the future is waking it already."""
        if self._waiting is None or not self._future.remove_done_callback(self._waiting[0]):
            return False
        cancelled = self._future.get_loop().create_future()
        cancelled.cancel(msg)
        cancelled.add_done_callback(self._waiting[0], context=self._waiting[1])
        return True


class Errand(Generic[T]):
    """Work that begins when it is awaited, and goes on when whoever awaits it is cancelled.

    Attributes:
        task: does the work, or the rest of it once the caller was cancelled.
    """

    __slots__ = ("_run", "_taskless", "_work", "task")

    def __init__(self, work: Coroutine[Any, Any, T], *, taskless: bool) -> None:
        """Keep the work; ``taskless`` says that it never asks for the current task."""
        self._work: Final = work
        self._taskless: Final = taskless
        self._run: Final = contextvars.Context().run
        self.task: asyncio.Task[T] | None = None

    def __await__(self) -> Generator[Any, None, T]:
        if self._taskless:
            return self._steps()
        self.task = own_task(self._work)
        return asyncio.shield(self.task).__await__()

    def _steps(self) -> Generator[Any, None, T]:
        """Do the work step by step in the running task, as that would do its own."""
        error: BaseException | None = None
        while True:
            try:
                waited = self._run(self._work.send, None) if error is None else self._run(self._work.throw, error)
            except StopIteration as done:
                result: T = done.value
                return result
            error = None
            try:
                yield waited if waited is None or self.task is not None else _guarded(waited)
            except asyncio.CancelledError as cancelled:
                if waited is not None and waited.cancelled():
                    continue  # the work's own affair: it finds out by itself
                if self.task is None:
                    self.task = own_task(self._rest(waited))
                    raise
                error = cancelled
            except BaseException as raised:  # noqa: BLE001 - the work's, unless its future brought it
                error = None if waited is not None and waited.done() else raised

    async def _rest(self, waited: asyncio.Future[Any] | None) -> T:
        if waited is not None:
            try:
                await asyncio.wait((waited,))
            except asyncio.CancelledError:  # the loop ends
                waited.cancel()
        return await self


def _guarded(future: asyncio.Future[Any]) -> _Guard:
    future._asyncio_future_blocking = False  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return _Guard(future)


async def settle(work: Coroutine[Any, Any, T], *, taskless: bool = False) -> T:
    """Return the result of work that goes on when the caller is cancelled.

    Raises:
        asyncio.CancelledError: after the work has ended, when the caller was cancelled meanwhile.
    """
    errand = Errand(work, taskless=taskless)
    try:
        return await errand
    except asyncio.CancelledError:
        task = errand.task
        if task is None or task.cancelled():
            raise
        await _wait_shielded(task)
        unheard(task)
        raise


def unheard(task: asyncio.Task[Any]) -> None:
    """Note that nobody is left to hear how a task ended, so that asyncio's log doesn't ask for it.

    Its caller goes down by his own cancellation.
    """
    if not task.cancelled():
        task.exception()


async def _wait_shielded(task: asyncio.Task[Any]) -> None:
    anyio = sys.modules.get("anyio")
    if anyio is None:
        await _wait(task)
        return
    with anyio.CancelScope(shield=True):
        await _wait(task)


async def _wait(task: asyncio.Task[Any]) -> None:
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue  # the first cancellation is raised in the end; once is enough
