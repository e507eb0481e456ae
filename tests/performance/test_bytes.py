"""How much a turn writes: what it changed, whatever is stored."""

from __future__ import annotations

import sys

import pytest

from agentstate.storage import registry
from tests.performance.conftest import seed, task, workload, written

TURNS = 1000
SMALL, LARGE = 10, 10_000
MOST = {"file": 3_000, "sqlite": 50_000}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of written bytes is Linux's")


async def bytes_per_turn(storage, context_id, count):
    """Return what a turn writes, over many turns."""
    handler = workload(storage)
    await handler(task(context_id))
    before = count()
    for _ in range(TURNS):
        await handler(task(context_id))
    return (count() - before) / TURNS


@pytest.mark.parametrize("backend", ["file", "sqlite"])
async def test_bytes_written_do_not_grow(backend, storage_options):
    """Over 1,000 turns, snapshots and checkpoints included, as much at 10,000 messages as at 10."""
    storage = registry.create(backend, storage_options(backend))
    await seed(storage, "small", SMALL)
    await seed(storage, "large", LARGE)
    small = await bytes_per_turn(storage, "small", written)
    large = await bytes_per_turn(storage, "large", written)
    assert large <= 1.2 * small, (small, large)
    assert small < MOST[backend], small
    await storage.close()


async def test_bytes_sent_to_valkey_do_not_grow(wire, valkey_prefix):
    """As much at 10,000 messages as at 10."""
    storage = registry.create("valkey", {"url": f"valkey://127.0.0.1:{wire.port}", "key_prefix": valkey_prefix})
    await seed(storage, "small", SMALL)
    await seed(storage, "large", LARGE)
    small = await bytes_per_turn(storage, "small", lambda: wire.sent)
    large = await bytes_per_turn(storage, "large", lambda: wire.sent)
    assert large <= 1.05 * small, (small, large)
    assert small < 2_000, small
    await storage.close()
