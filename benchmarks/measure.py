"""Rounds in which contenders alternate, and what can be said of their ratio."""

from __future__ import annotations

import asyncio
from random import Random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.workload import Contender

CALLERS = 64
RESAMPLED = 2000


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and the interval that holds it in 95 of 100 resamplings."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the ratio of figures taken round by round."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    dice = Random(1)
    medians = sorted(median(dice.choices(found, k=len(found))) for _ in range(RESAMPLED))
    return Ratio(median(found), medians[RESAMPLED // 40], medians[-RESAMPLED // 40])


async def alternate(measures: Sequence[Callable[[], Awaitable[float]]], rounds: int) -> list[list[float]]:
    """Return each measure's figure in each round; every other round goes backwards."""
    found: list[list[float]] = [[] for _ in measures]
    for number in range(rounds):
        order = range(len(measures)) if number % 2 == 0 else range(len(measures) - 1, -1, -1)
        for n in order:
            found[n].append(await measures[n]())
    return found


def latency(contender: Contender, conversations: Sequence[str], turns: int) -> Callable[[], Awaitable[float]]:
    """Return what measures one caller's median turn in µs."""

    async def measure() -> float:
        times: list[float] = []
        for n in range(turns):
            conversation = conversations[n % len(conversations)]
            begun = perf_counter()
            await contender.turn(conversation)
            times.append(perf_counter() - begun)
        return median(times) * 1e6

    return measure


def throughput(contender: Contender, conversations: Sequence[str], turns: int) -> Callable[[], Awaitable[float]]:
    """Return what measures turns per second of as many callers as there are conversations."""

    async def caller(conversation: str) -> None:
        for _ in range(turns):
            await contender.turn(conversation)

    async def measure() -> float:
        begun = perf_counter()
        await asyncio.gather(*(caller(conversation) for conversation in conversations))
        return len(conversations) * turns / (perf_counter() - begun)

    return measure
