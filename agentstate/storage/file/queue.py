"""The lines in front of the scopes of a store, and the cache of their images.

While a write is being synced, others of its scope arrive; they share the next line and the next
sync. A read whose image is still what the file says needs no thread at all: `ScopeQueue.glance`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentstate.storage.file.batch import perform
from agentstate.storage.file.service import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.scope import StateScope
    from agentstate.storage.file.held import Held
    from agentstate.storage.file.jobs import Write
    from agentstate.storage.file.root import Root
    from agentstate.storage.file.scope import ScopeFiles
    from agentstate.storage.file.service import Line, Service
    from agentstate.storage.file.workers import Reply

__all__ = ["ScopeCache", "ScopeQueue"]

CACHE_BYTES: Final = 64 * 1024 * 1024
WEIGHED_BYTES: Final = 4096

T = TypeVar("T")


class ScopeQueue:
    """One scope in this process: its files, and who waits for them.

    Attributes:
        address: the scope's, as the locks know it.
        busy: somebody waits or is being served.
        waiting: who waits for what.
        line: what was taken out of ``waiting`` already, to be served next.
        using: held by whoever looks at the files' image, or changes it.
        size: about how many bytes of memory the image takes.
        retired: no longer in the cache; whoever has it still may use it.
    """

    def __init__(self, root: Root, service: Service, files: ScopeFiles, weigh: Callable[[int], None]) -> None:
        """Begin with nobody waiting. ``weigh`` hears by how much ``size`` changes."""
        self.files = files
        self.address = files.scope.text
        self.busy = False
        self.line: Line | None = None
        self.size = 0
        self.retired = False
        self.using = threading.Lock()
        self.waiting: deque[tuple[Reply, Write[Any] | View]] = deque()
        self._root = root
        self._service = service
        self._weigh = weigh
        self._weighed_at = -WEIGHED_BYTES

    def glance(self, look: Callable[[Held], T]) -> tuple[T] | None:
        """Return what ``look`` finds in the image, at once; ``None`` when the image isn't known to be fresh."""
        if not self.using.acquire(blocking=False):
            return None
        try:
            held = self.files.held
            return (look(held),) if held is not None and self.files.fresh() else None
        finally:
            self.using.release()

    async def view(self, look: Callable[[ScopeFiles], T]) -> T:
        """Return what ``look`` finds in the files, on a worker thread, the image being fresh."""
        result: T = await self._service.add(self, View(look))
        return result

    async def write(self, write: Write[T]) -> T:
        """Make a change and return its result. Carried through when cancelled."""
        result: T = await self._service.add(self, write)
        return result

    def write_here(self, write: Write[T]) -> T:
        """Make a change on the calling thread, which must not be an event loop's, and return its result."""
        with self.using:
            (outcome,) = perform(self._root, self.files, [write])
        if outcome.error is not None:
            raise outcome.error
        result: T = outcome.result
        return result

    def weigh(self) -> None:
        """Note about how large the image is now: looked up when the log has changed by some kilobytes."""
        if self._weighed_at <= self.files.end < self._weighed_at + WEIGHED_BYTES:
            return
        held, self._weighed_at = self.files.held, self.files.end
        before, self.size = self.size, held.size if held is not None else 0
        if not self.retired:
            self._weigh(self.size - before)


class ScopeCache:
    """The scopes whose images this process keeps: those used last, up to a number of bytes."""

    def __init__(self, root: Root, service: Service) -> None:
        """Begin empty."""
        self._root = root
        self._service = service
        self._lock = threading.Lock()
        self._queues: OrderedDict[StateScope, ScopeQueue] = OrderedDict()
        self._size = 0

    def get(self, scope: StateScope) -> ScopeQueue:
        """Return the line in front of a scope."""
        with self._lock:
            queue = self._queues.get(scope)
            if queue is None:
                queue = ScopeQueue(self._root, self._service, self._root.files(scope), self._weigh)
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
