"""A look at the head of SQLite's wal-index: has anything been committed to the file since?

In WAL mode every commit, of whatever process, ends by rewriting the first bytes of the shared
memory beside the file (``state.db-shm``; its layout is part of SQLite's documented format,
https://www.sqlite.org/walformat.html). SQLite itself compares these bytes to tell whether the pages
it holds are still those of the file; here they tell the same of decoded states, without a
system call, so that it may be asked on an event loop.

Closing any descriptor of that file would drop the locks that SQLite holds on it for the whole
process. So there is one mapping for each state file in a process, which is given up only when no
connection of ours to that file is open any more: connections are opened and closed between
`use` and `WalIndex.done`. Calls may come from any thread; nothing here waits.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Final

__all__ = ["WalIndex", "commits_between"]

HEAD_BYTES: Final = 48
FORMAT: Final = 3007000
NUMBERS: Final = struct.Struct("=I4xI")  # format, unused, count of commits

_lock = threading.Lock()
_indexes: dict[str, WalIndex] = {}


class WalIndex:
    """The mapping of one file's wal-index, shared by all connections of this process to that file."""

    def __init__(self, name: str) -> None:
        """See `use`."""
        self._name = name
        self.users = 0
        self._descriptor = -1
        self._map: mmap.mmap | None = None

    @classmethod
    def use(cls, path: Path) -> WalIndex:
        """Return the file's index for one more connection; to be called before that is opened."""
        name = os.path.realpath(path)
        with _lock:
            index = _indexes.get(name)
            if index is None or index.is_gone():
                index = _indexes[name] = cls(name)
            index.users += 1
            return index

    def is_gone(self) -> bool:
        """Whether the file was removed since it was mapped; one of the same name is another."""
        if self._descriptor < 0:
            return False
        try:
            return not os.path.samestat(os.fstat(self._descriptor), Path(f"{self._name}-shm").stat())
        except OSError:
            return True

    def map(self) -> None:
        """Begin to see the index; to be called when a connection has used the file in WAL mode.

        Where it can't be seen, or has another format, every head reads as unknown.
        """
        with _lock:
            if self._map is not None:
                return
            try:
                if self._descriptor < 0:
                    self._descriptor = os.open(f"{self._name}-shm", os.O_RDONLY | os.O_CLOEXEC)
                found = mmap.mmap(self._descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ)
            except (OSError, ValueError):
                return
            if NUMBERS.unpack_from(found)[0] == FORMAT:
                self._map = found
            else:
                found.close()

    def head(self) -> bytes | None:
        """Return the bytes that change with every commit; ``None``: unknown."""
        return None if self._map is None else self._map[:HEAD_BYTES]

    def done(self) -> None:
        """Take one connection off; to be called when it was closed."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                if _indexes.get(self._name) is self:
                    del _indexes[self._name]
                if self._map is not None:
                    self._map.close()
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                self._map, self._descriptor = None, -1


def commits_between(before: bytes, after: bytes) -> int:
    """Return how many commits lie between two heads, if the index was not made anew between."""
    return int(NUMBERS.unpack_from(after)[1] - NUMBERS.unpack_from(before)[1]) & 0xFFFFFFFF


if hasattr(os, "register_at_fork"):
    # A forked child keeps the mappings, and must not inherit a lock whose holder it lacks.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
