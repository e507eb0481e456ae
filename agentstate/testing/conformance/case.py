"""What every class of the suite builds on: the fixtures a backend supplies, and short words.

A backend's test class supplies `StorageCase.make_storage`; the other fixtures it may
supply open more of the suite. What a storage declares not to be is skipped with the reason
``not declared: ...``; what it declares is tested.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import pytest
import pytest_asyncio

from agentstate.scope import StateScope
from agentstate.storage.protocol import Committed, Increment, Part, Put, ScopeQuery
from agentstate.testing.clock import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from agentstate.storage.protocol import Lease, LogItem, OnceRecord, Snapshot, Storage
    from agentstate.testing.processes import ProcessSpec

A = StateScope.conversation("a")
B = StateScope.conversation("b")


class MakeStorage(Protocol):
    """Makes an instance of the backend; each one opens the same data, within one test."""

    def __call__(self, clock: Callable[[], float]) -> Storage:
        """Return a storage that isn't open yet and takes its time from ``clock``."""
        ...


class Damage(Protocol):
    """Damages what is stored of one state, while no storage is open."""

    def __call__(self, scope: StateScope, how: Literal["flip", "cut"], seed: int) -> str:
        """Flip a bit of, or cut, some stored record (which one: by ``seed``) and say what was done."""
        ...


class MakeNewer(Protocol):
    """Makes a stored state look as if a newer release had written it."""

    def __call__(self, scope: StateScope) -> None:
        """Raise the format number of what is stored of ``scope``, while no storage is open."""
        ...


class StorageCase:
    """The fixtures of the suite. ``make_storage`` is the one that must be supplied."""

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Return a maker of storages on this test's data. Every backend supplies its own."""
        raise NotImplementedError("Give the test class a fixture make_storage(self) -> (clock) -> Storage.")

    @pytest.fixture
    def process_spec(self) -> ProcessSpec | None:
        """Return how worker processes open this test's data; ``None`` if they can't."""
        return None

    @pytest.fixture
    def damage(self) -> Damage | None:
        """Return what damages stored records; ``None`` where there is nothing to damage."""
        return None

    @pytest.fixture
    def make_newer(self) -> MakeNewer | None:
        """Return what makes a stored state look newer than this release."""
        return None

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the clock that ``storage`` runs on."""
        return FakeClock()

    @pytest_asyncio.fixture
    async def another(self, make_storage: MakeStorage) -> AsyncIterator[Callable[..., Awaitable[Storage]]]:
        """Return a function that opens one more instance on this test's data."""
        made: list[Storage] = []

        async def open_another(clock: Callable[[], float] = time.time) -> Storage:
            storage = make_storage(clock)
            made.append(storage)
            await storage.open()
            return storage

        yield open_another
        for storage in made:
            await storage.close()

    @pytest_asyncio.fixture
    async def storage(self, another: Callable[..., Awaitable[Storage]], clock: FakeClock) -> Storage:
        """Return an open storage on the fake clock."""
        return await another(clock)

    @pytest_asyncio.fixture
    async def live(self, another: Callable[..., Awaitable[Storage]]) -> Storage:
        """Return an open storage on the real clock."""
        return await another(time.time)


def need(declared: object, capability: str) -> None:
    """Skip the test unless the storage declares the capability."""
    if not declared:
        pytest.skip(f"not declared: {capability}")


def offered(hook: object, fixture: str) -> None:
    """Skip the test unless the backend's test class supplies an optional fixture."""
    if hook is None:
        pytest.skip(f"not offered: the fixture {fixture}")


async def commit(
    storage: Storage,
    scope: StateScope = A,
    *,
    commit_id: int | None = None,
    lease: Lease | None = None,
    release: bool = False,
    once: OnceRecord | None = None,
    **change: Any,
) -> Committed:
    """Commit one part; ``change`` holds the fields of `Part`."""
    part = Part(scope=scope, **change)
    (done,) = await storage.commit([part], commit_id=commit_id or new_id(), lease=lease, release=release, once=once)
    return done


async def put(storage: Storage, scope: StateScope = A, /, **variables: bytes) -> Committed:
    """Set entries of the section ``variables``."""
    return await commit(storage, scope, puts=[Put("variables", key, value) for key, value in variables.items()])


async def add(storage: Storage, scope: StateScope = A, key: str = "n", by: int = 1) -> Committed:
    """Add to a counter of the section ``variables``."""
    return await commit(storage, scope, increments=[Increment("variables", key, by)])


async def read(storage: Storage, scope: StateScope = A) -> Snapshot:
    """Read all entries of a state, and the heads of its logs."""
    return await storage.read(scope, EVERYTHING)


async def value_of(storage: Storage, key: str, scope: StateScope = A, section: str = "variables") -> bytes | int | None:
    """Return the value of one entry, ``None`` when it is absent."""
    entry = (await read(storage, scope)).entries.get((section, key))
    return None if entry is None else entry.value


async def eventually(holds: Callable[[], Awaitable[bool]], what: str, seconds: float = 15.0) -> None:
    """Return when ``holds`` does; fail when it still doesn't after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, f"after {seconds} s it still doesn't hold that {what}"
        await asyncio.sleep(0.005)


def live_items(items: tuple[LogItem, ...], now: float) -> list[LogItem]:
    """Return the items that haven't expired.

    A storage may leave an expired item out or hand it out with the time it expired at:
    positions are dense, so it can hold the place of one until it is swept.
    """
    return [item for item in items if item.expires_at is None or item.expires_at > now]


async def log_of(storage: Storage, scope: StateScope = A, log: str = "history") -> list[bytes]:
    """Return the values of a log, oldest first."""
    page = await storage.read_log(scope, log)
    return [item.value for item in page.items]


async def picture(storage: Storage, scope: StateScope = A) -> dict[str, Any]:
    """Return everything that can be seen of a state, to compare before and after."""
    found = await read(storage, scope)
    logs = {
        name: (view._replace(items=()), (await storage.read_log(scope, name)).items)
        for name, view in found.logs.items()
    }
    records = await storage.journal(scope)
    page = await storage.scopes(ScopeQuery(kind=scope.kind, prefix=scope.id, tenant=scope.tenant))
    return {
        "meta": (found.stamp, found.birth, found.owner, found.parent, dict(found.labels), found.expires_at),
        "entries": dict(found.entries),
        "sections": dict(found.sections),
        "logs": logs,
        "journal": records,
        "listed": [info for info in page.items if info.scope == scope],
    }
