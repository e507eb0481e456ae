"""What an error of the operating system means for a state: one table for all backends on files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from agentstate.errors import StorageAccessError, StorageError, StorageFullError, StorageUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["from_os_error"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
ACCESS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP}
)


def from_os_error(error: OSError, doing: str, path: Path) -> StorageError:
    """Return the typed error for what went wrong while ``doing`` something at ``path``."""
    said = f"Can't {doing} at {path}: {error.strerror or error}."
    if error.errno in FULL:
        return StorageFullError(said, remedy="Free some space, or raise the quota; reading still works.")
    if error.errno in ACCESS:
        return StorageAccessError(said, remedy="Choose a directory that this user can write to.")
    return StorageUnavailableError(said, remedy="Check the disk and the limits of this process, then try again.")
