"""One page of very many states, and what they cost the process that doesn't use them."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Part, Put, ScopeQuery
from benchmarks.measure import CALLERS
from benchmarks.report import Section, kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.protocol import Storage
    from benchmarks.turns import Place, Size

STATES = 100_000
PAGE = 50
GATE_MS = 20.0
TAKEN = 20
QUERIES = {
    "by id": ScopeQuery(limit=PAGE, prefix="c-5"),
    "by age": ScopeQuery(limit=PAGE, order="updated", reverse=True),
    "by kind and age": ScopeQuery(limit=PAGE, kind="conversation", order="updated"),
    "of one owner": ScopeQuery(limit=PAGE, owner="user-7"),
}


async def listing(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure a page in the middle of everything, in several orders."""
    count = STATES if size.rounds > 1 else 500
    section = Section(
        f"A page of {PAGE} states out of {count:,}, ms",
        ("backend", *QUERIES, "process, bytes a state", "gate", "kept"),
    )
    aside = place._replace(directory=place.directory / "listing")
    aside.directory.mkdir()
    for backend in backends:
        prefix = {"key_prefix": "listing:"} if backend == "valkey" else {}
        storage = registry.create(backend, {**aside.options(backend), **prefix})
        await storage.open()
        before = _resident()
        await asyncio.gather(*(_make(storage, number, count) for number in range(CALLERS)))
        gc.collect()
        grown = max(_resident() - before, 0) / count
        times = [await _page(storage, query) for query in QUERIES.values()]
        await storage.close()
        figures = [*(f"{one:.1f}" for one in times), f"{grown:,.0f}"]
        section.add(backend, *figures, f"≤ {GATE_MS:.0f} ms", kept(max(times) <= GATE_MS))
    return section


async def _make(storage: Storage, number: int, count: int) -> None:
    for n in range(number, count, CALLERS):
        part = Part(
            scope=StateScope.conversation(f"c-{n}"),
            puts=[Put("variables", "seen", b"1")],
            owner=f"user-{n % 1000}",
        )
        await storage.commit([part], commit_id=n + 1)


async def _page(storage: Storage, query: ScopeQuery) -> float:
    """Return the median time of the pages that follow each other, without the first."""
    cursor = (await storage.scopes(query)).cursor
    times: list[float] = []
    for _ in range(TAKEN):
        begun = perf_counter()
        page = await storage.scopes(query._replace(cursor=cursor))
        times.append(perf_counter() - begun)
        cursor = page.cursor
        if cursor is None:
            break
    return median(times) * 1e3


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
