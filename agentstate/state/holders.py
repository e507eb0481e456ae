"""How this process names the holder of a turn to other processes; a forked child names itself."""

from __future__ import annotations

import os
import socket


def _here() -> str:
    return f" in {socket.gethostname()}:{os.getpid()}"


_process = _here()


def _renew_in_child() -> None:
    global _process  # noqa: PLW0603 - the child has another process id
    _process = _here()


os.register_at_fork(after_in_child=_renew_in_child)


def describe(handler: str) -> str:
    """Name a holder for other processes."""
    return f"{handler}{_process}"
