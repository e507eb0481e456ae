"""What an error of RocksDB means for a state. The driver raises plain exceptions: their text is all there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    StateError,
    StorageAccessError,
    StorageClosedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StalledError", "StoreInUseError", "from_engine"]

FULL = ("No space left", "File too large", "Disk quota exceeded")
ACCESS = ("Permission denied", "Read-only file system", "Not a directory", "Operation not permitted")
IN_USE = ("While lock file", "lock hold by current process")
DAMAGED = ("Corruption",)
OTHER_LAYOUT = ("Column families not opened", "does not match existing comparator")
STALLED = "Write stall"


class StoreInUseError(StorageUnavailableError):
    """Another process, or another storage of this one, has the directory open: RocksDB admits one."""


class StalledError(Exception):
    """The engine would have had to wait before this write, and nothing of it was done."""


def from_engine(error: Exception, path: Path) -> Exception:
    """Return the typed error for one of the engine's."""
    said = str(error)
    if isinstance(error, StateError):
        return error
    if type(error).__name__ == "DbClosedError":
        return StorageClosedError(f"The store {path} was closed.", remedy="Make a new storage.")
    if said.endswith(STALLED):
        return StalledError()
    if any(one in said for one in IN_USE):
        here = "this process" if IN_USE[1] in said else "another process"
        return StoreInUseError(
            f"The store {path} is open in {here}, and RocksDB admits one at a time.",
            remedy="Let that one close it; several processes share sqlite:///state.db or a server.",
        )
    if any(one in said for one in OTHER_LAYOUT):
        return ConfigError(f"{path} is a RocksDB store of another application.", remedy="Choose another directory.")
    kind: type[StorageError] = StorageUnavailableError
    remedy = "Check the disk and the limits of this process, then try again."
    if any(one in said for one in FULL):
        kind, remedy = StorageFullError, "Free some space, or raise the quota; reading still works."
    elif any(one in said for one in ACCESS):
        kind, remedy = StorageAccessError, "Choose a directory that this user can write to."
    elif any(one in said for one in DAMAGED):
        kind, remedy = DamagedStateError, "Restore it from a backup, or choose another path; it was left as it is."
    return kind(f"RocksDB can't use {path}: {said}.", remedy=remedy)
