"""The system calls of the file backend, each in one place.

Everything that touches the disk goes through a `Disk`, so that a test can count it, make it
fail, or end the process between any two steps. Errors are the operating system's; the callers
know what they meant and translate them. Blocks: for worker threads only.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentstate.errors import UnsupportedError

if sys.platform == "win32":
    raise UnsupportedError("The file backend needs POSIX file locks.", remedy="Use memory, or a server's backend.")

import fcntl

__all__ = ["Disk"]

FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)

_kept: set[int] = set()


class Disk:
    """Opens, reads and changes files; nothing is opened through a symbolic link."""

    def open(self, path: str, flags: int) -> int:
        """Open a plain file, private to its owner when this makes it.

        Raises:
            OSError: it is a link, a device or a pipe (``ELOOP``), or what the system says.
        """
        descriptor = os.open(path, flags | FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "not a plain file", path)
        return descriptor

    def close(self, descriptor: int) -> None:
        """Close a file."""
        _kept.discard(descriptor)
        os.close(descriptor)

    def keep(self, path: str, flags: int) -> int:
        """Open a file that stays open; a forked child closes it, and with it what it would share of its locks."""
        descriptor = self.open(path, flags)
        _kept.add(descriptor)
        return descriptor

    def read(self, descriptor: int, start: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``start``; fewer only at the end of the file."""
        data = os.pread(descriptor, size, start)
        if len(data) in (0, size):
            return data
        pieces = [data]
        got = len(data)
        while got < size and (data := os.pread(descriptor, size - got, start + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it at the descriptor's place (the end, for one opened to append)."""
        done = os.write(descriptor, data)
        while done < len(data):
            done += os.write(descriptor, data[done:])

    def write_at(self, descriptor: int, data: bytes, start: int) -> None:
        """Write a few bytes at a place that doesn't cross a page's border."""
        os.pwrite(descriptor, data, start)

    def sync(self, descriptor: int) -> None:
        """Return when what was written has reached the disk itself."""
        if FULL_SYNC is not None:
            fcntl.fcntl(descriptor, FULL_SYNC)
        else:
            os.fdatasync(descriptor)

    def sync_directory(self, path: str) -> None:
        """Return when the names in a directory have reached the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(descriptor, size)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it."""
        Path(old).replace(new)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Remove a name; one that isn't there is no error."""
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - done for every commit, and a Path costs more than the call

    def make_directory(self, path: str) -> bool:
        """Make a private directory; return whether this made it.

        Raises:
            OSError: the name is a file's or a link's (``ENOTDIR``).
        """
        try:
            Path(path).mkdir(0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise OSError(errno.ENOTDIR, "not a directory", path) from None
            return False
        return True

    def write_new(self, path: str, data: bytes) -> None:
        """Write a file of its own name under a temporary one, sync it, and let it take the name's place."""
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        try:
            descriptor = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                self.write(descriptor, data)
                self.sync(descriptor)
            finally:
                self.close(descriptor)
            self.rename(temporary, path)
        except BaseException:
            self.unlink(temporary)
            raise


def _forked() -> None:
    """In a forked child: close what would keep its parent's locks alive."""
    for descriptor in _kept:
        os.close(descriptor)
    _kept.clear()


os.register_at_fork(after_in_child=_forked)
