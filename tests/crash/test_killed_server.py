"""kill -9 of a Valkey server that syncs every write: nothing acknowledged is lost, nothing is torn."""

from __future__ import annotations

import pytest

from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.testing import ProcessSpec
from agentstate.testing.crashing import check_sequence, counts_of, crash_cycle
from tests.crash.conftest import CYCLES
from tests.servers import ValkeyServer

pytestmark = pytest.mark.crash

SCOPES = [StateScope.conversation(f"c-{number}") for number in range(3)]


# A fresh server now and then: reading back an ever longer log would be most of the time.
CYCLES_PER_SERVER = 50


async def test_killed_server(chance):
    """Every commit acknowledged by a server with ``appendfsync always`` is there when it is back."""
    committed = 0
    for start in range(0, CYCLES, CYCLES_PER_SERVER):
        with ValkeyServer(appendonly="yes", appendfsync="always") as server:
            committed += await kill_again_and_again(server, min(CYCLES_PER_SERVER, CYCLES - start), chance)
    assert committed >= CYCLES, "the server was killed before anything could be committed"


async def kill_again_and_again(server, cycles, chance):
    """Kill and restart a server while it is written to; return how many commits it holds."""
    counts = [0] * len(SCOPES)
    options = {"url": server.url, "durability": "full"}
    spec = ProcessSpec("valkey", options, ("agentstate.storage.valkey", "libvalkey"))
    for _ in range(cycles):
        acknowledged = await crash_cycle(spec, SCOPES, counts, chance.uniform(0.0, 0.03), kill=server.kill)
        server.restart()
        storage = registry.create("valkey", options)
        await check_sequence(storage, SCOPES, acknowledged, since=counts)
        counts = await counts_of(storage, SCOPES)
        await storage.close()
    storage = registry.create("valkey", options)
    await check_sequence(storage, SCOPES, counts, since=[0] * len(SCOPES))
    await storage.close()
    return sum(counts)
