"""What an error of SQLite means for a state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.errors import (
    DamagedStateError,
    StateError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    ValueTooLargeError,
)
from agentstate.storage.oserrors import FULL
from agentstate.storage.sqlite.schema import driver

if TYPE_CHECKING:
    from pathlib import Path

    from agentstate.storage.sqlite.schema import Connection

__all__ = ["from_engine"]


def from_engine(error: Exception, path: Path, connection: Connection | None = None) -> Exception:
    """Return the typed error for one of the engine's; any other error comes back as it is."""
    if isinstance(error, StateError):
        return error
    apsw = driver()
    if not isinstance(error, apsw.Error):
        return error
    kind: type[StorageError] = StorageError
    remedy = "Please report this: the statement is agentstate's."
    number = connection.system_errno if connection is not None and isinstance(error, apsw.IOError) else 0
    if isinstance(error, apsw.FullError) or number in FULL:
        kind, remedy = StorageFullError, "Free some space, or raise the quota; reading still works."
    elif isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError)):
        kind, remedy = StorageAccessError, "Choose a file in a directory that this user can write to."
    elif isinstance(error, (apsw.NotADBError, apsw.CorruptError, apsw.FormatError)):
        kind, remedy = DamagedStateError, "Restore it from a backup, or choose another path; it was left as it is."
    elif isinstance(error, (apsw.BusyError, apsw.LockedError)):
        kind, remedy = StorageUnavailableError, "Another program holds the file: let it end its transaction."
    elif isinstance(error, apsw.TooBigError):
        return ValueTooLargeError(f"A value is too large for {path}: {error}.", remedy="Store it in parts.")
    elif isinstance(error, (apsw.IOError, apsw.ProtocolError, apsw.NoMemError)):
        kind, remedy = StorageUnavailableError, "Check the disk and the limits of this process, then try again."
    return kind(f"SQLite can't use {path}: {error}.", remedy=remedy)
