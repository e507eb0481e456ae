"""The threads on which a file store does what blocks, and the way back to the callers' loops.

A hop costs one queue and one wake-up of the loop. What is handed over is always carried out;
a caller that was cancelled or whose loop is gone just doesn't hear of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentstate.errors import StorageClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Reply", "Sent", "Workers", "send"]

THREADS: Final = 8

T = TypeVar("T")

log = logging.getLogger("agentstate.storage")


Reply = asyncio.Future[Any]
"""Where a result is awaited."""

Sent = tuple[Reply, Any, BaseException | None]


def send(replies: Sequence[Sent]) -> None:
    """Wake those who wait, each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Sent]] = {}
    for one in replies:
        loops.setdefault(one[0].get_loop(), []).append(one)
    for loop, mine in loops.items():
        # A loop that was closed has nobody left to wake.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, mine)


def _settle(replies: Sequence[Sent]) -> None:
    for reply, result, error in replies:
        if reply.done():
            continue
        if error is None:
            reply.set_result(result)
        else:
            reply.set_exception(error)


class Workers:
    """Up to 8 threads, started when there is work for them."""

    def __init__(self, name: str) -> None:
        """Begin without a thread."""
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    @property
    def have_room(self) -> bool:
        """Whether something handed over now would be begun at once."""
        return self._idle > 0 or len(self._threads) < THREADS

    def submit(self, work: Callable[[], None]) -> None:
        """Have something done.

        Raises:
            StorageClosedError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise StorageClosedError(f"{self._name} was closed.", remedy="Open the storage again.")
            self._queue.put(work)
            if self._idle < self._queue.qsize() and len(self._threads) < THREADS:
                thread = threading.Thread(target=self._run, name=f"agentstate-file-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """Have something done and return its result. Carried through when cancelled."""
        reply: Reply = asyncio.get_running_loop().create_future()

        def step() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                send([(reply, None, error)])
            else:
                send([(reply, result, None)])

        self.submit(step)
        result: T = await reply
        return result

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._queue.get()
            with self._lock:
                self._idle -= 1
            if work is None:
                return
            try:
                work()
            except Exception:
                log.exception("a worker of %s failed", self._name)

    def close(self) -> None:
        """Let everything handed over finish, and end the threads. Blocks."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join()
