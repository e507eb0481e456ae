"""Synchronous handlers: the same turns from threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentstate import Conversation, ConversationContext, SyncConversation, stateful
from agentstate.errors import TurnError

TASK = {"context_id": "c-1", "text": "hi"}


def counting(storage):
    """A synchronous handler."""

    @stateful(storage=storage)
    def handler(task, context, context_id):
        seen = context.get_variable(context_id, "n", 0)
        context.set_variable(context_id, "n", seen + 1)
        context.add_to_history(context_id, "user", task["text"])
        return seen + 1

    return handler


async def test_threads_lose_nothing(storage):
    """Many threads call one synchronous handler on one conversation."""
    handler = counting(storage)
    results = await asyncio.gather(*(asyncio.to_thread(handler, TASK) for _ in range(8)))
    assert sorted(results) == list(range(1, 9))
    assert len(await ConversationContext(storage).get_history("c-1")) == 8


def test_without_any_loop(tmp_path):
    """A script without asyncio calls it like any function."""
    from agentstate.storage import registry

    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})
    handler = counting(storage)
    assert [handler(TASK), handler(TASK)] == [1, 2]


async def test_on_a_loop_it_raises_with_advice(memory):
    """It would block the loop, so it says what to do instead."""
    with pytest.raises(TurnError, match="to_thread"):
        counting(memory)(TASK)


async def test_an_error_rolls_back(storage):
    """The handler's error arrives, and nothing is stored."""

    @stateful(storage=storage)
    def handler(task, conversation: SyncConversation):
        conversation.set("x", 1)
        raise KeyError("boom")

    with pytest.raises(KeyError):
        await asyncio.to_thread(handler, TASK)
    assert not await ConversationContext(storage).exists("c-1")


async def test_nested_in_an_async_turn(storage):
    """A synchronous handler in a thread joins the turn of the async handler that called it."""
    inner = counting(storage)

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await conversation.set("n", 10)
        return await asyncio.to_thread(inner, task)

    assert await asyncio.wait_for(outer(TASK), 5) == 11
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables) == (1, {"n": 11})


def test_several_loops_share_one_storage(tmp_path):
    """Loops in different threads use one storage and one line of turns."""
    from agentstate.storage import registry

    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)

    async def many():
        await asyncio.gather(*(handler(TASK) for _ in range(10)))

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert asyncio.run(ConversationContext(storage).get_variable("c-1", "n")) == 30
