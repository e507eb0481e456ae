"""Handlers inside handlers: frames of one turn, and turns of other states."""

from __future__ import annotations

import asyncio

import pytest

from agentstate import Conversation, ConversationContext, current, stateful
from agentstate.errors import ConflictError, TurnClosedError, TurnError, TurnInProgressError, UnsupportedError

TASK = {"context_id": "c-1", "text": "hi"}


async def test_ten_nested_handlers_at_once_lose_nothing(storage):
    """Frames of one parent run one at a time."""

    @stateful(storage=storage)
    async def inner(_, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await asyncio.gather(*(inner(task) for _ in range(10)))
        return await conversation.get("n")

    assert await outer(TASK) == 10
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables) == (1, {"n": 10})


async def test_a_nested_error_drops_its_frame_only(storage):
    """The outer handler may catch it and go on; what the frame did is gone."""

    @stateful(storage=storage)
    async def inner(_, conversation: Conversation):
        await conversation.set("inner", 1)
        await conversation.add("user", "inner")
        raise ValueError

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await conversation.set("outer", 1)
        with pytest.raises(ValueError):
            await inner(task)
        assert await conversation.get("inner") is None

    await outer(TASK)
    state = await ConversationContext(storage).get("c-1")
    assert (state.variables, len(state.history)) == ({"outer": 1}, 0)


async def test_frames_see_and_change_what_the_outer_turn_did(storage):
    """Deletes, edits, cuts and clears of a frame reach the outer turn."""
    context = ConversationContext(storage)
    await context.add_messages("c-1", [{"role": "user", "content": str(n)} for n in range(5)])
    await context.set_variable("c-1", "old", 1)

    @stateful(storage=storage)
    async def inner(_, conversation: Conversation):
        assert await conversation.get("outer") == 1
        await conversation.delete("old")
        await conversation.edit(1, "first")
        assert await conversation.truncate(4) == 3
        await conversation.add("assistant", "end")

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await conversation.set("outer", 1)
        await conversation.add("user", "5")
        await inner(task)
        return [message.content for message in await conversation.history()]

    assert await outer(TASK) == ["first", "1", "2", "end"]
    state = await context.get("c-1")
    assert [message.content for message in state.history] == ["first", "1", "2", "end"]
    assert state.variables == {"outer": 1}


async def test_a_nested_clear_is_the_turns(storage):
    """A frame that clears the state clears it for the turn."""
    context = ConversationContext(storage)
    await context.set_variable("c-1", "old", 1)

    @stateful(storage=storage)
    async def inner(_, conversation: Conversation):
        await conversation.clear()
        await conversation.set("new", 1)

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await inner(task)
        assert await conversation.variables() == {"new": 1}

    await outer(TASK)
    assert await context.get_variables("c-1") == {"new": 1}


async def test_an_outer_change_under_a_running_frame_conflicts(memory):
    """The frame's read can't be overtaken silently by its own outer turn."""
    read, written = asyncio.Event(), asyncio.Event()

    @stateful(storage=memory)
    async def inner(_, conversation: Conversation):
        seen = await conversation.get("n", 0)
        read.set()
        await written.wait()
        await conversation.set("n", seen + 1)

    @stateful(storage=memory)
    async def outer(task, conversation: Conversation):
        running = asyncio.create_task(inner(task))
        await read.wait()
        await conversation.set("n", 100)
        written.set()
        await running

    with pytest.raises(ConflictError, match="nested"):
        await outer(TASK)


async def test_a_task_that_outlives_its_turn_takes_a_turn_of_its_own(storage):
    """A worker started lazily inside a handler is not bound to that turn for life."""
    ended = asyncio.Event()
    workers = []

    @stateful(storage=storage)
    async def later(_, conversation: Conversation):
        await conversation.increment("later")

    async def worker():
        await ended.wait()
        await later(TASK)

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        workers.append(asyncio.create_task(worker()))
        await conversation.set("x", 1)

    await handler(TASK)
    ended.set()
    await workers[0]
    assert await ConversationContext(storage).get_variables("c-1") == {"x": 1, "later": 1}


async def test_a_frame_still_running_when_its_turn_ends_is_closed(memory):
    """It can't add to what was committed already; it learns so."""
    started, ended = asyncio.Event(), asyncio.Event()
    tasks = []

    @stateful(storage=memory)
    async def inner(_, conversation: Conversation):
        started.set()
        await ended.wait()
        await conversation.set("lost", 1)

    @stateful(storage=memory)
    async def outer(task, conversation: Conversation):
        tasks.append(asyncio.create_task(inner(task)))
        await started.wait()
        await conversation.set("x", 1)

    await outer(TASK)
    ended.set()
    with pytest.raises(TurnClosedError):
        await tasks[0]
    assert await ConversationContext(memory).get_variables("c-1") == {"x": 1}


