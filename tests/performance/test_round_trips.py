"""How often a turn goes to its storage: once to read, once to commit."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from agentstate import stateful
from agentstate.storage import registry
from tests.performance.conftest import seed, task, workload

TURNS = 20
MODES = ("queue", "reject", "optimistic")


@pytest.fixture
async def wired(wire, valkey_prefix):
    """A Valkey storage whose packets are counted."""
    made = registry.create("valkey", {"url": f"valkey://127.0.0.1:{wire.port}", "key_prefix": valkey_prefix})
    yield made
    await made.close()


@pytest.mark.parametrize("turns", MODES)
@pytest.mark.parametrize("messages", [10, 1000])
async def test_valkey_two_round_trips(wired, wire, valkey_server, turns, messages):
    """One script reads and takes the turn, one commits and gives it back: 2 packets, 2 commands from outside."""
    handler = workload(wired, turns=turns)
    await seed(wired, "c", messages)
    await handler(task("c"))
    before, packets = Counter(valkey_server.calls()), wire.packets
    for _ in range(TURNS):
        assert await handler(task("c")) == 10
    commands = Counter(valkey_server.calls()) - before
    assert wire.packets - packets == 2 * TURNS
    assert commands["evalsha"] + commands["fcall"] == 2 * TURNS


async def test_valkey_a_nested_handler_makes_no_trip(wired, wire):
    """A handler that is called in another one's turn works on what that has read, and commits with it."""
    inner = workload(wired)

    @stateful(storage=wired)
    async def outer(given, context, context_id):
        await inner(given)
        await context.increment(context_id, "calls")
        await inner(given)

    await outer(task("c"))
    packets = wire.packets
    for _ in range(TURNS):
        await outer(task("c"))
    assert wire.packets - packets == 2 * TURNS


@pytest.fixture(params=[0, 2**20])
async def statements(storage_options, request):
    """A SQLite storage, without and with a read cache, and the statements that each of its threads runs."""
    made = registry.create("sqlite", {**storage_options("sqlite"), "cache_size": request.param})
    told = []
    await made.trace(lambda thread, sql: told.append((thread, sql.split()[0].upper())))
    yield made, told
    await made.trace(None)
    await made.close()


@pytest.mark.parametrize("turns", MODES)
@pytest.mark.parametrize("messages", [10, 1000])
async def test_sqlite_two_transactions(statements, turns, messages):
    """One read transaction and one write transaction, whatever is stored; no read of what is known and unchanged."""
    storage, told = statements
    handler = workload(storage, turns=turns)
    await seed(storage, "c", messages)
    await handler(task("c"))
    told.clear()
    for _ in range(TURNS):
        assert await handler(task("c")) == 10
    count = Counter(told)
    reads = 0 if storage.cache_info().states else TURNS
    assert count["read", "BEGIN"] == count["read", "COMMIT"] == reads
    assert count["write", "BEGIN"] == count["write", "COMMIT"] == TURNS
    assert sum(n for (thread, _), n in count.items() if thread == "read") <= 6 * TURNS
    assert sum(n for (thread, _), n in count.items() if thread == "write") <= 12 * TURNS


@pytest.mark.parametrize("turns", MODES)
@pytest.mark.parametrize("backend", ["sqlite", "file"])
async def test_two_hops_to_a_thread(backend, turns, storage_options, monkeypatch):
    """A thread wakes the loop twice a turn: with what was read, and with what was committed."""
    storage = registry.create(backend, storage_options(backend))
    handler = workload(storage, turns=turns)
    await seed(storage, "c", 50)
    await handler(task("c"))
    loop, woken = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args, **kw: (woken.append(1), wake(*args, **kw))[1])
    for _ in range(TURNS):
        await handler(task("c"))
    assert len(woken) <= 2 * TURNS + 3  # and what happens now and then beside turns
    await storage.close()
