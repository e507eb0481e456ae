"""Cancellation at every await: nothing half done, no turn held for ever, no outcome lost."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from agentstate import Conversation, ConversationContext, stateful

TASK = {"context_id": "c-1", "text": "hi"}


def working(storage):
    """A handler that reads, writes and commits."""

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)
        await conversation.add("user", "hi")

    return handler


async def passes(count):
    """Let the loop run so many passes."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("after", range(12))
async def test_cancel_after_any_pass_of_the_loop(storage, after):
    """The state is before or after, never between, and the next turn runs at once."""
    handler = working(storage)
    running = asyncio.create_task(handler(TASK))
    await passes(after)
    running.cancel()
    cancelled = False
    try:
        await running
    except asyncio.CancelledError:
        cancelled = True
    context = ConversationContext(storage)
    state = await context.get_or_create("c-1")
    assert (state.variables.get("n", 0), len(state.history)) in {(0, 0), (1, 1)}
    if not cancelled:
        assert state.variables == {"n": 1}
    await asyncio.wait_for(handler(TASK), 5)
    assert await context.get_variable("c-1", "n") == state.variables.get("n", 0) + 1


@pytest.mark.parametrize("after", range(0, 12, 3))
async def test_cancel_while_waiting_in_line(storage, after):
    """A waiter that is cancelled leaves the line, and the others get their turns."""
    handler = working(storage)
    running = [asyncio.create_task(handler(TASK)) for _ in range(6)]
    await passes(after)
    for number in (1, 3, 4):
        running[number].cancel()
    results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 5)
    done = sum(1 for result in results if result is None)
    assert await ConversationContext(storage).get_variable("c-1", "n") >= done
    await asyncio.wait_for(handler(TASK), 5)


async def test_anyio_cancel_scopes_are_survived(storage):
    """anyio delivers a cancellation again and again; the commit is carried through all the same."""
    handler = working(storage)
    with anyio.move_on_after(0.001):
        while True:
            await handler(TASK)
    await asyncio.wait_for(handler(TASK), 5)
    context = ConversationContext(storage)
    state = await context.get("c-1")
    assert state.variables["n"] == len(state.history)


async def test_a_cancelled_handler_rolls_back_and_leaves_a_record(storage):
    """A cancelled turn stores nothing; the failed-turn record says it was cancelled."""
    entered = asyncio.Event()

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.set("x", 1)
        entered.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(handler(TASK))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    context = ConversationContext(storage)
    assert not await context.exists("c-1")
    assert (await context.failed_turns("c-1"))[0]["error"] == "asyncio.exceptions.CancelledError"


async def test_a_timeout_around_a_call_outside_a_turn(storage):
    """asyncio.timeout around any context call leaves the state whole."""
    context = ConversationContext(storage)
    for _ in range(20):
        try:
            async with asyncio.timeout(0):
                await context.update("c-1", "n", lambda value: value + 1, 0)
        except TimeoutError:
            pass
    assert await context.update("c-1", "n", lambda value: value + 1, 0) >= 1
