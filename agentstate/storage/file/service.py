"""Serving the lines in front of the scopes, on worker threads.

While nobody is served, a small change of a state that is known here is made in memory by whoever
asks for it, under the scope's lock if that is free: then what is left for a thread is to write it.
That takes microseconds and never blocks, so it may be done on an event loop.

Threads that run Python get in each other's way; threads that wait for the disk don't. So one
thread at a time takes what waits for some scopes, makes the changes and writes their lines; when
nothing is left but to wait for the disk, the next thread may begin. Whatever may take long by
itself (a state that has to be read, a lock that another process has) gets a thread to itself.

What was added is carried through, also when its caller was cancelled, and when the store closes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.errors import StorageClosedError
from agentstate.storage.file.batch import Outcome, Writing, dropped, store, tidy
from agentstate.storage.file.workers import send
from agentstate.storage.file.write import rotation_due

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.storage.file.jobs import Write
    from agentstate.storage.file.queue import ScopeQueue
    from agentstate.storage.file.root import Root
    from agentstate.storage.file.scope import ScopeFiles
    from agentstate.storage.file.workers import Reply, Sent, Workers

__all__ = ["Line", "Service", "View"]

JOBS_TOGETHER: Final = 64
SCOPES_TOGETHER: Final = 8

log = logging.getLogger("agentstate.storage")


class View(NamedTuple):
    """Looks at the files of a scope; with a fresh image, and nobody writing in this process."""

    look: Callable[[ScopeFiles], Any]


class Line:
    """What waited for one scope, taken by the thread that serves it."""

    __slots__ = ("lock", "prepared", "queue", "replies", "views", "writing")

    def __init__(self, root: Root, queue: ScopeQueue, jobs: Sequence[tuple[Reply, Write[Any] | View]]) -> None:
        self.queue = queue
        self.views = [(reply, job) for reply, job in jobs if isinstance(job, View)]
        self.replies: list[Reply] = []
        writes: list[Write[Any]] = []
        for reply, job in jobs:
            if not isinstance(job, View):
                self.replies.append(reply)
                writes.append(job)
        self.writing = Writing(root, queue.files, writes)
        self.lock = root.writing(queue.files.name)
        self.prepared = False

    def prepare(self) -> None:
        """Make the changes in memory, if nothing is in the way; then this has the image and the scope's lock."""
        writes = self.writing.writes
        if writes and writes[0].quick and self.queue.files.held is not None and self.seize():
            self.prepared = self.writing.prepare()
            if not self.prepared:
                self.let_go()

    def let_go(self) -> None:
        """Let others have what `seize` took."""
        self.lock.leave()
        self.queue.using.release()

    def seize(self) -> bool:
        """Take the image and the scope's lock if both are free; return whether they were."""
        if self.prepared:
            return True
        if not self.queue.using.acquire(blocking=False):
            return False
        try:
            taken = self.lock.take_now()
        except Exception:  # noqa: BLE001 - whoever waits for the lock gets to know
            taken = False
        if not taken:
            self.queue.using.release()
        return taken

    def outcomes(self) -> list[Sent]:
        """Return what to tell those who wait for the writes."""
        pairs = zip(self.replies, self.writing.outcomes, strict=True)
        return [(reply, result, error) for reply, (result, error) in pairs]


