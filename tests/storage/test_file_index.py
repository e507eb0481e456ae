"""The directory of scopes in memory lists the same, whether its sorted views were kept or made anew."""

import random

import pytest

from agentstate.scope import StateScope
from agentstate.storage.index import ScopeIndex
from agentstate.storage.protocol import ScopeInfo, ScopeQuery, Stamp


def info(number, updated):
    """Return what a listing says of a scope."""
    scope = StateScope.make(("conversation", "user")[number % 2], f"id-{number // 3}")
    return ScopeInfo(scope, Stamp(1, number), f"o{number % 3}", 0.0, updated, None, {}, 0, {})


@pytest.mark.parametrize("seed", range(5))
def test_changes_after_a_listing(seed):
    """After any changes, an index that was listed before lists what a fresh one does."""
    chance, index, there = random.Random(seed), ScopeIndex(), {}
    for step in range(300):
        for _ in range(chance.choice((1, 2, 50))):
            one = info(chance.randrange(200), float(chance.randrange(50)))
            if chance.random() < 0.3:
                index.discard(one.scope)
                there.pop(one.scope, None)
            else:
                index.put(one)
                there[one.scope] = one
        fresh = ScopeIndex()
        for one in there.values():
            fresh.put(one)
        for query in (
            ScopeQuery(limit=1000),
            ScopeQuery(order="updated", reverse=True, limit=7),
            ScopeQuery(kind="user", prefix="id-1", owner="o1"),
            ScopeQuery(order="updated", updated_after=10.0, updated_before=40.0),
        ):
            assert index.page(query, 0.0) == fresh.page(query, 0.0), step
        assert len(index) == len(there)
