"""What using agentstate costs before any turn: its import, and its decorator at each call."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from agentstate import injection, stateful
from agentstate.call import Call, Plan
from agentstate.context import ConversationContext
from agentstate.handling import Request, in_turn
from agentstate.scope import StateScope
from agentstate.storage import registry
from benchmarks.measure import alternate
from benchmarks.report import Section, kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from agentstate.state.turn import Frame
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

    def ask() -> Request:
        return request

    def run(frame: Frame) -> Awaitable[None]:
        return plain(task, ConversationContext.in_frame(frame), "c")

    async def with_it() -> float:
        begun = perf_counter()
        for _ in range(turns):
            await decorated(task)
        return (perf_counter() - begun) / turns * 1e6

    async def without() -> float:
        begun = perf_counter()
        for _ in range(turns):
            await in_turn(store, ask, run)
        return (perf_counter() - begun) / turns * 1e6

    await with_it()
    await without()
    mine, theirs = await alternate([with_it, without], size.rounds)
    alone = median(_alone(decorated, plain, task, turns) for _ in range(size.rounds))
    section = Section(
        "The decorator, on an empty handler in memory",
        ("a call, µs", "its turn without the decorator", "difference", "the decorator's work alone", "gate", "kept"),
    )
    between = median(one - other for one, other in zip(mine, theirs, strict=True))
    section.add(
        f"{median(mine):.1f}", f"{median(theirs):.1f}", f"{between:.1f}", f"{alone:.1f}",
        f"alone ≤ {DECORATOR_US:.0f} µs", kept(alone <= DECORATOR_US),
    )  # fmt: skip
    return section


def _alone(decorated: Any, plain: Any, task: Any, calls: int) -> float:
    """Return what the decorator does for a call, in a loop without turns: settings, id, request, arguments."""
    call = Call(decorated.bound, Plan(injection.plan(plain, True), "plain"), plain, None, (task,), {})
    begun = perf_counter()
    for _ in range(calls):
        decorated(task).close()
        call.request()
        call.arguments(None, "c")  # type: ignore[arg-type]
    return (perf_counter() - begun) / calls * 1e6
