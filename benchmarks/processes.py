"""Four processes on one conversation: does each get its share, and is everything kept?"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from agentstate import ConversationContext
from agentstate.storage import registry
from benchmarks.report import Section, kept

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from benchmarks.turns import Place, Size

PROCESSES, TASKS = 4, 64
LONGEST = 1.0


async def _start(*arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.worker", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _run(what: str, backend: str, options: str, argument: str) -> list[list[float]]:
    workers = [await _start(what, backend, options, argument) for _ in range(PROCESSES)]
    for worker in workers:
        assert worker.stdout is not None
        await worker.stdout.readline()
    told = await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))
    return [json.loads(out) for out, _ in told]


async def fairness(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Let processes queue for turns of 5 ms on one conversation."""
    section = Section(
        f"{PROCESSES} processes queue on one conversation for {size.seconds:g} s, turns of 5 ms",
        ("backend", "turns each", "least share", "longest wait, ms", "gate", "kept"),
    )
    for backend in (one for one in backends if one != "memory"):
        told = await _run("queue", backend, json.dumps(place.options(backend)), str(size.seconds))
        turns, waits = [int(one[0]) for one in told], [one[1] for one in told]
        share = min(turns) / (sum(turns) / PROCESSES)
        good = share >= 0.5 and max(waits) <= LONGEST
        section.add(
            backend, " / ".join(map(str, turns)), f"{share:.0%}", f"{max(waits) * 1e3:.0f}",
            "≥ 50 %, ≤ 1 s", kept(good),
        )  # fmt: skip
    return section


async def contention(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Let many tasks of several processes change one conversation at once."""
    del size
    section = Section(
        f"{TASKS} tasks in each of {PROCESSES} processes on one conversation",
        ("backend", "turns/s", "increments kept", "appends kept", "kept"),
    )
    expected = PROCESSES * TASKS
    for backend in (one for one in backends if one != "memory"):
        options = place.options(backend)
        told = await _run("contend", backend, json.dumps(options), str(TASKS))
        storage = registry.create(backend, dict(options))
        state = await ConversationContext(storage).get("contended")
        await storage.close()
        appended = len({message.content for message in state.history})
        good = state.variables == {"n": expected, "count": expected} and appended == len(state.history) == expected
        rate = expected / max(one[0] for one in told)
        section.add(
            backend, f"{rate:,.0f}", f"{state.variables['n']}/{expected}", f"{appended}/{expected}", kept(good)
        )  # fmt: skip
    return section
