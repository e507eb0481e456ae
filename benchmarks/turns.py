"""Whole turns: one caller, 64 callers, and whether a turn grows with what is stored."""

from __future__ import annotations

from contextlib import asynccontextmanager
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.floors.local import DictFloor, JsonlFloor
from benchmarks.floors.postgresql import TwoStatementFloor
from benchmarks.floors.rocksdb import SharedSyncFloor, SyncedFloor
from benchmarks.floors.sqlite import GroupFloor, TwoHopFloor
from benchmarks.floors.valkey import AutoPipelinedFloor, TwoTripFloor
from benchmarks.measure import CALLERS, alternate, latency, ratio, throughput
from benchmarks.report import Section, kept
from benchmarks.workload import Agentstate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from benchmarks.workload import Contender

BACKENDS = ("memory", "file", "sqlite", "rocksdb", "valkey", "postgresql")
GROWTH_GATE = 1.2
MEMORY_GATE = 30.0
STORED = 100


class Size(NamedTuple):
    """How long a run takes."""

    rounds: int = 30
    turns: int = 40
    large: int = 10_000
    seconds: float = 10.0


class Place(NamedTuple):
    """Where contenders keep their data."""

    directory: Path
    port: int
    postgresql: str = ""

    def options(self, backend: str) -> dict[str, str]:
        """Return a backend's options."""
        return {
            "memory": {},
            "file": {"storage_dir": str(self.directory / "states")},
            "sqlite": {"url": f"sqlite:///{self.directory}/state.db"},
            "rocksdb": {"url": f"rocksdb:///{self.directory}/states.rocksdb"},
            "valkey": {"url": f"valkey://127.0.0.1:{self.port}"},
            "postgresql": {"url": self.postgresql},
        }[backend]

    def floors(self, backend: str) -> tuple[Contender, Contender]:
        """Return a backend's floors, for one caller and for many."""
        if backend == "memory":
            return DictFloor(), DictFloor()
        if backend == "file":
            (self.directory / "floor").mkdir(exist_ok=True)
            return JsonlFloor(self.directory / "floor"), JsonlFloor(self.directory / "floor")
        if backend == "rocksdb":
            return SyncedFloor(self.directory / "floor.rocksdb"), SharedSyncFloor(self.directory / "shared.rocksdb")
        if backend == "sqlite":
            return TwoHopFloor(self.directory), GroupFloor(self.directory)
        if backend == "postgresql":
            return TwoStatementFloor(self.postgresql), TwoStatementFloor(self.postgresql)
        return TwoTripFloor(self.port), AutoPipelinedFloor(self.port)


ONE_GATES = {"file": 3.0, "sqlite": 1.5, "rocksdb": 1.5, "valkey": 1.5, "postgresql": 1.5}
MANY_GATES = {"sqlite": 0.6, "rocksdb": 0.5, "valkey": 0.5, "postgresql": 0.5}


@asynccontextmanager
async def opened(*contenders: Contender) -> AsyncIterator[None]:
    """Open contenders, and close them at the end."""
    for one in contenders:
        await one.open()
    try:
        yield
    finally:
        for one in contenders:
            await one.close()


async def one_caller(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure the median turn of one caller beside its floor."""
    section = Section(
        f"A turn, one caller, {STORED} messages",
        ("backend", "µs", "floor", "floor's µs", "ratio (95 %)", "gate", "kept"),
    )
    for backend in backends:
        ours, floor = Agentstate(backend, place.options(backend)), place.floors(backend)[0]
        async with opened(ours, floor):
            measures: list[Callable[[], object]] = []
            for one in (ours, floor):
                await one.seed("one", STORED)
                measure = latency(one, ["one"], size.turns)
                await measure()
                measures.append(measure)
            mine, theirs = await alternate(measures, size.rounds)
        found, gate = ratio(mine, theirs), ONE_GATES.get(backend)
        good = found.value <= gate if gate is not None else median(mine) <= MEMORY_GATE
        section.add(
            backend, f"{median(mine):.0f}", floor.name.removeprefix("floor: "), f"{median(theirs):.1f}", str(found),
            f"≤ {gate}x" if gate is not None else f"≤ {MEMORY_GATE:.0f} µs", kept(good),
        )  # fmt: skip
    return section


async def many_callers(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure turns per second of 64 callers, each on a conversation of its own."""
    section = Section(
        f"Turns per second, {CALLERS} callers",
        ("backend", "turns/s", "floor", "floor's", "ratio (95 %)", "gate", "kept"),
    )
    names = [f"many-{n}" for n in range(CALLERS)]
    for backend in backends:
        ours, floor = Agentstate(backend, place.options(backend)), place.floors(backend)[1]
        async with opened(ours, floor):
            measures = []
            for one in (ours, floor):
                for name in names:
                    await one.seed(name, STORED)
                measure = throughput(one, names, max(size.turns // 4, 1))
                await measure()
                measures.append(measure)
            mine, theirs = await alternate(measures, max(size.rounds // 2, 1))
        found, gate = ratio(mine, theirs), MANY_GATES.get(backend)
        section.add(
            backend, f"{median(mine):,.0f}", floor.name.removeprefix("floor: "), f"{median(theirs):,.0f}", str(found),
            f"≥ {gate}" if gate is not None else "", kept(found.value >= gate) if gate is not None else "",
        )  # fmt: skip
    return section


async def growth(place: Place, backends: Sequence[str], size: Size) -> Section:
    """Measure the turn of a long conversation beside that of a short one, alternating in one process."""
    section = Section(
        f"Growth: a turn at {size.large:,} messages beside one at 10",
        ("backend", "µs at 10", f"µs at {size.large:,}", "ratio (95 %)", "gate", "kept"),
    )
    short, long = [f"short-{n}" for n in range(20)], [f"long-{n}" for n in range(2)]
    for backend in backends:
        ours = Agentstate(backend, place.options(backend))
        async with opened(ours):
            for name in short:
                await ours.seed(name, 10)
            for name in long:
                await ours.seed(name, size.large)
            measures = [latency(ours, short, size.turns), latency(ours, long, size.turns)]
            for measure in measures:
                await measure()
            few, many = await alternate(measures, size.rounds)
        found = ratio(many, few)
        section.add(
            backend, f"{median(few):.0f}", f"{median(many):.0f}", str(found), f"≤ {GROWTH_GATE}",
            kept(found.value <= GROWTH_GATE),
        )  # fmt: skip
    return section
