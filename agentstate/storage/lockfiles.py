"""The lock files of one directory in this process, and who here holds or awaits which turn.

What makes plain file locks unsound is dealt with here, once for all backends on one machine:

* A descriptor never excludes itself, so a table decides between this process's threads, tasks
  and event loops, and the files decide between processes. Everything that uses one directory
  in one process shares its `LockDirectory`.
* POSIX locks vanish when any descriptor of the file is closed, so each of the 64 files is opened
  once and stays open for as long as anybody here uses the directory. They hold no data.
* A forked child shares its parent's descriptors and would keep its turns alive: it closes them.

One lock, `guard`, guards everything of this module; it is held for microseconds and never
across an await. It is re-entrant, because the garbage collector may close a waiting coroutine
anywhere.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from agentstate.errors import StorageUnavailableError
from agentstate.storage.mounts import check_local
from agentstate.storage.oserrors import from_os_error
from agentstate.storage.protocol import Holder

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

__all__ = ["LockDirectory", "Turn", "Waiter", "guard", "resolve"]

FILES: Final = 64
GONE_SECONDS: Final = 1.0
TURN_POLL: Final = (0.0005, 0.010)
NEXT_POLL: Final = (0.002, 0.008)
LINE_POLL: Final = 0.02
LOCAL_POLL: Final = 0.1
NOTE: Final = struct.Struct("<2sQdH")
NOTE_BYTES: Final = 256
NOTES: Final = 64
FLOCK: Final = struct.Struct("hhqqi0q")

guard = threading.RLock()
_directories: dict[tuple[int, int], LockDirectory] = {}


@dataclass(slots=True)
class Waiter:
    """One place in this process's line. ``future`` wakes it before its next poll."""

    holder: str
    asked_at: float = 0.0
    delay: float = TURN_POLL[0]
    future: asyncio.Future[None] | None = None

    def gone(self) -> bool:
        """Whether it neither waits nor has asked for a second."""
        return self.future is None and self.asked_at < time.monotonic() - GONE_SECONDS

    def wake(self) -> None:
        """Let it ask again at once, in its own event loop."""
        if self.future is not None:
            # A loop that was closed has nobody left to wake.
            with suppress(RuntimeError):
                self.future.get_loop().call_soon_threadsafe(resolve, self.future)


@dataclass(slots=True)
class Turn:
    """What this process knows of one turn.

    Attributes:
        byte: where 'next' is; 'turn' is the byte after it.
        queued: this process holds 'next', for the first of its line.
    """

    descriptor: int
    key: int
    byte: int
    nonce: int = 0
    holder: str = ""
    since: float = 0.0
    queued: bool = False
    line: dict[int, Waiter] = field(default_factory=dict[int, Waiter])

    def advance(self, nonce: int) -> bool:
        """Go on as far as possible for ``nonce``: to 'next', to 'turn'. Return whether it may have the turn."""
        if self.line and self.first(nonce) != nonce:
            return False
        byte = self.byte
        if not self.queued and not self.nonce and _lock(self.descriptor, byte, 2):
            _unlock(self.descriptor, byte)
            return True
        if not self.queued:
            self.queued = _lock(self.descriptor, byte)
        if not self.queued or self.nonce or not _lock(self.descriptor, byte + 1):
            return False
        self.queued = False
        _unlock(self.descriptor, byte)
        return True

    def first(self, newcomer: int) -> int:
        """Return who of this process is next, skipping whoever has gone without a word."""
        for nonce, waiter in list(self.line.items()):
            if nonce == newcomer or not waiter.gone():
                return nonce
            del self.line[nonce]
        return newcomer

    def delay(self, nonce: int) -> float:
        """Return how long a waiter sleeps before it asks again."""
        if self.first(nonce) != nonce:
            return LINE_POLL
        if not self.queued:
            return random.uniform(*NEXT_POLL)  # noqa: S311
        if self.nonce:
            # Its holder is of this process and wakes us.
            return LOCAL_POLL
        waiter = self.line[nonce]
        delay, waiter.delay = waiter.delay, min(waiter.delay * 2, TURN_POLL[1])
        return delay

    def release(self, nonce: int) -> None:
        """Take ``nonce`` out, wherever it is, and wake who comes next."""
        if self.nonce == nonce:
            self.nonce = 0
            _unlock(self.descriptor, self.byte + 1)
        line = self.line
        line.pop(nonce, None)
        if not line:
            if self.queued:
                self.queued = False
                _unlock(self.descriptor, self.byte)
        elif not self.nonce:
            next(iter(line.values())).wake()

    def write_note(self) -> None:
        """Tell other processes who holds this turn, as well as a record without a lock of its own can."""
        text = self.holder.encode("utf-8", "replace")[: NOTE_BYTES - NOTE.size - 4]
        data = NOTE.pack(b"H1", self.key, self.since, len(text)) + text
        # A full disk must not refuse a turn for the sake of an error message.
        with suppress(OSError):
            os.pwrite(self.descriptor, data + zlib.crc32(data).to_bytes(4, "little"), self._note_at())

    def read_note(self) -> Holder | None:
        """Return what the last holder wrote, unless it is of another turn or half written."""
        data = os.pread(self.descriptor, NOTE_BYTES, self._note_at())
        if len(data) < NOTE.size:
            return None
        mark, key, since, size = NOTE.unpack_from(data)
        body, check = data[: NOTE.size + size], data[NOTE.size + size :][:4]
        if mark != b"H1" or key != self.key or zlib.crc32(body).to_bytes(4, "little") != check:
            return None
        return Holder(body[NOTE.size :].decode("utf-8", "replace"), since)

    def _note_at(self) -> int:
        return self.key // FILES % NOTES * NOTE_BYTES


