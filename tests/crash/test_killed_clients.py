"""kill -9 of a committing process, over and over: nothing acknowledged is lost, nothing is torn."""

from __future__ import annotations

import pytest

from agentstate.scope import StateScope
from agentstate.testing.crashing import check_sequence, counts_of, crash_cycle
from tests.crash.conftest import CYCLES

pytestmark = pytest.mark.crash

SCOPES = [StateScope.conversation(f"c-{number}") for number in range(3)]
# A fresh place now and then, so that its creation is interrupted too.
CYCLES_PER_PLACE = 50


async def test_killed_clients(new_place, chance):
    """Every acknowledged commit is there after every kill, whole and in order, and the data opens."""
    acknowledged_in_all = 0
    for start in range(0, CYCLES, CYCLES_PER_PLACE):
        place = new_place(start)
        counts = [0] * len(SCOPES)
        for cycle in range(start, min(start + CYCLES_PER_PLACE, CYCLES)):
            early = cycle % 5 == 0
            seconds = chance.uniform(0.0, 0.03)
            acknowledged = await crash_cycle(place.spec, SCOPES, counts, seconds, early=early)
            storage = place.storage()
            await check_sequence(storage, SCOPES, acknowledged, since=counts)
            counts = await counts_of(storage, SCOPES)
            await storage.close()
        storage = place.storage()
        await check_sequence(storage, SCOPES, counts, since=[0] * len(SCOPES))
        await storage.close()
        acknowledged_in_all += sum(counts)
    assert acknowledged_in_all >= CYCLES, "the workers were killed before they could commit"
