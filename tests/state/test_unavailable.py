"""The server is killed in the middle of a turn: typed errors, nothing half stored, and it goes on afterwards."""

from __future__ import annotations

import logging

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import CommitUnknownError, StorageUnavailableError
from agentstate.handling import ran_without
from agentstate.storage import registry
from agentstate.storage.valkey import commit
from agentstate.testing.faults import FaultyStorage
from tests.servers import ValkeyServer

TASK = {"context_id": "c-1"}


@pytest.fixture(scope="module")
def server():
    """A server that loses nothing, for this module's tests to kill."""
    with ValkeyServer(appendonly="yes", appendfsync="always") as made:
        yield made


@pytest.fixture
async def valkey(server, valkey_prefix, monkeypatch):
    """A storage on it, that gives up soon."""
    monkeypatch.setattr(commit, "DECIDED_WITHIN", 0.5)
    settings = {"url": server.url, "key_prefix": valkey_prefix, "socket_timeout": 1.0, "socket_connect_timeout": 1.0}
    made = registry.create("valkey", settings)
    yield made
    await made.close()


def killing(storage, server, **settings):
    """A handler in whose middle the server dies, when it is told so."""

    @stateful(storage=storage, **settings)
    async def handler(task, conversation: Conversation):
        n = await conversation.get("n", 0) + 1
        await conversation.set("n", n)
        await conversation.add("user", "hi")
        if "kill" in task:
            server.kill()
            if task["kill"] == "noticed":
                with pytest.raises(StorageUnavailableError):
                    await storage.ping()
        return n

    return handler


HOW = pytest.mark.parametrize("how", ["noticed", "unnoticed"])


@HOW
async def test_killed_between_read_and_commit(server, valkey, how):
    """The error says whether it is known that nothing was stored; after a restart all is as it was."""
    handler = killing(valkey, server)
    assert await handler(TASK) == 1
    # What was written to a connection that only seemed to be there may have arrived.
    with pytest.raises(StorageUnavailableError if how == "noticed" else (StorageUnavailableError, CommitUnknownError)):
        await handler(TASK | {"kill": how})
    with pytest.raises(StorageUnavailableError):
        await handler(TASK)
    server.restart()
    state = await ConversationContext(valkey).get("c-1")
    assert (state.variables, len(state.history)) == ({"n": 1}, 1)


@HOW
async def test_a_handler_that_can_do_without_answers(server, valkey, caplog, how):
    """run_without: what it changed is lost, which is warned of and counted; its answer isn't."""
    handler = killing(valkey, server, on_unavailable="run_without", turns="optimistic")
    before = ran_without()
    with caplog.at_level(logging.WARNING):
        assert await handler(TASK | {"kill": how}) == 1
    assert "its storage went away meanwhile" in caplog.text
    assert ran_without() == before + 1
    assert await handler(TASK) == 1
    assert ran_without() == before + 2
    server.restart()
    assert await handler(TASK) == 1
    assert await ConversationContext(valkey).get_variable("c-1", "n") == 1


@pytest.mark.parametrize("once", [None, lambda task: "k-1"])
async def test_an_unknown_outcome_is_done_without_too(memory, caplog, once):
    """Who can do without his state can do without knowing; the log says that it may be stored."""
    faulty = FaultyStorage(memory)

    @stateful(storage=faulty, on_unavailable="run_without", once=once)
    async def handler(task, conversation: Conversation):
        return await conversation.increment("n")

    faulty.fail_at(commit=1)
    assert await handler(TASK) == 1
    assert "is lost" in caplog.text
    faulty.fail_at(commit=1, fault="after")
    assert await handler(TASK) == 1
    assert "nobody knows" in caplog.text
    assert await ConversationContext(memory).get_variable("c-1", "n") == 1


async def test_a_stream_that_can_do_without_ends_well(memory):
    """Its chunks were handed out; the end is an end."""
    faulty = FaultyStorage(memory)

    @stateful(storage=faulty, on_unavailable="run_without")
    async def stream(task, conversation: Conversation):
        yield await conversation.increment("n")

    faulty.fail_at(commit=1)
    assert [chunk async for chunk in stream(TASK)] == [1]


@pytest.mark.parametrize("on_unavailable", ["raise", "run_without"])
async def test_a_read_in_the_middle_raises_in_the_handler(memory, on_unavailable):
    """What wasn't read with the turn can't be made up: the handler gets the error, and may go on without."""
    faulty = FaultyStorage(memory)

    @stateful(storage=faulty, on_unavailable=on_unavailable)
    async def handler(task, conversation: Conversation):
        faulty.fail_at(read=1)
        try:
            await conversation.context.get_variable("c-2", "x")
        except StorageUnavailableError:
            return await conversation.increment("n")

    assert await handler(TASK) == 1
    assert await ConversationContext(memory).get_variable("c-1", "n") == 1
