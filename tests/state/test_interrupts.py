"""Ctrl-C, forks, loops that end, and storages that close badly."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import StorageUnavailableError, UnsavedChangeError
from agentstate.state.store import Store
from agentstate.storage import registry
from agentstate.synchronous import SyncConversation  # noqa: TC001 - read from the signature

TASK = {"context_id": "c", "text": "hi"}


def storage_of(backend, storage_options):
    """Return a fresh storage outside of any loop."""
    return registry.create(backend, storage_options(backend))


@pytest.fixture
def ctrl_c():
    """Let SIGINT raise as in a terminal; what a shell starts in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_wait_leaves_no_turn_behind(storage_options):
    """Ctrl-C in a synchronous handler that waits for its turn: the next one gets it."""
    storage = storage_of("sqlite", storage_options)
    begun, go = threading.Event(), threading.Event()

    @stateful(storage=storage)
    def handler(task, conversation: SyncConversation):
        if task.get("slow"):
            begun.set()
            assert go.wait(5)
        return conversation.increment("n")

    def interrupted():
        holding = threading.Thread(target=handler, args=({**TASK, "slow": True},))
        holding.start()
        assert begun.wait(5)
        timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            handler(TASK)
        go.set()
        holding.join(5)

    interrupted()
    assert handler(TASK) == 2
    asyncio.run(storage.close())


@pytest.mark.parametrize("backend", ["sqlite", "file", "valkey"])
def test_loops_one_after_another(backend, storage_options):
    """A loop that ends with waiters and a running turn leaves the next loop a free turn."""
    storage = storage_of(backend, storage_options)

    @stateful(storage=storage)
    async def handler(task, conversation: Conversation):
        await asyncio.sleep(task.get("seconds", 0))
        return await conversation.increment("n")

    async def left_running():
        waiting = [asyncio.ensure_future(handler({**TASK, "seconds": 60})) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in waiting)

    for number in (1, 2, 3):
        asyncio.run(left_running())
        assert asyncio.run(asyncio.wait_for(handler(TASK), 10)) == number
    asyncio.run(storage.close())


async def test_a_process_forked_inside_a_turn_is_outside_of_it(storage_options):
    """What a forked child does is its own: it doesn't vanish in a copy of the parent's turn."""
    storage = storage_of("sqlite", storage_options)
    url = storage_options("sqlite")["url"]

    async def child_writes(text):
        await ConversationContext(registry.create("sqlite", {"url": url})).add_to_history("c", "user", text)

    context = ConversationContext(storage)
    async with context.turn("c") as conversation:
        await conversation.add("user", "parent")
        child = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(child_writes("child")))
        child.start()
        await asyncio.to_thread(child.join, 20)
        assert child.exitcode == 0
    assert sorted(one.content for one in await context.get_history("c")) == ["child", "parent"]
    await storage.close()


async def test_what_a_storage_says_to_a_rollback_hides_nothing(memory, monkeypatch):
    """The handler's error is raised, whatever giving the turn back meets."""

    async def down(*_args, **_more):
        raise StorageUnavailableError("down")

    async def broken(*_args, **_more):
        raise OSError(5, "broken")

    context = ConversationContext(Store(memory))

    async def fails(context_id):
        async with context.turn(context_id) as conversation:
            await conversation.set("x", 1)
            raise LookupError

    async def forgets(context_id):
        async with context.turn(context_id) as conversation:
            await conversation.set("x", [])
            (await conversation.get("x")).append(1)

    for number, leave in enumerate((down, broken)):
        monkeypatch.setattr(memory, "leave", leave)
        with pytest.raises(LookupError):
            await fails(f"c{number}")
        with pytest.raises(UnsavedChangeError):
            await forgets(f"d{number}")