class LockDirectory:
    """The descriptors and turns of one directory in this process. `guard` guards all of it."""

    def __init__(self, path: Path, descriptor: int, identity: tuple[int, int]) -> None:
        self.path = path
        self.identity = identity
        self.descriptor = descriptor
        self.files: dict[int, int] = {}
        self.turns: dict[int, Turn] = {}
        self.users = 0
        self.closed = False

    @classmethod
    def join(cls, path: Path, *, check: bool) -> LockDirectory:
        """Return this process's only object for that directory, with one user more."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if check:
                check_local(path)
            # Held open so that its inode can't become another directory's while it is in the registry.
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, "make the lock directory", path) from error
        found = os.fstat(descriptor)
        with guard:
            table = _directories.get((found.st_dev, found.st_ino))
            if table is None:
                table = cls(path, descriptor, (found.st_dev, found.st_ino))
                _directories[table.identity] = table
            else:
                os.close(descriptor)
            table.users += 1
            return table

    def part(self) -> None:
        """Stop using the directory; the last user closes its files."""
        self.users -= 1
        if self.users == 0 and not self.closed:
            del _directories[self.identity]
            self.shut()

    def shut(self) -> None:
        """Close the files, which frees every lock that this process alone holds."""
        self.closed = True
        for descriptor in (*self.files.values(), self.descriptor):
            os.close(descriptor)
        self.files.clear()
        self.turns.clear()

    def turn(self, address: str) -> Turn:
        """Return the turn, for somebody who is about to take it or to wait for it."""
        key = _key(address)
        turn = self.turns.get(key)
        if turn is None:
            turn = self.turns[key] = self._turn(key)
        return turn

    def find(self, address: str) -> Turn | None:
        """Return what is known of the turn, unless nobody here has to do with it."""
        return self.turns.get(_key(address))

    def note(self, address: str) -> Holder | None:
        """Return who held the turn last, as its process wrote it."""
        key = _key(address)
        return self._turn(key).read_note()

    def leave(self, address: str, nonce: int) -> None:
        """Give the turn or the place back, if ``nonce`` has one."""
        key = _key(address)
        turn = self.turns.get(key)
        if turn is not None:
            turn.release(nonce)
            if not turn.nonce and not turn.line:
                del self.turns[key]

    def _turn(self, key: int) -> Turn:
        number = key % FILES
        descriptor = self.files.get(number)
        if descriptor is None:
            descriptor = self._file(number)
        return Turn(descriptor, key, key // FILES * 2)

    def _file(self, number: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(f"{number:02d}.lock", flags, 0o600, dir_fd=self.descriptor)
        except OSError as error:
            raise from_os_error(error, "open a lock file", self.path) from error
        self.files[number] = descriptor
        return descriptor


@lru_cache(maxsize=4096)
def _key(address: str) -> int:
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little")


def _lock(descriptor: int, byte: int, count: int = 1) -> bool:
    """Lock bytes if no other process has any of them."""
    try:
        _set_lock(descriptor, _LOCKED, byte, count)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StorageUnavailableError(
            f"The file system refused a byte-range lock: {error.strerror}.",
            remedy="Put the state on a local disk whose file system keeps locks.",
        ) from error
    return True


def _unlock(descriptor: int, byte: int) -> None:
    _set_lock(descriptor, _FREE, byte, 1)


if sys.platform == "linux":
    _SET, _LOCKED, _FREE = fcntl.F_OFD_SETLK, fcntl.F_WRLCK, fcntl.F_UNLCK

    def _set_lock(descriptor: int, kind: int, byte: int, count: int) -> None:
        fcntl.fcntl(descriptor, _SET, FLOCK.pack(kind, os.SEEK_SET, byte, count, 0))

elif sys.platform != "win32":
    _LOCKED, _FREE = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN

    def _set_lock(descriptor: int, kind: int, byte: int, count: int) -> None:
        fcntl.lockf(descriptor, kind, count, byte, os.SEEK_SET)


def resolve(future: asyncio.Future[None]) -> None:
    """Wake a sleeper, unless it was woken or cancelled already."""
    if not future.done():
        future.set_result(None)


def _forked() -> None:
    """In a forked child: close what it shares with its parent, so that only the parent holds its turns."""
    for table in _directories.values():
        table.shut()
    _directories.clear()
    guard.release()


if sys.platform != "win32":
    os.register_at_fork(before=guard.acquire, after_in_parent=guard.release, after_in_child=_forked)
