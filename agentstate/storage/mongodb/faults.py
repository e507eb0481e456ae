"""What the driver's errors mean for a state: one table, typed errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    StateError,
    StorageAccessError,
    StorageClosedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnsupportedError,
    UnsupportedValueError,
    ValueTooLargeError,
)

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = ["closed", "damaged", "is_lost", "too_large", "typed"]

# Server error codes, by what they mean here.
_ACCESS: Final = {11, 13, 18, 33, 8000}
_FULL: Final = {14031}
_UNSUPPORTED: Final = {20, 59, 115, 238}
_UNAVAILABLE: Final = {6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}


def closed(location: str) -> StorageClosedError:
    """Return the error for a storage that was closed."""
    return StorageClosedError(f"The storage at {location} was closed.", remedy="Make a new one.")


def damaged(scope: StateScope | str, what: str) -> DamagedStateError:
    """Return the error for stored documents that aren't what was written."""
    return DamagedStateError(
        f"{what} of {scope} is not what was written.",
        remedy="Restore this state from a backup, or drop it; it was left as it is.",
    )


def too_large(scope: StateScope | str, size: int) -> ValueTooLargeError:
    """Return the error for a commit that no document can hold."""
    return ValueTooLargeError(
        f"The commit to {scope} takes {size} bytes, and a document of MongoDB holds 16 MiB; nothing was stored.",
        remedy="Commit in several steps, or keep large values elsewhere and store where they are.",
    )


def is_lost(error: Exception) -> bool:
    """Whether nobody knows if the server did what it was asked."""
    from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError, WriteConcernError, WTimeoutError

    if isinstance(error, ServerSelectionTimeoutError):
        return False
    return isinstance(error, AutoReconnect | WriteConcernError | WTimeoutError) or _code(error) in _UNAVAILABLE


def typed(error: Exception, location: str) -> StateError:
    """Return the typed error for one of the driver's."""
    from pymongo import errors

    said = f"MongoDB at {location}: {_first_line(error)}."
    code = _code(error)
    if code in _UNAVAILABLE or (code is None and isinstance(error, errors.ConnectionFailure)):
        return StorageUnavailableError(
            f"Can't reach MongoDB at {location}: {_first_line(error)}.", remedy="Start the server, or correct the url."
        )
    if isinstance(error, errors.DocumentTooLarge):
        return too_large(location, 16 * 2**20)
    full = code in _FULL or "disk full" in said or "disk is full" in said
    for applies, kind, remedy in (
        (code in _ACCESS, StorageAccessError, "Correct user, password and authSource, and the user's rights."),
        (full, StorageFullError, "Free disk space on the server; reading and deleting still work."),
        (code in _UNSUPPORTED, UnsupportedError, "Use one of the servers that docs/backends.md names."),
        (isinstance(error, errors.ConfigurationError), ConfigError, "Correct the url of the storage."),
        (isinstance(error, OverflowError | UnicodeEncodeError), UnsupportedValueError, ""),
    ):
        if applies:
            return kind(said, remedy=remedy)
    return StorageError(said)


def _code(error: Exception) -> int | None:
    code: object = getattr(error, "code", None)
    return code if isinstance(code, int) else None


def _first_line(error: Exception) -> str:
    return str(error).partition(", full error")[0].partition(", Timeout:")[0].partition("\n")[0].rstrip(".")
