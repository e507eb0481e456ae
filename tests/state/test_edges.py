"""Expiry, large states, ids and numbers at their limits."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress

import pytest

from agentstate import ConversationContext
from agentstate.errors import ConflictError, ContextNotFoundError, StateError
from agentstate.scope import StateScope
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store
from agentstate.storage.protocol import Wants


async def test_a_state_that_expires_during_its_turn(clocked, clock):
    """A commit after a fixed lifetime is whole, or a conflict; never half a state."""
    context = ConversationContext(Store(clocked, clock=clock), settings=TurnSettings(ttl=60, ttl_mode="fixed"))
    await context.add_messages("c", [{"role": "user", "content": str(n)} for n in range(5)])
    await context.set_variable("c", "name", "Alice")

    async def turn():
        async with context.turn("c") as conversation:
            await conversation.set("x", 1)
            clock.advance(61)
            await conversation.add("user", "late")

    with suppress(ConflictError):
        await turn()
    try:
        state = await context.get("c")
    except ContextNotFoundError:
        return
    assert (state.variables, len(state.history)) == ({"name": "Alice", "x": 1}, 6)


async def test_cleared_during_an_optimistic_turn(storage):
    """A turn whose state was cleared under it conflicts, and leaves nothing."""
    context = ConversationContext(storage, settings=TurnSettings(turns="optimistic"))
    outside = ConversationContext(storage)

    async def turn(way):
        async with context.turn("c") as conversation:
            await conversation.add("user", "x")
            await asyncio.create_task(way(), context=contextvars.Context())  # as from another process

    for way in (lambda: outside.clear_context("c"), lambda: outside.cleanup_old_contexts(-1)):
        await outside.set_variable("c", "name", "Alice")
        with pytest.raises(ConflictError):
            await asyncio.create_task(turn(way))
        assert not await outside.exists("c")


async def test_a_large_state(storage):
    """Keys come on demand; deletes, increments and listings see the turn's own changes."""
    context = ConversationContext(storage)
    await context.set_variables("c", {f"k{n:03}": "x" * 600 for n in range(120)})
    await context.increment("c", "count", 3)
    async with context.turn("c") as conversation:
        assert await conversation.get("k050") == "x" * 600
        assert await conversation.get("absent") is None
        assert await conversation.delete("k051")
        assert not await conversation.delete("absent")
        assert await conversation.increment("count") == 4
        await conversation.set("new", 1)
        found = await conversation.variables()
        assert (len(found), found["count"], found["new"], "k051" in found) == (121, 4, 1, False)
        await conversation.commit()
        assert await conversation.get("k052") == "x" * 600
        assert await conversation.get("k051") is None
        assert len(await conversation.variables()) == 121
        async with context.turn("c") as inner:
            await inner.clear()
            assert await inner.variables() == {}
            await inner.set("only", 1)
        assert await conversation.variables() == {"only": 1}
    assert await context.get_variables("c") == {"only": 1}


async def test_other_states_beside_the_own_unchanged_one(storage):
    """A turn that changed only another state commits that, and gives its own turn back."""
    if not storage.capabilities.atomic_scopes:
        pytest.skip("one state a commit")
    context = ConversationContext(storage)
    for number in (1, 2):
        async with context.turn("c") as conversation:
            await conversation.context.set_variable("other", "x", number)
    assert await context.get_variable("other", "x") == 2
    assert not await context.exists("c")


@pytest.mark.parametrize("how", ["end", "publish"])
async def test_what_was_read_of_other_states_is_checked(storage, how):
    """A turn that relied on another state, without changing it, isn't committed when that has changed."""
    if not storage.capabilities.atomic_scopes:
        pytest.skip("one state a commit")
    context, other = ConversationContext(storage), ConversationContext(storage)
    await context.set_variable("other", "limit", 3)

    async def spend(*, raised):
        async with context.turn("c") as conversation:
            limit = await conversation.context.get_variable("other", "limit")
            if raised:
                await asyncio.create_task(other.set_variable("other", "limit", 0), context=contextvars.Context())
            await conversation.set("spent", limit)
            if how == "publish":
                await conversation.commit()

    with pytest.raises(ConflictError):
        await spend(raised=True)
    assert await context.get_variable("c", "spent") is None
    await spend(raised=False)
    assert await context.get_variable("c", "spent") == 0
    assert (await context.storage.read(StateScope.conversation("other"), Wants())).stamp.version == 2


@pytest.mark.parametrize("by", [2**62, 1.5, "1", 2**70, None])
async def test_increments_that_cannot_be(storage, by):
    """A number that leaves 64 bits, or that is none, is an error and changes nothing."""
    context = ConversationContext(storage)
    await context.increment("c", "n", 2**62)
    with pytest.raises((StateError, TypeError)):
        await context.increment("c", "n", by)

    async def turn():
        async with context.turn("c") as conversation:
            await conversation.increment("n", by)

    with pytest.raises((StateError, TypeError)):
        await turn()
    assert await context.get_variable("c", "n") == 2**62
