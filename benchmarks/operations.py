"""Single operations outside of turns, and many idle conversations."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.measure import CALLERS
from benchmarks.report import Section, kept
from benchmarks.turns import Size, opened
from benchmarks.workload import Agentstate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentstate import ConversationContext
    from benchmarks.turns import Place

IDLE = 2000


async def _rate(call: Callable[[int], Awaitable[object]], callers: int, each: int) -> float:
    async def caller(number: int) -> None:
        for n in range(each):
            await call(number * each + n)

    begun = perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return callers * each / (perf_counter() - begun)


async def operations(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure sets, gets and increments of one variable per second."""
    section = Section(
        f"Operations per second outside of turns, 1 caller and {CALLERS}",
        ("backend", "set", f"set, {CALLERS}", "get", f"get, {CALLERS}", f"increment one counter, {CALLERS}", "kept"),
    )
    for backend in backends:
        ours = Agentstate(backend, place.options(backend))
        async with opened(ours):
            figures = await _figures(ours.context, size.turns)
            exact = await ours.context.get_variable("counted", "n") == CALLERS * size.turns
        section.add(backend, *(f"{one:,.0f}" for one in figures), kept(exact))
    return section


async def _figures(context: ConversationContext, each: int) -> list[float]:
    def set_one(n: int) -> Awaitable[object]:
        return context.set_variable(f"c-{n % CALLERS}", "v", n)

    def get_one(n: int) -> Awaitable[object]:
        return context.get_variable(f"c-{n % CALLERS}", "v")

    def count(_: int) -> Awaitable[object]:
        return context.increment("counted", "n")

    found: list[float] = []
    for call in (set_one, get_one):
        found += await _rate(call, 1, each * 5), await _rate(call, CALLERS, each)
    return [*found, await _rate(count, CALLERS, each)]


async def idle(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure listing and cleaning up of many conversations (2 messages and a variable each)."""
    count = IDLE if size.rounds > 1 else 100
    section = Section(
        f"{count:,} idle conversations, µs each", ("backend", "to make", "to list", "to clean up", "kept")
    )
    for backend in backends:
        ours = Agentstate(backend, place.options(backend))
        async with opened(ours):
            context = ours.context
            await context.cleanup_old_contexts(-1)
            times = [perf_counter()]
            await asyncio.gather(*(_make(context, number, count) for number in range(CALLERS)))
            times.append(perf_counter())
            listed = await _list_all(context)
            times.append(perf_counter())
            gone = await context.cleanup_old_contexts(-1)
            times.append(perf_counter())
        each = [(after - before) / count * 1e6 for before, after in pairwise(times)]
        section.add(backend, *(f"{one:,.1f}" for one in each), kept(listed == gone == count))
    return section


async def _make(context: ConversationContext, number: int, count: int) -> None:
    for n in range(number, count, CALLERS):
        async with context.turn(f"idle-{n}") as conversation:
            await conversation.add("user", "hello")
            await conversation.add("assistant", "hello")
            await conversation.set("seen", n)


async def _list_all(context: ConversationContext) -> int:
    found, cursor = 0, None
    while True:
        page = await context.list_contexts(limit=500, cursor=cursor)
        found, cursor = found + len(page), page.cursor
        if cursor is None:
            return found
