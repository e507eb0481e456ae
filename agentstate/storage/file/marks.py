"""Which scopes are being written: what tells a crash between a commit and its line in the feed.

Each open store has a file of its own in ``inflight``, locked for as long as it is open, in which
it writes the names of the scopes it is writing, 64 bytes each. Setting and clearing marks is
one small write that needs no new blocks. A mark whose writer died stays, and says whom the
feed may not have been told of. Blocks: for worker threads, any number at once.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agentstate.storage.file.disk import Disk

__all__ = ["Marks"]

SLOT: Final = 64
NAME: Final = 40
EMPTY: Final = b" " * SLOT


class Marks:
    """The marks of one store: those set here, and those found in others' files."""

    def __init__(self, directory: str, disk: Disk) -> None:
        """Name the directory; the file is made with the first mark."""
        self._directory = directory
        self._disk = disk
        self._lock = threading.Lock()
        self._descriptor = -1
        self._file = ""
        self._table = bytearray()
        self._slots: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._free: list[int] = []

    def mark(self, names: Collection[str]) -> None:
        """Note that scopes are being written."""
        with self._lock:
            if self._descriptor < 0 and names:
                self._make()
            known = self._slots
            new = {name: self._slot(name) for name in names if name not in known}
            try:
                self._write(new.values())
            except OSError:
                self._clear(new.values())
                raise
            known.update(new)

    def unmark(self, names: Collection[str]) -> None:
        """Note that the feed knows all of these scopes. Others hear of it with `wipe`."""
        with self._lock:
            for name in names:
                if name in self._slots:
                    self._told[name] = self._slots.pop(name)

    def wipe(self) -> None:
        """Take the marks away of which `unmark` was told. One that stays costs the next writer a look, no more."""
        with self._lock:
            if self._told:
                told, self._told = self._told.values(), {}
                self._clear(told)
                with suppress(OSError):
                    self._write(told)

    def _slot(self, name: str) -> int:
        """Return a slot with this name in it, to be written."""
        slot = self._told.pop(name, None)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._table) // SLOT
        self._table[slot * SLOT : slot * SLOT + SLOT] = name.encode().ljust(SLOT)
        return slot

    def _clear(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._table[slot * SLOT : slot * SLOT + SLOT] = EMPTY
            self._free.append(slot)

    def _write(self, slots: Collection[int]) -> None:
        """Write these slots, and what lies between them, in one piece."""
        if slots:
            start, end = min(slots) * SLOT, max(slots) * SLOT + NAME
            self._disk.write_at(self._descriptor, bytes(self._table[start:end]), start)

    def left(self, name: str) -> bool:
        """Return whether somebody left a mark on a scope whose lock the caller holds."""
        return name in self._slots or any(name in names for _, names in self._others())

    def names(self) -> set[str]:
        """Return the scopes that are being written, or were when their writer died."""
        with self._lock:
            found = set(self._slots)
        return found.union(*(names for _, names in self._others()))

    def bury(self, told: Collection[str]) -> None:
        """Remove the files of stores that died, where the feed was told of all that they were writing."""
        for path, _ in self._others():
            try:
                descriptor = self._disk.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _names(self._disk.read(descriptor, 0, os.fstat(descriptor).st_size)) <= set(told):
                    self._disk.unlink(path)
            except BlockingIOError:
                pass
            finally:
                self._disk.close(descriptor)

    def close(self) -> None:
        """Remove the file, unless a mark has to stay."""
        with self._lock:
            if self._descriptor < 0:
                return
            if not self._slots:
                with suppress(OSError):
                    self._disk.unlink(self._file)
            self._disk.close(self._descriptor)
            self._descriptor = -1

    def _make(self) -> None:
        path = os.path.join(self._directory, f"{os.getpid()}-{os.urandom(6).hex()}")  # noqa: PTH118 - strings go on
        descriptor = self._disk.keep(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._descriptor, self._file = descriptor, path

    def _others(self) -> list[tuple[str, set[str]]]:
        """Return the files of all other stores, with the names in them."""
        with os.scandir(self._directory) as entries:
            paths = [entry.path for entry in entries if entry.path != self._file]
        found: list[tuple[str, set[str]]] = []
        for path in paths:
            try:
                descriptor = self._disk.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                found.append((path, _names(self._disk.read(descriptor, 0, os.fstat(descriptor).st_size))))
            finally:
                self._disk.close(descriptor)
        return found


def _names(data: bytes) -> set[str]:
    slots = (data[at : at + NAME] for at in range(0, len(data), SLOT))
    return {slot.decode() for slot in slots if len(slot) == NAME and slot.isalnum()}
