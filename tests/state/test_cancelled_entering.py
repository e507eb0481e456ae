"""Cancellation at each await of a turn's way in, on real storages: afterwards nobody holds it or waits for it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging

import pytest

from agentstate import Conversation, ConversationContext, StateScope, stateful
from agentstate.handling import Request, enter
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store
from agentstate.state.turn import new_id
from agentstate.storage import registry
from agentstate.storage.protocol import LeaseRequest, Wants
from agentstate.testing.drive import cancelled_at

TASK = {"context_id": "c-1"}
C1 = StateScope.conversation("c-1")
SHARED = ("sqlite", "file", "valkey")
each_way = pytest.mark.parametrize("again", [False, True], ids=["once", "repeatedly"])


async def taken(storage):
    """Take the turn as another process would, and give it back; whoever was cancelled may still be leaving."""
    nonce = new_id()
    async with asyncio.timeout(10):
        while (await storage.read(C1, Wants((), (), (), 0), lease=LeaseRequest(nonce, 30.0, "test"))).lease is None:
            await storage.wait_turn(C1, nonce, 0.05)
    await storage.leave(C1, nonce)


def counting(storage):
    """A handler whose state is whole when the number and the history agree."""

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.set("n", await conversation.get("n", 0) + 1)
        await conversation.add("user", "hi")

    return handler


async def check_whole(storage):
    """Nothing is half stored."""
    state = await ConversationContext(storage).get_or_create("c-1")
    assert state.variables.get("n", 0) == len(state.history)


@each_way
async def test_a_whole_turn(storage, again):
    """Waiting, reading, running, committing: the turn is free at once, and the state is before or after."""
    handler = counting(storage)
    for at in itertools.count(1):
        if not await cancelled_at(handler(TASK), at, again=again):
            break
        await taken(storage)
        await check_whole(storage)
    assert await ConversationContext(storage).get_variable("c-1", "n") >= 1


@each_way
@pytest.mark.parametrize("backend", SHARED)
async def test_the_first_turn_of_a_process(backend, storage_options, again, caplog):
    """While the storage is being opened, too: connecting, checking the server, creating what is missing."""
    caplog.set_level(logging.ERROR, "asyncio")
    looking = registry.create(backend, storage_options(backend))
    for at in itertools.count(1):
        cold = registry.create(backend, storage_options(backend))
        suspended = await cancelled_at(counting(cold)(TASK), at, again=again)
        await taken(looking)
        await cold.close()
        if not suspended:
            break
    await check_whole(looking)
    await looking.close()
    gc.collect()
    assert [one.getMessage() for one in caplog.records if one.name == "asyncio"] == []


@each_way
@pytest.mark.parametrize("settings", [TurnSettings(), TurnSettings(ttl=60.0), TurnSettings(turns="reject")])
async def test_entering_alone(storage, settings, again):
    """A turn that was entered just before its caller was cancelled is given back."""
    store = Store(storage)

    async def entering():
        turn = await enter(store, Request(C1, "handler", settings))
        await store.abandon(turn)

    for at in itertools.count(1):
        if not await cancelled_at(entering(), at, again=again):
            break
        await taken(storage)


@each_way
@pytest.mark.parametrize("backend", SHARED)
@pytest.mark.parametrize("at", range(1, 7))
async def test_waiting_for_another_process(backend, storage_options, at, again):
    """A waiter that is cancelled leaves the line: it isn't handed the turn, and delays nobody."""
    holding, waiting = (registry.create(backend, storage_options(backend)) for _ in range(2))
    nonce = new_id()
    assert (await holding.read(C1, Wants(), lease=LeaseRequest(nonce, 30.0, "holder"))).lease is not None
    assert await cancelled_at(counting(waiting)(TASK), at, again=again)
    await holding.leave(C1, nonce)
    async with asyncio.timeout(5):
        await counting(holding)(TASK)
        await counting(waiting)(TASK)
    assert await ConversationContext(holding).get_variable("c-1", "n") == 2
    for storage in (holding, waiting):
        await storage.close()


@each_way
async def test_waiting_behind_another_task(storage, again):
    """In the line of this process, too; who stands behind comes next."""
    handler = counting(storage)
    for at in itertools.count(1):
        inside, go = asyncio.Event(), asyncio.Event()

        @stateful(storage=storage)
        async def slow(_, inside=inside, go=go, *, conversation: Conversation):
            await conversation.get("n", 0)
            inside.set()
            await go.wait()

        first = asyncio.ensure_future(slow(TASK))
        await inside.wait()
        asyncio.get_running_loop().call_later(0.005, go.set)
        suspended = await cancelled_at(handler(TASK), at, again=again)
        go.set()
        await first
        await taken(storage)
        if not suspended:
            break
    await check_whole(storage)
