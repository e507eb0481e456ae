"""The line in front of one scope: what waits is done together, by one thread at a time.

While a write is being synced, others arrive; they share the next line and the next sync. A
read whose image is still what the file says needs no thread at all: `glance`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agentstate.errors import StorageClosedError
from agentstate.storage.file.batch import Outcome, perform
from agentstate.storage.file.workers import Reply, Sent, send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.file.held import Held
    from agentstate.storage.file.jobs import Write
    from agentstate.storage.file.root import Root
    from agentstate.storage.file.scope import ScopeFiles
    from agentstate.storage.file.workers import Workers

__all__ = ["ScopeCache", "ScopeQueue"]

TOGETHER: Final = 64
CACHE_BYTES: Final = 64 * 1024 * 1024

log = logging.getLogger("agentstate.storage")

T = TypeVar("T")


class _View(NamedTuple):
    """Looks at the files; with a fresh image, and nobody writing in this process."""

    look: Callable[[ScopeFiles], Any]


class ScopeQueue:
    """One scope in this process: its files, and who waits for them.

    Attributes:
        busy: somebody waits or is being served.
        size: about how many bytes of memory the image takes.
        retired: no longer in the cache; whoever has it still may use it.
    """

    def __init__(self, root: Root, workers: Workers, files: ScopeFiles, weigh: Callable[[int], None]) -> None:
        """Begin with nobody waiting. ``weigh`` hears by how much ``size`` changes."""
        self.files = files
        self.busy = False
        self.size = 0
        self.retired = False
        self._root = root
        self._workers = workers
        self._weigh = weigh
        self._using = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Reply, Write[Any] | _View]] = deque()

    def glance(self, look: Callable[[Held], T]) -> tuple[T] | None:
        """Return what ``look`` finds in the image, at once; ``None`` when the image isn't known to be fresh."""
        if not self._using.acquire(blocking=False):
            return None
        try:
            held = self.files.held
            return (look(held),) if held is not None and self.files.fresh() else None
        finally:
            self._using.release()

    async def view(self, look: Callable[[ScopeFiles], T]) -> T:
        """Return what ``look`` finds in the files, on a worker thread, the image being fresh."""
        result: T = await self._wait(_View(look))
        return result

    async def write(self, write: Write[T]) -> T:
        """Make a change and return its result. Carried through when cancelled."""
        result: T = await self._wait(write)
        return result

    def write_here(self, write: Write[T]) -> T:
        """Make a change on the calling thread, which must not be an event loop's, and return its result."""
        with self._using:
            (outcome,) = perform(self._root, self.files, [write])
        if outcome.error is not None:
            raise outcome.error
        result: T = outcome.result
        return result

    async def _wait(self, job: Write[Any] | _View) -> Any:
        reply = Reply()
        with self._lock:
            self._waiting.append((reply, job))
            start, self.busy = not self.busy, True
        if start:
            try:
                self._workers.submit(self._serve)
            except StorageClosedError as error:
                self._refuse(error)
        return await reply.future

    def _refuse(self, error: StorageClosedError) -> None:
        """Tell whoever waits that nobody serves any more."""
        with self._lock:
            refused = [(reply, None, error) for reply, _ in self._waiting]
            self._waiting.clear()
            self.busy = False
        send(refused)

    def _serve(self) -> None:
        """Do what waits now; let other scopes have the thread before what comes meanwhile."""
        while True:
            with self._lock:
                jobs = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            try:
                with self._using:
                    replies = self._do(jobs)
            except BaseException as error:
                replies = [(reply, None, error) for reply, _ in jobs]
                log.exception("a write to %s failed", self.files.scope)
            with self._lock:
                more = self.busy = bool(self._waiting)
            # Whoever hears of it now finds nobody in the way.
            send(replies)
            self._root.tidy()
            if not more:
                return
            with suppress(StorageClosedError):
                self._workers.submit(self._serve)
                return

    def _do(self, jobs: Sequence[tuple[Reply, Write[Any] | _View]]) -> list[Sent]:
        writes = [(reply, job) for reply, job in jobs if not isinstance(job, _View)]
        replies: list[Sent] = []

        def done(outcomes: Sequence[Outcome]) -> list[Sent]:
            pairs = zip(writes, outcomes, strict=True)
            return [(reply, outcome.result, outcome.error) for (reply, _), outcome in pairs]

        if writes:
            todo = [job for _, job in writes]
            replies = done(perform(self._root, self.files, todo, early=lambda outcomes: send(done(outcomes))))
        for reply, job in jobs:
            if isinstance(job, _View):
                outcome = self._look(job)
                replies.append((reply, outcome.result, outcome.error))
        held = self.files.held
        before, self.size = self.size, held.size if held is not None else 0
        if not self.retired:
            self._weigh(self.size - before)
        return replies

    def _look(self, view: _View) -> Outcome:
        try:
            self._root.refreshed(self.files)
            with self._root.reading(self.files):
                return Outcome(view.look(self.files))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            return Outcome(error=error)


class ScopeCache:
    """The scopes whose images this process keeps: those used last, up to a number of bytes."""

    def __init__(self, root: Root, workers: Workers) -> None:
        """Begin empty."""
        self._root = root
        self._workers = workers
        self._lock = threading.Lock()
        self._queues: OrderedDict[StateScope, ScopeQueue] = OrderedDict()
        self._size = 0

    def get(self, scope: StateScope) -> ScopeQueue:
        """Return the line in front of a scope."""
        with self._lock:
            queue = self._queues.get(scope)
            if queue is None:
                queue = ScopeQueue(self._root, self._workers, self._root.files(scope), self._weigh)
                self._queues[scope] = queue
            else:
                self._queues.move_to_end(scope)
            return queue

    def _weigh(self, more: int) -> None:
        with self._lock:
            self._size += more
            if self._size <= CACHE_BYTES:
                return
            for scope, queue in list(self._queues.items())[:-1]:
                if not queue.busy:
                    queue.retired = True
                    del self._queues[scope]
                    self._size -= queue.size
                    if self._size <= CACHE_BYTES:
                        return
