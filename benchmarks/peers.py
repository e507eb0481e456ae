"""Other libraries' turns beside ours: AgentUp's storages and OpenAI Agents' SQLite session.

They run in a process and an environment of their own (``.venvs/peers``, made once), in turns
with ours; the data is on the same disk and server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import CALLERS, alternate, latency, ratio, throughput
from benchmarks.report import Section
from benchmarks.turns import STORED, opened
from benchmarks.workload import Agentstate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.turns import Place, Size

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venvs" / "peers"
PEERS = {
    "memory": ("agentup memory",),
    "file": ("agentup file",),
    "sqlite": ("openai sqlite",),
    "valkey": ("agentup valkey",),
}


def python() -> Path:
    """Return the interpreter of the peers' environment, which is made if it isn't there."""
    found, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    requirements = HERE / "peers-requirements.txt"
    if not ready.exists() or ready.stat().st_mtime < requirements.stat().st_mtime:
        print(f"installing the peers into {ENVIRONMENT}, once")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([str(found), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        ready.touch()
    return found


class Peers:
    """The process in which peers run."""

    def __init__(self, place: Place) -> None:
        command = [str(python()), str(HERE / "peers_worker.py"), str(place.directory), str(place.port)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def measure(self, what: str, peer: str, turns: int) -> Callable[[], Awaitable[float]]:
        """Return what measures a peer."""

        async def measure() -> float:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            print(json.dumps([what, peer, turns]), file=self.process.stdin, flush=True)
            return float(self.process.stdout.readline())

        return measure

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


async def beside(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure turns of one and of many callers, ours and theirs in turns."""
    section = Section(
        f"Peers, the same turn at {STORED} messages",
        ("", "peer's µs", "ours", "peer / ours (95 %)", f"peer's turns/s, {CALLERS}", "ours", "ours / peer (95 %)"),
    )
    names = [f"peers-{n}" for n in range(CALLERS)]
    rounds, many = max(size.rounds // 3, 1), max(size.turns // 10, 1)
    peers = Peers(place)
    try:
        for backend in backends:
            ours = Agentstate(backend, place.options(backend))
            async with opened(ours):
                for name in names:
                    await ours.seed(name, STORED)
                for peer in PEERS.get(backend, ()):
                    singles = latency(ours, names[:1], size.turns), peers.measure("latency", peer, size.turns)
                    multiples = throughput(ours, names, many), peers.measure("throughput", peer, many)
                    for measure in (*singles, *multiples):
                        await measure()
                    mine, theirs = await alternate(singles, rounds)
                    our_rate, their_rate = await alternate(multiples, rounds)
                    section.add(
                        peer, f"{median(theirs):,.0f}", f"{median(mine):,.0f}", str(ratio(theirs, mine)),
                        f"{median(their_rate):,.0f}", f"{median(our_rate):,.0f}", str(ratio(our_rate, their_rate)),
                    )  # fmt: skip
    finally:
        peers.close()
    return section
