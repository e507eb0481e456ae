"""Stores are opened by settings, closed by aclose(), and a process's own."""

from __future__ import annotations

import asyncio
import os

import pytest

import agentstate
from agentstate import Conversation, ConversationContext, stateful, stores
from agentstate.errors import StorageError
from agentstate.state.store import Store
from agentstate.storage.memory import MemoryStorage


@pytest.fixture
def handler(tmp_path):
    """A handler on a database of its own."""

    @stateful(url=f"sqlite:///{tmp_path}/state.db")
    async def count(task, conversation: Conversation):
        return await conversation.increment("n")

    return count


async def test_after_aclose_the_next_call_opens_a_new_store(handler):
    """A server that is started again in the same process goes on with its state."""
    assert await handler({"context_id": "c"}) == 1
    await agentstate.aclose()
    assert await handler({"context_id": "c"}) == 2
    await agentstate.aclose()


async def test_equal_settings_share_a_store(handler, tmp_path):
    """A context of the same URL is on the store of the handler."""
    context = ConversationContext(f"sqlite:///{tmp_path}/state.db")
    await handler({"context_id": "c"})
    assert context.store is handler.bound.store
    await agentstate.aclose()


def test_a_forked_child_opens_its_own(handler):
    """A worker that is forked after the first call works, and so does its parent."""
    assert asyncio.run(handler({"context_id": "c"})) == 1
    child = os.fork()
    if not child:
        try:
            right = asyncio.run(handler({"context_id": "c"})) == 2
        finally:
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(handler({"context_id": "c"})) == 3
    asyncio.run(agentstate.aclose())


async def test_a_context_that_closes_its_storage_leaves_nothing_closed_behind(tmp_path):
    """After ``async with`` the same URL opens the storage again, for contexts and for handlers."""
    url = f"sqlite:///{tmp_path}/state.db"

    @stateful(url=url)
    async def handler(_, context, context_id):
        return await context.increment(context_id, "n")

    assert await handler({"context_id": "c-1"}) == 1
    async with ConversationContext(url) as context:
        assert await context.get_variable("c-1", "n") == 1
    assert await handler({"context_id": "c-1"}) == 2
    async with ConversationContext(url) as context:
        assert await context.get_variable("c-1", "n") == 2
    await agentstate.aclose()


async def test_several_stores_that_cant_be_closed(caplog):
    """One error is raised, the others are in the log; every store was tried."""
    closed = []

    class Failing(MemoryStorage):
        async def close(self):
            closed.append(self)
            raise StorageError(f"no {len(closed)}")

    for number in range(3):
        stores._stores[number] = Store(Failing())
    with pytest.raises(StorageError, match="no 1"):
        await agentstate.aclose()
    assert len(closed) == 3
    assert [text in caplog.text for text in ("no 1", "no 2", "no 3")] == [False, True, True]
