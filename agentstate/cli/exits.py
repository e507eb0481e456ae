"""How a command ends: one line on stderr that says what, where and how to mend it, and a code.

The codes are those of sysexits: 64 usage, 65 data, 69 unavailable, 70 internal, 75 try again,
78 configuration; 130 after an interrupt. A traceback is only shown with ``AGENTSTATE_DEBUG=1``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

import typer

from agentstate import errors
from agentstate.cli.output import safe

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONFIG", "DATA", "INTERNAL", "RETRY", "UNAVAILABLE", "USAGE", "code_of", "guarded", "say"]

USAGE: Final = 64
DATA: Final = 65
UNAVAILABLE: Final = 69
INTERNAL: Final = 70
RETRY: Final = 75
CONFIG: Final = 78
INTERRUPTED: Final = 130

_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.ConfigError, CONFIG),
    (errors.ContextIdError, USAGE),
    (errors.ContextNotFoundError, DATA),
    (errors.DamagedStateError, DATA),
    (errors.NewerFormatError, DATA),
    (errors.UnsupportedValueError, DATA),
    (errors.ValueTooLargeError, DATA),
    (errors.ConflictError, RETRY),
    (errors.TurnError, RETRY),
    (errors.CommitUnknownError, RETRY),
    (errors.StorageError, UNAVAILABLE),
)


def code_of(error: BaseException) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)


def say(message: str) -> None:
    """Write one line to stderr, whatever is in the message."""
    sys.stderr.write(f"agentstate: {safe(' '.join(message.split()))}\n")


def guarded(run: Callable[[], Any]) -> int:
    """Run a command and return its exit code; its errors are said, never raised."""
    try:
        result = run()
    except typer.Exit as end:
        return end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted.")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place where it can be said in one line
        return _failed(error)
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    if os.environ.get("AGENTSTATE_DEBUG"):
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, errors.StateError):
        say(str(error))
        return code_of(error)
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if format_message:  # a mistake in the arguments, as the parser reports it; none after help was shown
        message = format_message()
        if message.strip():
            say(f"{message} See --help.")
        return USAGE
    say(f"internal error: {type(error).__name__}: {error}. Run with AGENTSTATE_DEBUG=1 to see where, and report it.")
    return INTERNAL
