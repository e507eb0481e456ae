"""``python -m benchmarks``: measure turns beside their floors, and say which gates are kept."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks import listing, operations, peers, processes, startup, turns
from benchmarks.report import Section, machine, write
from tests.postgres import PostgresServer
from tests.servers import ValkeyServer

Measure = Callable[[turns.Place, Sequence[str], turns.Size], Awaitable[Section]]
SECTIONS: dict[str, Measure] = {
    "turns": turns.one_caller,
    "many": turns.many_callers,
    "growth": turns.growth,
    "operations": operations.operations,
    "idle": operations.idle,
    "listing": listing.listing,
    "fairness": processes.fairness,
    "contention": processes.contention,
    "imports": startup.imports,
    "decorator": startup.decorator,
    "peers": peers.beside,
}
QUICK = turns.Size(rounds=1, turns=4, large=1000, seconds=0.5)


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)} (default: all but peers)"
    )
    parser.add_argument("--backends", default=",".join(turns.BACKENDS), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it works, not for figures")
    parser.add_argument("--dir", type=Path, help="where the files go (default: a temporary directory)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page, between its marks")
    parser.add_argument("--check", action="store_true", help="fail when a gate was missed")
    given = parser.parse_args()
    unknown = set(given.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    return given


async def main(given: argparse.Namespace) -> int:
    """Measure and report; with ``--check`` return 1 when a gate was missed."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    wanted = given.sections or [one for one in SECTIONS if one != "peers"]
    backends = [one for one in turns.BACKENDS if one in given.backends.split(",")]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentstate-bench-", dir=given.dir)))
        port = stack.enter_context(ValkeyServer()).port if "valkey" in backends else 0
        url = stack.enter_context(PostgresServer(durable=True)).url if "postgresql" in backends else ""
        heading = f"`python -m benchmarks {shlex.join(sys.argv[1:])}`: {machine(directory)}."
        console.print(heading, style="dim")
        found: list[Section] = []
        place, size = turns.Place(directory, port, url), QUICK if given.quick else turns.Size()
        for name in wanted:
            section = await SECTIONS[name](place, backends, size)
            section.show(console)
            found.append(section)
    if given.write is not None:
        write(given.write, found, heading)
    return int(given.check and any("missed" in row for section in found for row in section.rows))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(arguments())))
