"""Log files that stay open between commits: to open one costs more than to write to it.

Whoever takes a descriptor has it alone until it is given back, so none is closed, and its number
given to another file, while somebody writes. Only the last ones used are kept. Any number of
threads at once; blocks only where files are closed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentstate.storage.file.disk import Disk

__all__ = ["OpenLogs"]

KEPT: Final = 64


class OpenLogs:
    """The open logs of one store, by path, each with its inode."""

    def __init__(self, disk: Disk) -> None:
        """Begin with none."""
        self._disk = disk
        self._lock = threading.Lock()
        self._open: dict[str, tuple[int, int]] = {}

    def take(self, path: str, inode: int) -> int | None:
        """Return a descriptor of this very file, if one is kept; it is the caller's until `give`."""
        with self._lock:
            found = self._open.pop(path, None)
        if found is None:
            return None
        descriptor, kept = found
        if kept == inode:
            return descriptor
        self._disk.close(descriptor)
        return None

    def give(self, path: str, inode: int, descriptor: int) -> None:
        """Keep an open file for the next one who writes to it."""
        with self._lock:
            stale = [self._open.pop(path, None)]
            self._open[path] = descriptor, inode
            if len(self._open) > KEPT:
                stale.append(self._open.pop(next(iter(self._open))))
        for one in stale:
            if one is not None:
                self._disk.close(one[0])

    def discard(self, path: str) -> None:
        """Close a file that is gone."""
        self.take(path, -1)

    def close(self) -> None:
        """Close all."""
        with self._lock:
            found, self._open = self._open, {}
        for descriptor, _ in found.values():
            self._disk.close(descriptor)
