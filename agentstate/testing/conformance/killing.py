"""Several processes on the same data, and processes that die in the middle."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import LeaseRequest
from agentstate.testing.conformance.case import A, StorageCase, add, need, offered, read, value_of
from agentstate.testing.crashing import check_sequence, counts_of, crash_cycle
from agentstate.testing.processes import ProcessSpec, start_worker
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from agentstate.testing.worker import CHILD_COMMITTED, CHILD_REFUSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.storage.protocol import Storage

CYCLES = 5
PROCESSES = 4


class ProcessTests(StorageCase):
    """Processes that share one state."""

    @pytest.fixture
    def spec(self, live: Storage, process_spec: ProcessSpec | None) -> ProcessSpec:
        """Return how workers open this test's data, or skip."""
        need(live.capabilities.shared, "shared")
        offered(process_spec, "process_spec")
        assert process_spec is not None
        return process_spec

    @pytest.mark.parametrize(("how", "tasks", "times"), [("blind", 64, 2), ("optimistic", 4, 3), ("turns", 16, 2)])
    async def test_contention(self, live: Storage, spec: ProcessSpec, how: str, tasks: int, times: int) -> None:
        """Tasks of four processes count and append on one state, by increments, checks or turns: nothing is lost."""
        with ExitStack() as stack:
            arguments = {"scope": A.text, "tasks": tasks, "times": times, "how": how}
            workers = [stack.enter_context(start_worker(spec, "count", **arguments)) for _ in range(PROCESSES)]
            assert [await worker.receive() for worker in workers] == ["ready"] * PROCESSES
            for worker in workers:
                await worker.tell("go")
            assert [await worker.receive() for worker in workers] == ["done"] * PROCESSES
        total = PROCESSES * tasks * times
        page = await live.read_log(A, "history")
        assert int(await value_of(live, "n") or 0) == total
        assert [(item.position, item.seq) for item in page.items] == [(n, n) for n in range(1, total + 1)]
        assert len({item.id for item in page.items}) == total

    async def test_a_turn_excludes_other_processes(self, live: Storage, spec: ProcessSpec) -> None:
        """A turn held by a process is held for the others, until it commits."""
        with start_worker(spec, "hold", scope=A.text, seconds=30.0) as worker:
            assert await worker.receive() == "held"
            nonce = new_id()
            found = await live.read(A, EVERYTHING, lease=LeaseRequest(nonce, 30.0, "parent"))
            assert found.lease is None
            assert found.holder is not None
            await live.leave(A, nonce)
            await worker.tell("commit")
            assert await worker.receive() == "done"
            assert (await take_turn(live, A, "parent", patience=20)).lease is not None
        assert await value_of(live, "by") == b"holder"

    async def test_a_dead_holder(self, live: Storage, spec: ProcessSpec) -> None:
        """A killed holder's turn can be taken: at once on one machine, else when the lease ends."""
        with start_worker(spec, "hold", scope=A.text, seconds=0.3) as worker:
            assert await worker.receive() == "held"
            worker.kill()
            assert (await take_turn(live, A, "parent", patience=30)).lease is not None

    async def test_a_dead_holder_with_a_living_child(self, live: Storage, spec: ProcessSpec) -> None:
        """A child forked by the holder doesn't keep the turn when the holder dies."""
        with start_worker(spec, "hold", scope=A.text, seconds=0.3) as worker:
            assert await worker.receive() == "held"
            await worker.tell("fork")
            child = await worker.receive()
            try:
                worker.kill()
                assert (await take_turn(live, A, "parent", patience=30)).lease is not None
            finally:
                os.kill(child, signal.SIGKILL)

    async def test_fork(self, live: Storage, spec: ProcessSpec) -> None:
        """A forked child is refused or opens anew; the parent goes on, and nothing is lost."""
        with start_worker(spec, "fork", scope=A.text) as worker:
            said = await worker.receive()
        assert said["child"] in {CHILD_REFUSED, CHILD_COMMITTED}
        wanted = 3 if said["child"] == CHILD_COMMITTED else 2
        assert await value_of(live, "n") == wanted

    async def test_a_stopped_holder(self, live: Storage, spec: ProcessSpec) -> None:
        """A holder stopped beyond its lease comes too late if another took the turn; else nobody could."""
        with start_worker(spec, "hold", scope=A.text, seconds=0.2) as worker:
            assert await worker.receive() == "held"
            worker.stop()
            if live.capabilities.leases == "network":
                entered = await take_turn(live, A, "parent", patience=30)
                assert entered.lease is not None
                worker.go_on()
                await worker.tell("commit")
                assert await worker.receive() == "LeaseLostError"
                assert await value_of(live, "by") is None
                return
            with pytest.raises(TimeoutError):
                await take_turn(live, A, "parent", patience=1.0)
            worker.go_on()
            await worker.tell("commit")
            assert await worker.receive() == "done"
        assert await value_of(live, "by") == b"holder"


class CrashTests(StorageCase):
    """kill -9 in the middle of commits."""

    async def test_killed_while_committing(
        self, live: Storage, process_spec: ProcessSpec | None, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """Every acknowledged commit survives its process, none is torn, and the data opens again."""
        need(live.capabilities.durability != "none", "durability")
        offered(process_spec, "process_spec")
        assert process_spec is not None
        scopes = [StateScope.conversation(f"crash-{n}") for n in range(3)]
        shared = live.capabilities.shared
        if not shared:
            await live.close()
        chance = random.Random(1)  # noqa: S311 - a schedule, not a secret
        counts = [0] * len(scopes)
        for _ in range(CYCLES):
            acknowledged = await crash_cycle(process_spec, scopes, counts, chance.uniform(0.0, 0.05))
            storage = await another()
            found = await counts_of(storage, scopes)
            await check_sequence(storage, scopes, acknowledged, since=counts)
            counts = found
            await storage.close()
        last = await another()
        await check_sequence(last, scopes, counts, since=[0] * len(scopes))
        assert sum(counts) > 0, "no commit was ever acknowledged: the workers were killed too early"
        await add(last, A)
        assert (await read(last, A)).stamp is not None
        await asyncio.sleep(0)
