"""States of agentstate in a folder of files: an engine of one's own, in a page.

`Folder` is the byte store: five methods. `FolderStorage` gives it options, so that a URL, a configuration file and
the environment can name it; the entry point in ``pyproject.toml`` makes it known.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, field_validator

from agentstate.storage.keyvalue import KeyValueStorage

if TYPE_CHECKING:
    from collections.abc import Callable


class Folder:
    """A file for each key. Files are replaced whole, and swapped under a lock between processes."""

    def __init__(self, path: Path, *, synced: bool) -> None:
        """Use a folder, which is made when it is missing; ``synced`` lets each change survive a loss of power."""
        self._path = path
        self._synced = synced
        self._guard = threading.Lock()
        path.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key."""
        try:
            return self._file(key).read_bytes().partition(b"\n")[2]
        except FileNotFoundError:
            return None

    def set(self, key: str, value: bytes) -> None:
        """Keep bytes under a key: in a new file, which then takes the old one's place."""
        file = self._file(key)
        new = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with new.open("wb") as out:
            out.write(key.encode() + b"\n" + value)  # the key in its first line: the name is only its digest
            out.flush()
            if self._synced:
                os.fsync(out.fileno())
        new.replace(file)
        self._sync()

    def delete(self, key: str) -> None:
        """Remove a key."""
        self._file(key).unlink(missing_ok=True)
        self._sync()

    def list_keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a text."""
        found: list[str] = []
        for file in self._path.glob("*.doc"):
            try:
                with file.open("rb") as lines:
                    key = lines.readline().decode().removesuffix("\n")
            except FileNotFoundError:
                continue  # removed since it was listed
            if key.startswith(prefix):
                found.append(key)
        return found

    def compare_and_swap(self, key: str, expected: bytes | None, new: bytes) -> bool:
        """Keep bytes if what they replace is there: what makes it safe between processes."""
        # The kernel's lock keeps other processes out, and the other one this process's threads.
        with self._guard, (self._path / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.get(key) != expected:
                return False
            self.set(key, new)
            return True

    def _file(self, key: str) -> Path:
        return self._path / f"{hashlib.sha256(key.encode()).hexdigest()}.doc"

    def _sync(self) -> None:
        if self._synced:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class FolderOptions(BaseModel, extra="forbid", frozen=True):
    """What can be set about the folder; unknown names are refused."""

    url: str = "folder://./folder_states"
    durability: Literal["full", "normal"] = "full"

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not url.startswith(("folder:///", "folder://./")):
            raise ValueError("a url is folder:///absolute/folder or folder://./relative")
        return url


class FolderStorage(KeyValueStorage):
    """Keeps states in a folder, safely between the processes of one machine."""

    Options: ClassVar[type[FolderOptions]] = FolderOptions
    name = "folder"

    def __init__(self, options: FolderOptions, *, clock: Callable[[], float] = time.time) -> None:
        """Use the folder that the options name."""
        path, full = Path(options.url.removeprefix("folder://")), options.durability == "full"
        super().__init__(Folder(path, synced=full), durability="power" if full else "process", clock=clock)
        self.location = str(path)

    @classmethod
    def from_options(cls, options: FolderOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe; what configuration calls."""
        return cls(options, clock=clock or time.time)
