"""Carrying a commit through, whatever happens to the caller.

A commit that was sent can't be unsent, so a cancelled caller first learns its outcome and
is cancelled then. The work runs in a task of the store's own, in an empty context; the
caller waits for it behind a shield. anyio delivers a cancellation again on every pass of
the loop, so where anyio is loaded the wait goes on inside one of its shielded scopes.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_tasks: set[asyncio.Task[Any]] = set()


def own_task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work that belongs to the store: it has an empty context and isn't forgotten."""
    task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


async def settle(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that goes on when the caller is cancelled.

    Raises:
        asyncio.CancelledError: after the work has ended, when the caller was cancelled meanwhile.
    """
    task = own_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        await _wait_shielded(task)
        # The caller goes down by its cancellation; what the work said is not lost in a log of
        # "never retrieved": nobody is left to hear it.
        if not task.cancelled():
            task.exception()
        raise


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
