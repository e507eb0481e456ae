"""Every error agentstate raises, in one tree, so that one ``except StateError`` catches them all.

::

    StateError
    ├── ConfigError                 a setting is wrong; names file, line, key
    │   ├── UnknownBackendError
    │   ├── MissingDependencyError  (ImportError) the driver isn't installed
    │   └── HandlerSignatureError   (TypeError) the handler can't receive its state
    ├── ContextIdError              (ValueError) no usable id
    ├── ContextNotFoundError        (LookupError) absent, or somebody else's
    ├── UnsupportedValueError       (TypeError) wouldn't come back the same
    ├── ValueTooLargeError          (ValueError)
    ├── UnsavedChangeError          a value was changed but not set
    ├── ConflictError               somebody else changed what this commit relied on
    ├── OnceMismatchError           one idempotency key, two different inputs
    ├── AlreadyDone                 done before; the result wasn't storable
    ├── VetoError                   a before-commit hook refused
    ├── TurnError
    │   ├── TurnInProgressError     another turn holds the state, or too many wait
    │   ├── TurnTimeoutError        (TimeoutError) waited too long, or ran too long
    │   ├── TurnClosedError         used after its end
    │   ├── ReadOnlyTurnError       a write in ``turns="read"``
    │   └── LeaseLostError          another holder took the turn; the commit was refused
    └── StorageError
        ├── StorageUnavailableError (ConnectionError) can't be reached
        ├── StorageAccessError      (PermissionError) password, rights, not writable
        ├── StorageFullError        disk or memory is full
        ├── StorageClosedError
        ├── CommitUnknownError      the reply was lost and the outcome can't be found out
        ├── DamagedStateError       stored bytes are not what was written
        ├── NewerFormatError        written by a newer release
        └── UnsupportedError        this backend can't do that

Each says what happened, where, and (``remedy``) how to mend it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = [
    "AlreadyDone",
    "CommitUnknownError",
    "ConfigError",
    "ConflictError",
    "ContextIdError",
    "ContextNotFoundError",
    "DamagedStateError",
    "HandlerSignatureError",
    "LeaseLostError",
    "MissingDependencyError",
    "NewerFormatError",
    "OnceMismatchError",
    "ReadOnlyTurnError",
    "StateError",
    "StorageAccessError",
    "StorageClosedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "TurnClosedError",
    "TurnError",
    "TurnInProgressError",
    "TurnTimeoutError",
    "UnknownBackendError",
    "UnsavedChangeError",
    "UnsupportedError",
    "UnsupportedValueError",
    "ValueTooLargeError",
    "VetoError",
]


class StateError(Exception):
    """Root of all agentstate errors.

    Attributes:
        scope: the state concerned, where there is one.
        remedy: one sentence that says how to mend it, or an empty string.
    """

    def __init__(self, message: str, *, scope: StateScope | None = None, remedy: str = "") -> None:
        self.scope = scope
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".rstrip() if remedy else message)


class ConfigError(StateError):
    """A setting is wrong; the message names the file, the line and the key."""


class UnknownBackendError(ConfigError):
    """No backend has that name or URL scheme."""


class MissingDependencyError(ConfigError, ImportError):
    """A driver isn't installed; the remedy is the exact install command."""


class HandlerSignatureError(ConfigError, TypeError):
    """A decorated handler takes none of the injected parameters."""


class ContextIdError(StateError, ValueError):
    """No id could be found for the state, or the id can't be used."""


class ContextNotFoundError(StateError, LookupError):
    """There is no such state for this caller."""


class UnsupportedValueError(StateError, TypeError):
    """A value would not come back the same.

    Attributes:
        path: where in the value, as in ``$.items[3].when``.
    """

    def __init__(self, message: str, *, path: str = "$", remedy: str = "") -> None:
        self.path = path
        super().__init__(message, remedy=remedy)


class ValueTooLargeError(StateError, ValueError):
    """A value is larger or deeper than the limit."""


class UnsavedChangeError(StateError):
    """A value was changed after it was read, and never set.

    Attributes:
        key: the variable concerned.
    """

    def __init__(self, message: str, *, key: str, remedy: str = "") -> None:
        self.key = key
        super().__init__(message, remedy=remedy)


class ConflictError(StateError):
    """Somebody else changed what this commit relied on; nothing was stored.

    Attributes:
        expected: the stamp that was read (``None``: absent).
        found: the stamp that is there now (``None``: absent).
        what: the entry, section or log concerned.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: StateScope | None = None,
        expected: object = None,
        found: object = None,
        what: str = "",
        remedy: str = "Run the turn again; it then sees the other change.",
    ) -> None:
        self.expected = expected
        self.found = found
        self.what = what
        super().__init__(message, scope=scope, remedy=remedy)


class OnceMismatchError(StateError):
    """An idempotency key came a second time with another input."""


class AlreadyDone(StateError):  # noqa: N818 - the name says a fact, not a fault
    """The idempotency key was served before, and its result couldn't be stored.

    Attributes:
        commit_id: the commit that served it.
    """

    def __init__(self, message: str, *, commit_id: int, scope: StateScope | None = None) -> None:
        self.commit_id = commit_id
        super().__init__(message, scope=scope)


class VetoError(StateError):
    """A before-commit hook refused the commit; nothing was stored."""


class TurnError(StateError):
    """Root of the errors about taking, keeping and ending a turn."""


class TurnInProgressError(TurnError):
    """Another turn holds this state, or too many callers wait for it already."""


class TurnTimeoutError(TurnError, TimeoutError):
    """The turn couldn't be had in ``wait=`` seconds, or ran longer than ``turn_timeout=``."""


class TurnClosedError(TurnError):
    """A turn, frame or context was used after its end."""


class ReadOnlyTurnError(TurnError):
    """A write was tried in a read-only turn."""


class LeaseLostError(TurnError):
    """Another holder took this turn over; the late commit was refused and nothing was stored."""


class StorageError(StateError):
    """Root of the errors that come from a backend."""


class StorageUnavailableError(StorageError, ConnectionError):
    """The server or the file can't be reached; nothing was stored."""


class StorageAccessError(StorageError, PermissionError):
    """Wrong password, missing rights, or a directory that isn't writable."""


class StorageFullError(StorageError):
    """The disk or the server's memory is full; nothing was stored. Reading and deleting still work."""


class StorageClosedError(StorageError):
    """The storage was used after ``close()``, or in a forked child."""


class CommitUnknownError(StorageError):
    """The reply to a commit was lost and its outcome couldn't be found out in time.

    Attributes:
        commit_id: ask ``storage.outcome(scope, commit_id)`` later.
    """

    def __init__(self, message: str, *, commit_id: int, scope: StateScope | None = None, remedy: str = "") -> None:
        self.commit_id = commit_id
        super().__init__(message, scope=scope, remedy=remedy)


class DamagedStateError(StorageError):
    """Stored bytes are not what was written; they were left as they are."""


class NewerFormatError(StorageError):
    """The state was written by a newer release; it was left as it is."""


class UnsupportedError(StorageError):
    """This backend can't do what was asked."""
