"""Calls on states. Both type checkers must report the lines marked ``wrong``, and no others."""

from __future__ import annotations

from typing import Any, assert_type

from agentstate import StateManager, StateScope, sync
from agentstate.manager import Listing, ScopedState, Versioned

manager = StateManager()
blocking = sync.StateManager()
A = StateScope.agent("a")


class Profile:
    """A user's type."""


async def calls() -> None:
    assert_type(await manager.get(A, "k"), Any)
    assert_type(await manager.get(A, "k", as_type=Profile), Profile | None)
    assert_type(await manager.get(A, "k", Profile(), as_type=Profile), Profile)
    assert_type(await manager.increment(A, "k"), int)
    assert_type(await manager.list(A), Listing)
    assert_type(await manager.update(A, "k", lambda old: 5), int)
    assert_type(await manager.get_versioned(A, "k"), Versioned)
    async with manager.transaction() as tx, tx.savepoint() as inner:
        assert_type(await inner.workflow("w").results(), dict[str, Any])
    async with manager.lock(A) as held:
        assert_type(held, ScopedState)
    async with manager.workflow("w") as workflow:
        assert_type(await workflow.status("n"), str | None)
    await manager.set(A, 5, 1)  # wrong
    await manager.get("agent:a", "k")  # wrong
    await manager.bind(agent="a").set(StateScope.AGENT, "k", 1)


def blocked() -> None:
    assert_type(blocking.get(A, "k", as_type=Profile), Profile | None)
    assert_type(blocking.increment(A, "k"), int)
    assert_type(blocking.list(A), Listing)
    with blocking.transaction() as tx:
        tx.set(A, "k", 1, ttl=5)
        with tx.savepoint() as inner:
            assert_type(inner.workflow("w").results(), dict[str, Any])
    with blocking.lock(A) as held:
        assert_type(held.exists("k"), bool)
    blocking.set(A, 5, 1)  # wrong
    blocking.set(A)  # wrong
    assert_type(blocking.update(A, "k", lambda old: 5), int)
