"""The threads of a RocksDB store: for what takes long, and the way back to the callers' loops."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from agentstate.errors import StorageClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

__all__ = ["Workers", "wake"]

THREADS: Final = 3

Result = TypeVar("Result")


class Workers:
    """Up to three threads, started when there is work for them. They are nobody else's: no handler can block them."""

    def __init__(self, name: str) -> None:
        """Begin without a thread."""
        self._name = name
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="agentstate-rocksdb")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Have something done and return its result. Cancelled, it is carried through once it has begun."""
        return await asyncio.wrap_future(self.begin(work))

    def begin(self, work: Callable[[], Result]) -> Future[Result]:
        """Have something done; return where its result will be.

        Raises:
            StorageClosedError: `close` was called.
        """
        try:
            return self._pool.submit(work)
        except RuntimeError:
            raise StorageClosedError(f"{self._name} was closed.", remedy="Make a new storage.") from None

    def close(self) -> None:
        """Let everything handed over finish, and end the threads. Blocks."""
        self._pool.shutdown()


def wake(waiting: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    """Tell all who wait, waking each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for one in waiting:
        loops.setdefault(one.get_loop(), []).append(one)
    for loop, mine in loops.items():
        # A loop that was closed has nobody left to wake.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, mine, error)


def _settle(waiting: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    for future in waiting:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
