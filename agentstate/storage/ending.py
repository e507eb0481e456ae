"""A thread's work that is also done when the interpreter ends, where no more threads can be had.

Stores are closed at exit, too. Then the main thread does what a worker thread would have done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

__all__ = ["in_thread"]


async def in_thread(work: Callable[[], T]) -> T:
    """Do blocking work on a thread, or here when the interpreter is ending. Cancelled, it is done all the same."""
    try:
        running = asyncio.get_running_loop().run_in_executor(None, work)
    except RuntimeError:  # raised before anything ran: executors take nothing any more
        return work()
    return await running
