"""What a server's refusal or a broken connection means for a state: one table, typed errors."""

from __future__ import annotations

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
)

__all__ = ["LostError", "ServerError", "closed", "from_server", "unreachable"]


class ServerError(Exception):
    """An error reply. Internal: callers of a storage get what `from_server` makes of it."""

    @property
    def code(self) -> str:
        """The reply's first word, as in ``WRONGPASS``."""
        return str(self).partition(" ")[0]


class LostError(Exception):
    """No reply came to a command. Internal.

    Attributes:
        sent: it may have reached the server.
        timed_out: the connection was given up because no reply came in time.
    """

    def __init__(self, reason: str, *, sent: bool, timed_out: bool = False) -> None:
        self.sent = sent
        self.timed_out = timed_out
        super().__init__(reason)


def closed(location: str) -> StorageClosedError:
    """Return the error for a storage that was closed."""
    return StorageClosedError(f"The storage at {location} was closed.", remedy="Make a new one.")


def unreachable(location: str, reason: object) -> StorageUnavailableError:
    """Return the error for a server that can't be reached or doesn't answer."""
    return StorageUnavailableError(
        f"Can't reach Valkey at {location}: {reason}.", remedy="Start the server, or correct the url."
    )


LOGIN = "Correct username and password."
FULL = "Raise the server's maxmemory, free memory or disk space; reading and deleting still work."
CLUSTER = "Name a cluster by valkey+cluster://, and look whether all of its slots are served."

# What an error reply begins with or holds, the error it is for us, and the remedy. The first match counts.
_MEANINGS: tuple[tuple[str, type[StateError], str], ...] = (
    ("OOM ", StorageFullError, FULL),
    ("No space left", StorageFullError, FULL),
    ("WRONGPASS ", StorageAccessError, LOGIN),
    ("NOAUTH ", StorageAccessError, LOGIN),
    ("invalid password", StorageAccessError, LOGIN),
    ("without any password", StorageAccessError, "The server has no password: take it out of the settings."),
    ("NOPERM ", StorageAccessError, "Give this user the keys ~<key_prefix>* and the commands that the message names."),
    ("READONLY ", StorageUnavailableError, "This is a replica; name the primary in the url."),
    ("LOADING ", StorageUnavailableError, "The server is reading its data; try again when it is done."),
    ("MASTERDOWN ", StorageUnavailableError, "Bring the primary of this replica back, or name another server."),
    ("BUSY ", StorageUnavailableError, "Another script keeps the server busy; end it with SCRIPT KILL."),
    ("NOREPLICAS ", StorageUnavailableError, "The server demands more replicas than it has; start them."),
    ("CLUSTERDOWN ", StorageUnavailableError, CLUSTER),
    ("MISCONF ", StorageUnavailableError, "The server can't save its data; look into its log."),
    ("max number of clients", StorageUnavailableError, "Raise the server's maxclients, or close other clients."),
    ("DB index is out of range", ConfigError, "Choose a smaller db, or raise the server's databases."),
    ("cluster support disabled", UnsupportedError, "Write valkey:// for a server that stands alone."),
    ("MOVED ", UnsupportedError, CLUSTER),
    ("ASK ", UnsupportedError, CLUSTER),
    # Our scripts fail on their own only when they can't read what is stored.
    ("user_script:", DamagedStateError, "Restore this state from a backup, or drop it; it was left as it is."),
    ("CROSSSLOT ", UnsupportedError, CLUSTER),
)


def from_server(error: ServerError, location: str) -> StateError:
    """Return the typed error for an error reply."""
    text = str(error)
    said = f"Valkey at {location} answered: {text}."
    for mark, kind, remedy in _MEANINGS:
        if text.startswith(mark) if mark.endswith(" ") else mark in text:
            return kind(said, remedy=remedy)
    return StorageError(said)
