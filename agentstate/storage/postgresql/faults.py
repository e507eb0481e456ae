"""What a server's refusal or a broken connection means for a state: one table, typed errors."""

from __future__ import annotations

from typing import Any, Final

from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    StateError,
    StorageAccessError,
    StorageClosedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    ValueTooLargeError,
)

__all__ = ["AGAIN", "LostError", "closed", "from_server", "is_ending", "unreachable"]

# The transaction was undone for the sake of another: it may simply be done again.
AGAIN: Final = frozenset({"40001", "40P01"})
# The server ends the connection, or says so after the fact.
ENDING: Final = ("57P01", "57P02", "57P05", "08")


class LostError(Exception):
    """No reply came to a call. Internal.

    Attributes:
        sent: it may have reached the server.
    """

    def __init__(self, reason: object, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(str(reason) or type(reason).__name__)


def closed(location: str) -> StorageClosedError:
    """Return the error for a storage that was closed."""
    return StorageClosedError(f"The storage at {location} was closed.", remedy="Make a new one.")


def unreachable(location: str, reason: object) -> StorageUnavailableError:
    """Return the error for a server that can't be reached or doesn't answer."""
    said = str(reason) or type(reason).__name__
    return StorageUnavailableError(
        f"Can't reach PostgreSQL at {location}: {said.rstrip('.')}.", remedy="Start the server, or correct the url."
    )


LOGIN: Final = "Correct username and password."
FULL: Final = "Free disk space or memory on the server; reading still works."
BUSY: Final = "Commits of one state are queued; run fewer at once, and check the server's isolation level and locks."

# What a SQLSTATE begins with, the error it is for us, and the remedy. The first match counts.
_MEANINGS: Final[tuple[tuple[str, type[StateError], str], ...]] = (
    ("28", StorageAccessError, LOGIN),
    ("3D000", ConfigError, "Create the database, or correct its name in the url."),
    ("42501", StorageAccessError, "Grant this user CREATE on the database, or USAGE and CREATE on the schema."),
    ("25006", StorageAccessError, "This is a replica, or the user may only read; name the primary in the url."),
    ("53100", StorageFullError, FULL),
    ("53200", StorageFullError, FULL),
    ("53300", StorageUnavailableError, "Lower pool_size, raise the server's max_connections, or use a pooler."),
    ("57P03", StorageUnavailableError, "The server is starting or stopping; try again."),
    ("57P", StorageUnavailableError, "The server ended the connection; try again."),
    ("57014", StorageUnavailableError, "Raise the server's statement_timeout for this user."),
    ("55P03", StorageUnavailableError, "Raise the server's lock_timeout for this user."),
    ("40", StorageUnavailableError, BUSY),
    ("08", StorageUnavailableError, "Look into the server's log."),
    ("54000", ValueTooLargeError, "Use shorter ids, owners and labels."),
    ("XX001", DamagedStateError, "Restore the database from a backup; it was left as it is."),
    ("XX002", DamagedStateError, "Run REINDEX on the schema's tables, or restore a backup."),
    ("42P01", StorageError, "Somebody removed our tables; open the storage anew, or restore a backup."),
    ("42883", StorageError, "Somebody removed our functions; open the storage anew."),
)


def is_ending(error: Any) -> bool:
    """Whether a refusal says that the connection ends, so that nobody knows what became of the call."""
    return str(error.sqlstate).startswith(ENDING)


def from_server(error: Any, location: str) -> StateError:
    """Return the typed error for a server's refusal (an ``asyncpg.PostgresError``)."""
    state = str(error.sqlstate)
    said = f"PostgreSQL at {location} answered: {error} ({state})."
    for mark, kind, remedy in _MEANINGS:
        if state.startswith(mark):
            return kind(said, remedy=remedy)
    return StorageError(said)