async def test_another_state_is_a_turn_of_its_own(storage):
    """A handler called for another id commits by itself, before its caller does."""

    @stateful(storage=storage)
    async def other(_, conversation: Conversation):
        await conversation.increment("n")

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await other({"context_id": "c-2"})
        await conversation.set("x", 1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await outer(TASK)
    context = ConversationContext(storage)
    assert await context.get_variable("c-2", "n") == 1
    assert not await context.exists("c-1")


async def test_two_turns_that_wait_for_each_other_are_found_out(memory):
    """A waits for B's state while B waits for A's: one of them learns it at once."""
    both = asyncio.Barrier(2)

    @stateful(storage=memory)
    async def handler(task, conversation: Conversation):
        if "then" in task:
            await both.wait()
            await handler({"context_id": task["then"]})

    results = await asyncio.wait_for(
        asyncio.gather(
            handler({"context_id": "a", "then": "b"}), handler({"context_id": "b", "then": "a"}), return_exceptions=True
        ),
        5,
    )
    assert [type(result) for result in results].count(TurnInProgressError) == 1


async def test_other_states_in_a_turn_commit_with_it_or_are_refused_before_anything_happens(storage):
    """Where the engine can commit several states as one it does, else the touch raises."""

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        await context.set_variable(context_id, "x", 1)
        await context.set_variable("c-2", "y", 2)

    context = ConversationContext(storage)
    if storage.capabilities.atomic_scopes:
        await handler(TASK)
        assert await context.get_variable("c-2", "y") == 2
    else:
        with pytest.raises(UnsupportedError):
            await handler(TASK)
        assert not await context.exists("c-1")


async def test_current_is_the_running_conversation(memory):
    """agentstate.current() works without injected parameters, and only inside a turn."""

    @stateful(storage=memory, inject=False)
    async def handler(task):
        await current().set("x", task["text"])
        return current().id

    assert await handler(TASK) == "c-1"
    assert await ConversationContext(memory).get_variable("c-1", "x") == "hi"
    with pytest.raises(TurnError):
        current()


async def test_a_turn_for_a_block(storage):
    """async with context.turn(id) commits at its end and rolls back on an exception."""
    context = ConversationContext(storage)
    async with context.turn("c-1") as conversation:
        await conversation.set("x", 1)
        await conversation.add("user", "hi")

    async def fails():
        async with context.turn("c-1") as conversation:
            await conversation.set("x", 2)
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    state = await context.get("c-1")
    assert (state.version, state.variables) == (1, {"x": 1})


async def test_a_shared_context_inside_a_handler_joins_its_turn(storage):
    """A context made elsewhere over the same storage doesn't conflict with the turn it is used in."""
    shared = ConversationContext(storage)

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.set("x", 1)
        assert await shared.get_variable("c-1", "x") == 1
        await shared.set_variable("c-1", "x", 2)

    await handler(TASK)
    state = await shared.get("c-1")
    assert (state.version, state.variables) == (1, {"x": 2})


@pytest.mark.parametrize("shape", ["function", "stream"])
async def test_a_nested_handlers_own_key_is_refused_unless_it_is_the_turns(memory, shape):
    """One turn keeps one idempotency key: another's would be forgotten, and its handler run twice. So it isn't run."""
    ran = []

    if shape == "function":

        @stateful(storage=memory, once=lambda task: task.get("inner"))
        async def inner(task, conversation: Conversation):
            ran.append(await conversation.increment("inner"))
    else:

        @stateful(storage=memory, once=lambda task: task.get("inner"))
        async def stream(task, conversation: Conversation):
            ran.append(await conversation.increment("inner"))
            yield 1

        async def inner(task):
            async for _ in stream(task):
                pass

    @stateful(storage=memory, once=lambda task: task.get("outer"))
    async def outer(task, conversation: Conversation):
        await inner(task)
        return await conversation.increment("outer")

    for outer_key in ({}, {"outer": "k-1"}):
        with pytest.raises(UnsupportedError, match=r"'k-2'.*once= with the same key"):
            await outer(TASK | outer_key | {"inner": "k-2"})
    assert (ran, await ConversationContext(memory).exists("c-1")) == ([], False)
    same = TASK | {"outer": "k-3", "inner": "k-3"}
    assert [await outer(same), await outer(same), ran] == [1, 1, [1]]
    assert await outer(TASK) == 2
    await inner(TASK | {"inner": "k-4"})
    if shape == "function":
        await inner(TASK | {"inner": "k-4"})
    assert ran == [1, 2, 3]
