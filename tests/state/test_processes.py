"""Several processes on one conversation: nothing lost, nothing twice, nobody starved."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from agentstate import ConversationContext
from agentstate.storage import registry

SHARED = ("sqlite", "file", "valkey")
PROCESSES = 4


async def start(*args):
    """Start a worker process."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.state.worker", *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("backend", SHARED)
async def test_64_tasks_in_4_processes_lose_nothing(backend, storage_options):
    """Every read-modify-write, increment and append of 256 turns is there, once."""
    options = storage_options(backend)
    workers = [await start("contend", backend, json.dumps(options), str(n), "64") for n in range(PROCESSES)]
    async with asyncio.timeout(120):
        assert [await worker.wait() for worker in workers] == [0] * PROCESSES
    storage = registry.create(backend, options)
    state = await ConversationContext(storage).get("shared")
    assert state.variables == {"n": 256, "count": 256}
    assert sorted(m.content for m in state.history) == sorted(f"{p}-{t}" for p in range(PROCESSES) for t in range(64))
    assert [m.position for m in state.history] == list(range(1, 257))
    await storage.close()


@pytest.mark.parametrize("backend", SHARED)
async def test_4_processes_share_the_turns_fairly(backend, storage_options):
    """Each gets at least half of its share; nobody waits longer than a second."""
    options = storage_options(backend)
    workers = [await start("queue", backend, json.dumps(options), "2") for _ in range(PROCESSES)]
    async with asyncio.timeout(60):
        for worker in workers:
            assert await worker.stdout.readline() == b"ready\n"
        for worker in workers:
            worker.stdin.write(b"go\n")
        told = [json.loads(await worker.stdout.readline()) for worker in workers]
        assert [await worker.wait() for worker in workers] == [0] * PROCESSES
    turns, waits = [one[0] for one in told], [one[1] for one in told]
    assert min(turns) >= sum(turns) / PROCESSES / 2, turns
    assert max(waits) <= 1.0, waits
    storage = registry.create(backend, options)
    assert await ConversationContext(storage).get_variable("shared", "n") == sum(turns)
    await storage.close()
