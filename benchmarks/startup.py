"""What using agentstate costs before any turn: its import, and its decorator at each call."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from agentstate import stateful
from agentstate.context import ConversationContext
from agentstate.handling import Request, begin, end, enter, finish
from agentstate.scope import StateScope
from agentstate.state.turn import Turn
from agentstate.storage import registry
from benchmarks.measure import alternate, ratio
from benchmarks.report import Section, kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.turns import Place, Size

IMPORT_MS, IMPORT_MB, DECORATOR_US = 180.0, 30.0, 5.0
MEASURE = """
import os, time

def resident():
    try:
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0

before, begun = resident(), time.perf_counter()
{statement}
spent = time.perf_counter() - begun
print([spent * 1e3, resident() - before])
"""
STATEMENTS = (
    "import agentstate",
    "from agentstate import stateful, Conversation, ConversationContext",
)


async def imports(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure time and memory of imports in a bare interpreter: the median of several."""
    del place, backends
    section = Section("Imports in a bare interpreter", ("statement", "ms", "MB", "gate", "kept"))
    for statement in STATEMENTS:
        figures = [_run(statement) for _ in range(max(size.rounds // 3, 1))]
        spent, memory = median(one[0] for one in figures), median(one[1] for one in figures)
        good = spent <= IMPORT_MS and memory <= IMPORT_MB
        section.add(
            f"`{statement}`", f"{spent:.0f}", f"{memory:.1f}", f"≤ {IMPORT_MS:.0f} ms, {IMPORT_MB:.0f} MB", kept(good)
        )
    return section


def _run(statement: str) -> tuple[float, float]:
    code = MEASURE.format(statement=statement)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    spent, memory = json.loads(out)
    return spent, memory


async def decorator(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure a call of an empty handler beside the same turn without the decorator."""
    del place, backends
    storage = registry.create("memory", {})

    async def plain(task, context, context_id):
        pass

    decorated: Any = stateful(storage=storage)(plain)
    task = {"context_id": "c", "text": "hello"}
    store, settings, _ = decorated.bound
    request, turns = Request(StateScope.conversation("c"), "plain", settings), size.turns * 5

    async def with_it() -> float:
        begun = perf_counter()
        for _ in range(turns):
            await decorated(task)
        return (perf_counter() - begun) / turns * 1e6

    async def without() -> float:
        begun = perf_counter()
        for _ in range(turns):
            turn = await enter(store, request)
            assert isinstance(turn, Turn)
            tokens = begin(turn)
            await plain(task, ConversationContext.in_frame(turn.frame), "c")
            end(tokens)
            await finish(turn, request, None)
        return (perf_counter() - begun) / turns * 1e6

    await with_it()
    await without()
    mine, theirs = await alternate([with_it, without], size.rounds)
    cost = median(one - other for one, other in zip(mine, theirs, strict=True))
    section = Section(
        "The decorator, an empty handler in memory",
        ("with it, µs", "without, µs", "ratio (95 %)", "its cost, µs", "gate", "kept"),
    )
    section.add(
        f"{median(mine):.1f}", f"{median(theirs):.1f}", str(ratio(mine, theirs)), f"{cost:.1f}",
        f"≤ {DECORATOR_US:.0f} µs", kept(cost <= DECORATOR_US),
    )  # fmt: skip
    return section
