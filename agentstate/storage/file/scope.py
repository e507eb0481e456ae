"""The files of one scope, and the image of them that this process keeps.

::

    log.jsonl             a header, then one line for each write: a whole commit, or several that waited together
    state.json            the snapshot, once there is one; lines that it covers are skipped by their number
    items-….jsonl         the log items up to the snapshot
    journal-….jsonl       earlier logs, kept for the journal

Anybody may read at any time: one `lstat` says whether the image is still what the log says, and
only what was appended since is read. Whoever writes holds the scope's lock; only then is a
torn last line cut. A reader without the lock that finds something odd can't tell damage from
somebody writing: it raises `Inconsistent`, and is asked again with the lock.

All of it blocks, but for `fresh`: for worker threads, one at a time.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agentstate.errors import NewerFormatError
from agentstate.storage.file.held import Held
from agentstate.storage.file.lines import Json, Line, is_torn, read_lines
from agentstate.storage.file.snapshot import Archive, decode_state
from agentstate.storage.image import Image

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.file.disk import Disk
    from agentstate.storage.file.open_logs import OpenLogs

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "ROTATE_BYTES",
    "Inconsistent",
    "ScopeFiles",
    "Seen",
    "SnapshotFile",
    "check_format",
    "is_segment",
    "look",
    "look_at",
    "segment_name",
]

FORMAT: Final = 1
HEADER_BYTES: Final = 16 * 1024
ROTATE_BYTES: Final = 128 * 1024
MALFORMED: Final = (KeyError, ValueError, TypeError, IndexError, AttributeError)


class Inconsistent(Exception):  # noqa: N818 - whether it is an error shows only with the lock
    """The files don't fit together. ``file`` is the one where it was noticed."""

    def __init__(self, file: str, why: str) -> None:
        self.file = file
        self.why = why
        super().__init__(f"{file}: {why}")


class Seen(NamedTuple):
    """What tells one content of a file from another without reading it."""

    inode: int
    size: int
    changed: int


class SnapshotFile(NamedTuple):
    """What is known of ``state.json``; ``n`` is the last line that it covers, ``sum`` that line's digest."""

    seen: Seen | None = None
    n: int = 0
    sum: str = ""
    archive: Archive | None = None


def segment_name(base: int) -> str:
    """Return how a log that begins after line ``base`` is named once it isn't the newest."""
    return f"journal-{base:012d}.jsonl"


def is_segment(name: str) -> bool:
    """Return whether this is how a log that isn't the newest is named."""
    return name.startswith("journal-") and name.endswith(".jsonl")


