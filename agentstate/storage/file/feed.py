"""The feed of a store (``feed.jsonl``), and the directory of scopes that it adds up to.

Every write to a scope leaves one line here, in the order of the commits: which commits, and
what a listing needs. A line is one append; no lock orders them. Two appends can't mix, but a
process killed in the middle of one leaves a fragment that the next line continues; that line
is found behind it. Compaction alone excludes appends: it puts the state of the directory in
front of the last few megabytes. Positions count from the store's first line on and survive it.

Nothing here is the truth: a damaged or missing feed is rebuilt from the scopes' own files.
Blocks: for worker threads, any number at once.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agentstate.errors import StorageError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.file.codec import decode_stamp
from agentstate.storage.file.directory import Directory, Known
from agentstate.storage.file.lines import HEAD, Json, Line, read_lines, seal, unseal
from agentstate.storage.file.scope import FORMAT, HEADER_BYTES, check_format
from agentstate.storage.protocol import FeedItem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from agentstate.storage.file.disk import Disk
    from agentstate.storage.protocol import ScopePage, ScopeQuery

__all__ = ["Feed"]

KEPT_BYTES: Final = 4 * 1024 * 1024
CHUNK: Final = 256 * 1024
LOCK_SECONDS: Final = 30.0


class _File(NamedTuple):
    """One feed file. Position ``base`` (of all the store's lines) is at byte ``origin`` of it."""

    inode: int = 0
    base: int = 0
    origin: int = 0


class Feed:
    """One store's feed, as far as this process has read it.

    Attributes:
        damaged: something in it isn't what was written, or it is missing.
    """

    def __init__(self, path: str, disk: Disk) -> None:
        """Know nothing yet; the first refresh reads the file."""
        self.path = path
        self._disk = disk
        self._lock = threading.Lock()
        self._appending = threading.Lock()
        self._compacting = threading.Lock()
        self._descriptor = -1
        self._inode = 0
        self._limit = 0
        self._begin()

    def _begin(self) -> None:
        self._directory = Directory()
        self._file = _File()
        self._end = 0
        self.damaged = False

    # -- writing ---------------------------------------------------------------------------

    def create(self) -> None:
        """Begin an empty feed."""
        self._disk.write_new(self.path, _header(0, 0, 0))

    def open(self) -> None:
        """Read the header only, for the size from which on to compact."""
        with suppress(FileNotFoundError):
            descriptor = self._disk.open(self.path, os.O_RDONLY)
            try:
                self._read_header(descriptor)
            finally:
                self._disk.close(descriptor)

    def append(self, lines: Sequence[bytes]) -> bool:
        """Add some lines, and return whether the feed has grown enough for `compact`."""
        data = b"".join(lines)
        with self._appending:
            size = self._wait_for_lock(fcntl.LOCK_SH)
            try:
                self._disk.write(self._descriptor, data)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return 0 < self._limit < size + len(data)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep everybody else from adding lines."""
        with self._appending:
            self._wait_for_lock(fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _wait_for_lock(self, kind: int) -> int:
        """Lock the feed's file for the caller, who holds ``_appending``, and return how long it is."""
        until = 0.0
        while (size := self._lock_file(kind)) is None:
            until = until or time.monotonic() + LOCK_SECONDS
            if time.monotonic() > until:
                raise StorageUnavailableError(
                    f"{self.path} was locked for {LOCK_SECONDS:g} s.",
                    remedy="Another process is compacting it: let it go on, or end it.",
                )
            time.sleep(0.001)
        return size

    def _lock_file(self, kind: int) -> int | None:
        """Lock the file that has the feed's name now, unless another process forbids; return how long it is."""
        if self._descriptor < 0:
            self._descriptor = self._disk.keep(self.path, os.O_WRONLY | os.O_APPEND)
            self._inode = os.fstat(self._descriptor).st_ino
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        found = os.lstat(self.path)
        if found.st_ino == self._inode:
            return found.st_size
        self._close()
        return None

    def _close(self) -> None:
        if self._descriptor >= 0:
            self._disk.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Close the file."""
        with self._appending:
            self._close()

    def compact(self) -> None:
        """Put the directory in front of the newest lines, and let go of the others.

        Appends are kept out only while what came meanwhile is copied.
        """
        if not self._compacting.acquire(blocking=False):
            return
        temporary = f"{self.path}.{os.urandom(6).hex()}.tmp"
        try:
            found = self._compacted()
            if found is not None:
                self._replace(temporary, *found)
        finally:
            self._disk.unlink(temporary)
            self._compacting.release()

    def _compacted(self) -> tuple[_File, int, bytes] | None:
        """Return the file as it is, its end, and what is to be in its place; ``None`` when it is short enough."""
        with self._lock, self._opened() as descriptor:
            if self._end <= self._limit:
                return None
            start = max(self._file.origin, self._end - KEPT_BYTES)
            tail = self._disk.read(descriptor, start, self._end - start)
            if start > self._file.origin:
                tail = tail.partition(b"\n")[2]
            index = b"".join(self._directory.lines())
            header = _header(self._position() - len(tail), len(index), len(index) + len(tail))
            return self._file, self._end, header + index + tail

    def _replace(self, temporary: str, old: _File, end: int, data: bytes) -> None:
        new = self._disk.open(temporary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            self._disk.write(new, data)
            self._disk.sync(new)
            with self._alone(), self._lock, self._opened() as descriptor:
                if self._file.inode != old.inode:
                    # Another process was quicker.
                    return
                self._disk.write(new, self._disk.read(descriptor, end, self._end - end))
                self._disk.sync(new)
                self._disk.rename(temporary, self.path)
        finally:
            self._disk.close(new)

    def restart(self) -> None:
        """Begin an empty feed in place of a damaged one. Its positions are beyond all earlier ones."""
        with self._appending, self._lock:
            self._close()
            self._disk.write_new(self.path, _header(time.time_ns() // 1000, 0, 0))
            self._begin()

    def _position(self) -> int:
        return self._file.base + self._end - self._file.origin

    # -- reading ---------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what was added since the last time. Sets ``damaged`` when that isn't what was written."""
        with self._lock, self._opened():
            pass

    def reread(self) -> None:
        """Read everything anew."""
        with self._lock:
            self._begin()
        self.refresh()

    @contextmanager
    def _opened(self) -> Generator[int]:
        """Open the file with everything read that is in it now."""
        try:
            descriptor = self._disk.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            self._begin()
            self.damaged = True
            raise
        try:
            status = os.fstat(descriptor)
            if status.st_ino != self._file.inode or status.st_size < self._end:
                self._change_file(descriptor, status.st_ino)
            if self._file.inode and status.st_size > self._end:
                self._read(self._disk.read(descriptor, self._end, status.st_size - self._end))
            yield descriptor
        finally:
            self._disk.close(descriptor)

    def _change_file(self, descriptor: int, inode: int) -> None:
        """Go on in a compacted file, from the same position when it reaches back that far."""
        found = self._read_header(descriptor)
        if found is None:
            self._begin()
            self.damaged = True
            return
        header, start = found.body, found.end
        position = self._position()
        known = self._file.inode not in (0, inode) and position >= header["base"]
        if not known:
            self._begin()
        origin = start + header["index"]
        self._end = origin + position - header["base"] if known else start
        self._file = _File(inode, header["base"], origin)

    def _read_header(self, descriptor: int) -> Line | None:
        lines = read_lines(self._disk.read(descriptor, 0, HEADER_BYTES), "")
        if not lines or "format" not in lines[0].body:
            return None
        check_format(lines[0].body, self.path)
        self._limit = _limit(lines[0].body["size"])
        return lines[0]

    def _read(self, data: bytes) -> None:
        for size, body in _lines(data):
            self._end += size
            if body is None:
                self.damaged = True
            else:
                self._directory.take(body)

    def items(self, after: str | None, limit: int) -> tuple[FeedItem, ...]:
        """Return commits in their order, after a cursor, or from the oldest that is kept."""
        at, skip = _parse_cursor(after)
        found: list[FeedItem] = []
        with self._lock, self._opened() as descriptor:
            if at < self._file.base:
                at, skip = self._file.base, 0
            chunk = CHUNK
            while at < self._position() and len(found) < limit:
                start = self._file.origin + at - self._file.base
                lines = list(_lines(self._disk.read(descriptor, start, min(chunk, self._end - start))))
                chunk *= 1 if lines else 2
                for size, body in lines:
                    if body is not None:
                        found.extend(_items(body, at, skip))
                    at, skip = at + size, 0
        return tuple(found[:limit])

    # -- the directory ---------------------------------------------------------------------

    def known(self, scope: StateScope) -> Known | None:
        """Return what the feed last said of a scope."""
        with self._lock:
            return self._directory.known.get(scope)

    def all_known(self) -> dict[StateScope, Known]:
        """Return what the feed last said of every scope that has files."""
        with self._lock:
            return dict(self._directory.known)

    def page(self, query: ScopeQuery, now: float) -> ScopePage:
        """Return one page of a listing, as of the last refresh."""
        with self._lock:
            return self._directory.index.page(query, now)

    def next_due(self, now: float) -> StateScope | None:
        """Return, and take out, a scope in which something has expired."""
        with self._lock:
            return self._directory.next_due(now)

    def put_back(self, scope: StateScope) -> None:
        """Put a scope back in which something has expired still."""
        with self._lock:
            self._directory.put_back(scope)


def _header(base: int, index: int, size: int) -> bytes:
    return seal(orjson.dumps({"format": FORMAT, "base": base, "index": index, "size": size}))[0]


def _limit(size: int) -> int:
    return 2 * max(size, KEPT_BYTES)


def _lines(data: bytes) -> Iterator[tuple[int, Json | None]]:
    """Return the complete lines of the feed with their sizes, ``None`` for one that is damaged."""
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end]
        # A killed process leaves a fragment, which the next line follows at once.
        found = unseal(line) or next(filter(None, (unseal(line[at.start() :]) for at in HEAD.finditer(line))), None)
        yield end + 1 - at, None if found is None else orjson.loads(found[0])
        at = end + 1


def _items(line: Json, position: int, skip: int) -> list[FeedItem]:
    scope = StateScope.parse(line["scope"])
    rows = enumerate(line["items"])
    return [FeedItem(f"{position}.{k}", scope, decode_stamp(stamp), at) for k, (stamp, at) in rows if k >= skip]


def _parse_cursor(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    at, dot, k = cursor.partition(".")
    if not (dot and at.isdecimal() and k.isdecimal()):
        raise StorageError(f"{cursor!r} is no cursor of this feed.", remedy="Pass the cursor of the item before.")
    return int(at), int(k) + 1
