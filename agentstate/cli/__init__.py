"""The command line: ``agentstate --help``."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name, and exit with its code (see `agentstate.cli.exits`)."""
    import io
    import sys

    from agentstate.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ids are any text, terminals are not
    app()