def look(path: str) -> Seen | None:
    """Return what a file is now, ``None`` if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return Seen(status.st_ino, status.st_size, status.st_mtime_ns)


def look_at(descriptor: int) -> Seen:
    """Return what an open file is now."""
    status = os.fstat(descriptor)
    return Seen(status.st_ino, status.st_size, status.st_mtime_ns)


class ScopeFiles:
    """One scope's files.

    Attributes:
        address: the scope's, as text.
        name: of the directory.
        held: the state as far as it was read, ``None`` when that has to be done anew.
        n: number of the last line applied to it; the log begins after line ``base``.
        told: the feed knows the lines up to this number, as far as is known here.
        sum: digest of the log's last line.
        end: where that line ends.
        synced: up to where the log was synced here, if it was.
        seen: what the log was when it was last read or written, ``None`` when there was none.
        snapshot: what ``state.json`` was.
        rotate_from: how long the log must be at least before it is begun anew.
    """

    def __init__(self, scope: StateScope, path: str, disk: Disk, logs: OpenLogs) -> None:
        """Know nothing yet of the files in ``path``."""
        self.scope = scope
        self.address = scope.text
        self.path = path
        self.name = path.rpartition("/")[2]
        self.log_path = f"{path}/log.jsonl"
        self.state_path = f"{path}/state.json"
        self.disk = disk
        self.logs = logs
        self.rotate_from = ROTATE_BYTES
        self.forget()

    def forget(self) -> None:
        """Let go of the image; the next refresh reads everything."""
        self.held: Held | None = None
        self.n = self.base = self.end = self.told = self.synced = 0
        self.sum = ""
        self.snapshot = SnapshotFile()
        self.seen: Seen | None = None

    def fresh(self) -> bool:
        """Return whether the image is what the log says now. One system call, without a wait for the disk."""
        if self.held is None:
            return False
        seen = self.seen
        try:
            found = os.lstat(self.log_path)
        except FileNotFoundError:
            return seen is None
        except OSError:
            return False
        return seen is not None and seen == (found.st_ino, found.st_size, found.st_mtime_ns)

    def settled(self) -> bool:
        """Return whether the image is all that the log says: what a writer begins with, who holds the scope's lock."""
        return self.fresh() and (self.seen is None or self.seen.size == self.end)

    # -- reading ---------------------------------------------------------------------------

    def refresh(self, *, locked: bool) -> Held:
        """Bring the image up to what the files say, reading as little as possible.

        Args:
            locked: the caller holds the scope's lock, so nobody else is writing.

        Raises:
            Inconsistent: they don't fit together; without the lock this proves nothing.
            NewerFormatError: a newer release wrote them.
        """
        if self.held is not None and (self.settled() if locked else self.fresh()):
            return self.held
        try:
            if self.held is None or not self._extended(locked=locked):
                return self._load(locked=locked)
        except BaseException:
            self.forget()
            raise
        return self.held

    def _extended(self, *, locked: bool) -> bool:
        try:
            return self._extend(locked=locked)
        except Inconsistent:
            if not locked:
                raise
            return False

    def _extend(self, *, locked: bool) -> bool:
        """Read what is new in the log; return whether that was all it took."""
        if self.seen is None:
            return look(self.log_path) is None
        try:
            descriptor = self._open_log(locked=locked)
        except FileNotFoundError:
            return False
        try:
            seen = look_at(descriptor)
            if seen.inode != self.seen.inode:
                self._finish_old_log()
                if not self._adopt(descriptor):
                    return False
            elif seen.size < self.end or (seen.size == self.seen.size and seen != self.seen):
                return False
            self._read_tail(descriptor, seen, locked=locked)
        finally:
            self.disk.close(descriptor)
        return True

    def _open_log(self, *, locked: bool) -> int:
        return self.disk.open(self.log_path, os.O_RDWR if locked else os.O_RDONLY)

    def _read_tail(self, descriptor: int, seen: Seen, *, locked: bool) -> None:
        """Apply the lines after ``end``; with the lock, cut a line that a crash left unfinished."""
        rest = self.disk.read(descriptor, self.end, seen.size - self.end) if seen.size > self.end else b""
        for line in read_lines(rest, self.sum, start=self.end):
            rest = rest[line.end - self.end :]
            self._take(line)
        if rest:
            if not is_torn(rest, self.end):
                raise Inconsistent(self.log_path, f"the line at byte {self.end} doesn't match its digest")
            if locked:
                self.disk.truncate(descriptor, self.end)
                seen = look_at(descriptor)
        self.seen = seen

    def _take(self, line: Line) -> None:
        """Apply one line, or the header, or skip what the snapshot covers."""
        try:
            if self.end == 0:
                self._take_header(line)
            else:
                self._take_ops(line)
        except MALFORMED as error:
            raise Inconsistent(self.log_path, f"line {self.n + 1} makes no sense: {error!r}") from error
        self.sum, self.end = line.sum, line.end

    def _take_header(self, line: Line) -> None:
        header = line.body
        check_format(header, self.log_path)
        if header["scope"] != self.address:
            raise Inconsistent(self.log_path, f"it belongs to {header['scope']}, not to {self.scope}")
        self.base = self.n = header["n"]
        if self.base > self.snapshot.n:
            raise Inconsistent(self.state_path, f"it ends at line {self.snapshot.n}, the log begins after {self.base}")
        if self.base == self.snapshot.n and self.base and self.snapshot.sum not in (header["after"], line.sum):
            raise Inconsistent(self.log_path, "it doesn't follow the snapshot")

    def _take_ops(self, line: Line) -> None:
        assert self.held is not None
        n = line.body["n"]
        if n != self.n + 1:
            raise Inconsistent(self.log_path, f"line {n} follows line {self.n}")
        if n > self.snapshot.n:
            for op in line.body["ops"]:
                self.held.replay(op)
        elif n == self.snapshot.n and line.sum != self.snapshot.sum:
            raise Inconsistent(self.state_path, f"it doesn't cover line {n} as it stands in the log")
        self.n = n

    def _load(self, *, locked: bool) -> Held:
        """Read everything."""
        self.forget()
        _check_directories(Path(self.path))
        self.held = self._load_snapshot()
        try:
            descriptor = self._open_log(locked=locked)
        except FileNotFoundError:
            if self.snapshot.seen is not None:
                raise Inconsistent(self.log_path, "it is missing") from None
            return self.held
        try:
            self._read_tail(descriptor, look_at(descriptor), locked=locked)
        finally:
            self.disk.close(descriptor)
        if self.n < self.snapshot.n:
            raise Inconsistent(self.log_path, f"it ends at line {self.n}, the snapshot at {self.snapshot.n}")
        return self.held

    def _load_snapshot(self) -> Held:
        found = self._read_snapshot()
        if found is None:
            return Held(Image(self.scope))
        items = b""
        if self.snapshot.archive is not None:
            items = self._read_file(f"{self.path}/{self.snapshot.archive.file}", self.snapshot.archive.size)[1]
        try:
            return decode_state(self.scope, found, items)
        except MALFORMED as error:
            raise Inconsistent(self.state_path, f"it makes no sense: {error!r}") from error

    def _read_snapshot(self) -> Json | None:
        """Return what ``state.json`` says, and note what it is."""
        try:
            seen, data = self._read_file(self.state_path)
        except FileNotFoundError:
            self.snapshot = SnapshotFile()
            return None
        lines = read_lines(data, "")
        if not lines or lines[0].end != len(data):
            raise Inconsistent(self.state_path, "it doesn't match its digest")
        found = lines[0].body
        check_format(found, self.state_path)
        try:
            archive = None if found["items"] is None else Archive(*found["items"])
            if found["scope"] != self.address:
                raise Inconsistent(self.state_path, f"it belongs to {found['scope']}, not to {self.scope}")
            self.snapshot = SnapshotFile(seen, found["n"], found["sum_at_n"], archive)
        except MALFORMED as error:
            raise Inconsistent(self.state_path, f"it makes no sense: {error!r}") from error
        return found

    def _read_file(self, path: str, size: int | None = None) -> tuple[Seen, bytes]:
        descriptor = self.disk.open(path, os.O_RDONLY)
        try:
            seen = look_at(descriptor)
            return seen, self.disk.read(descriptor, 0, seen.size if size is None else size)
        finally:
            self.disk.close(descriptor)

    def _finish_old_log(self) -> None:
        """Read the last lines of a log that was begun anew meanwhile, where it is still kept."""
        assert self.seen is not None
        try:
            descriptor = self.disk.open(f"{self.path}/{segment_name(self.base)}", os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            seen = look_at(descriptor)
            if seen.inode == self.seen.inode:
                self._read_tail(descriptor, seen, locked=False)
        finally:
            self.disk.close(descriptor)

    def _adopt(self, descriptor: int) -> bool:
        """Go on with a log that another process began exactly where the image stands; return whether it did."""
        assert self.held is not None
        lines = read_lines(self.disk.read(descriptor, 0, HEADER_BYTES), "")
        if not lines or lines[0].body.get("n") != self.n or lines[0].body.get("after") != self.sum:
            return False
        if self._read_snapshot() is None or self.snapshot.n != self.n:
            return False
        self.end = self.synced = 0
        self._take(lines[0])
        self.settle()
        return True

    def settle(self) -> None:
        """Note that the archive holds all items as they are."""
        assert self.held is not None
        for log in self.held.image.logs.values():
            log.settled = log.head


def _check_directories(path: Path) -> None:
    for one in (path, path.parent, path.parent.parent):
        if one.is_symlink():
            raise OSError(errno.ELOOP, "a link in place of a directory", str(one))


def check_format(body: Json, path: str) -> None:
    """Raise `NewerFormatError` when a newer release wrote the file."""
    if body["format"] > FORMAT:
        raise NewerFormatError(
            f"{path} has format {body['format']}; this release reads up to {FORMAT}.",
            remedy="Update agentstate to the release that wrote it.",
        )