class Service:
    """Serves the lines of one store."""

    def __init__(self, root: Root, workers: Workers) -> None:
        """Begin with nobody waiting."""
        self._root = root
        self._workers = workers
        self._lock = threading.Lock()
        self._ready: deque[ScopeQueue] = deque()
        self._running = False
        self._ending = False

    def add(self, queue: ScopeQueue, job: Write[Any] | View) -> Reply:
        """Have something done; its result comes in the running loop."""
        reply: Reply = asyncio.get_running_loop().create_future()
        with self._lock:
            if queue.busy or self._running:
                queue.waiting.append((reply, job))
                if not queue.busy:
                    queue.busy = True
                    self._ready.append(queue)
                return reply
            queue.busy = self._running = True
        # Nobody runs: what needs no disk is done at once, here, where its data is at hand.
        line = queue.line = Line(self._root, queue, [(reply, job)])
        if self._workers.have_room:
            line.prepare()
        with self._lock:
            self._ready.appendleft(queue)
        try:
            self._workers.submit(self._serve)
        except StorageClosedError as error:
            self._refuse(error)
        return reply

    def _refuse(self, error: StorageClosedError) -> None:
        """Tell whoever waits that nobody serves any more."""
        lines: list[Line] = []
        while taken := self._take():
            lines += taken
        refused: list[Reply] = []
        for line in lines:
            line.writing.refuse(error)
            line.writing.close()
            if line.prepared:
                line.queue.files.forget()
                line.let_go()
            refused += [*line.replies, *(reply for reply, _ in line.views)]
        with self._lock:
            for line in lines:
                refused += [reply for reply, _ in line.queue.waiting]
                line.queue.waiting.clear()
                line.queue.busy = False
            self._running = False
        send([(reply, None, error) for reply in refused])

    def _serve(self) -> None:
        """Serve some scopes; when the workers are ending, all that wait."""
        self._serve_some()
        while self._ending and self._ready:
            self._serve_some()

    def _serve_some(self) -> None:
        lines = self._take()
        if len(lines) == 1 and lines[0].queue.files.held is None and not lines[0].prepared:
            self._hand_on()
            self._serve_alone(lines[0])
            return
        seized = [line for line in lines if line.replies and line.seize()]
        if seized:
            self._write(seized, self._hand_on)
        else:
            self._hand_on()
        for line in lines:
            if line in seized or not line.replies:
                if line.views:
                    self._look(line)
                self._put_back(line)
            else:
                self._send_away(line)

    def _take(self) -> list[Line]:
        """Take what waits for the first scope, or for some whose state is known."""
        with self._lock:
            queues: list[ScopeQueue] = []
            while self._ready and len(queues) < SCOPES_TOGETHER:
                if queues and None in (queues[0].files.held, self._ready[0].files.held):
                    break
                queues.append(self._ready.popleft())
            return [self._line(queue) for queue in queues]

    def _line(self, queue: ScopeQueue) -> Line:
        line, queue.line = queue.line, None
        return line or Line(self._root, queue, _first(queue.waiting))

    def _hand_on(self) -> None:
        """Let the next thread run."""
        with self._lock:
            self._running = start = bool(self._ready)
        if start:
            self._start()

    def _put_back(self, line: Line) -> None:
        """Let what came meanwhile wait for its turn."""
        with self._lock:
            queue = line.queue
            queue.busy = bool(queue.waiting)
            if not queue.busy:
                return
            self._ready.append(queue)
            start, self._running = not self._running, True
        if start:
            self._start()

    def _start(self) -> None:
        try:
            self._workers.submit(self._serve)
        except StorageClosedError:
            self._ending = True  # this thread does the rest

    def _send_away(self, line: Line) -> None:
        """Serve a line on a thread that may wait for it."""
        try:
            self._workers.submit(lambda: self._serve_alone(line))
        except StorageClosedError:
            self._serve_alone(line)

    def _serve_alone(self, line: Line) -> None:
        try:
            if line.replies:
                line.queue.using.acquire()
                try:
                    line.lock.take()
                except Exception as error:  # noqa: BLE001 - it belongs to the callers
                    line.writing.refuse(error)
                    line.writing.close()
                    line.queue.using.release()
                    send(line.outcomes())
                else:
                    self._write([line], _nothing)
            if line.views:
                self._look(line)
        finally:
            self._put_back(line)

    # -- writing and looking ---------------------------------------------------------------

    def _write(self, lines: Sequence[Line], written: Callable[[], None]) -> None:
        """Make the changes of scopes that are seized, let go of them, and tell whoever waits.

        Args:
            lines: of these scopes.
            written: is called once, when nothing is left but to wait for the disk.
        """
        try:
            store(self._root, [line.writing for line in lines], written)
        except BaseException as error:
            log.exception("writes to %s failed", ", ".join(str(line.queue.files.scope) for line in lines))
            for line in lines:
                line.queue.files.forget()
                line.writing.refuse(error)
                line.writing.close()
        late = [line for line in lines if not self._settle(line)]
        send([one for line in lines for one in line.outcomes()])
        self._root.marks.wipe()
        for line in late:
            tidy(self._root, line.queue.files)
            line.queue.using.release()
        for line in lines:
            line.lock.leave()
        self._root.tidy()

    def _settle(self, line: Line) -> bool:
        """Let others have the image, and return whether they may: not before a snapshot that is due."""
        files = line.queue.files
        if dropped(files):
            # Who drops a state hears of it when its bytes are gone.
            tidy(self._root, files)
        line.queue.weigh()
        if files.held is not None and rotation_due(files):
            return False
        # Whoever hears of it now finds nobody in the way.
        line.queue.using.release()
        return True

    def _look(self, line: Line) -> None:
        with line.queue.using:
            seen = [(reply, self._outcome(line.queue.files, view)) for reply, view in line.views]
            line.queue.weigh()
        send([(reply, outcome.result, outcome.error) for reply, outcome in seen])

    def _outcome(self, files: ScopeFiles, view: View) -> Outcome:
        try:
            self._root.refreshed(files)
            with self._root.reading(files):
                return Outcome(view.look(files))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            return Outcome(error=error)


def _first(waiting: deque[tuple[Reply, Any]]) -> list[tuple[Reply, Any]]:
    return [waiting.popleft() for _ in range(min(JOBS_TOGETHER, len(waiting)))]


def _nothing() -> None:
    """Do nothing."""
