"""Turns: what a handler's call commits, waits for, refuses and leaves behind."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import (
    ConflictError,
    ContextIdError,
    ReadOnlyTurnError,
    TurnClosedError,
    TurnInProgressError,
    TurnTimeoutError,
    UnsavedChangeError,
    UnsupportedValueError,
)


def task(text="hi", context_id="c-1", **more):
    """A task as a host would send it."""
    return {"context_id": context_id, "text": text, **more}


async def test_a_turn_commits_once_and_all_of_it(storage):
    """Variables, history and metadata of one call become one version."""

    @stateful(storage=storage)
    async def handler(request, context, context_id):
        await context.set_variable(context_id, "name", "Alice")
        await context.add_to_history(context_id, "user", request["text"])
        await context.set_metadata(context_id, "channel", "web")
        return "done"

    assert await handler(task()) == "done"
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables, state.metadata) == (1, {"name": "Alice"}, {"channel": "web"})
    assert [message["content"] for message in state.history] == ["hi"]


async def test_a_turn_reads_its_own_writes_and_nobody_else_does(storage):
    """What a turn wrote is there for it at once, for others after the commit."""
    outside = ConversationContext(storage)

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        await context.set_variable(context_id, "x", 1)
        await context.add_to_history(context_id, "user", "one")
        inside = await context.get_variable(context_id, "x"), len(await context.get_history(context_id))
        return inside, await outside_view()

    async def outside_view():
        snapshot = await storage.read(outside.scope_of("c-1"), outside.store.wants(outside.settings, ""))
        return snapshot.stamp

    assert await handler(task()) == ((1, 1), None)


async def test_an_error_rolls_back_runs_once_and_goes_on_unchanged(storage):
    """Nothing of a failed turn is stored; the handler ran once; its own exception arrives."""
    calls = []

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        calls.append(1)
        await context.set_variable(context_id, "x", 1)
        await context.add_to_history(context_id, "user", "lost?")
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        await handler(task())
    context = ConversationContext(storage)
    assert calls == [1]
    assert not await context.exists("c-1")
    failed = await context.failed_turns("c-1")
    assert failed[0]["error"] == "builtins.KeyError"
    assert failed[0]["messages"][0]["content"] == "lost?"


@pytest.mark.parametrize(("on_error", "kept"), [("keep_input", ["question"]), ("commit", ["question", "half"])])
async def test_on_error_says_what_stays(storage, on_error, kept):
    """keep_input keeps the user's messages, commit everything."""

    @stateful(storage=storage, on_error=on_error)
    async def handler(_, conversation: Conversation):
        await conversation.add("user", "question")
        await conversation.add("assistant", "half")
        await conversation.set("x", 1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await handler(task())
    state = await ConversationContext(storage).get("c-1")
    assert [message.content for message in state.history] == kept
    assert state.variables == ({"x": 1} if on_error == "commit" else {})


async def test_queue_runs_one_at_a_time_in_order(storage):
    """Concurrent calls on one conversation lose nothing and keep their order."""

    @stateful(storage=storage)
    async def handler(request, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)
        await conversation.add("user", request["text"])

    await asyncio.gather(*(handler(task(str(number))) for number in range(20)))
    state = await ConversationContext(storage).get("c-1")
    assert state.variables == {"n": 20}
    assert [message.content for message in state.history] == [str(number) for number in range(20)]


async def test_reject_refuses_at_once(storage):
    """A second caller is told who holds the turn."""
    entered, leave = asyncio.Event(), asyncio.Event()

    @stateful(storage=storage, turns="reject")
    async def handler(_, conversation: Conversation):
        entered.set()
        await leave.wait()
        await conversation.set("x", 1)

    first = asyncio.create_task(handler(task()))
    await entered.wait()
    with pytest.raises(TurnInProgressError, match="handler"):
        await handler(task())
    leave.set()
    await first
    await handler(task())


async def test_optimistic_finds_conflicts_at_commit(storage):
    """Both run, one wins, the other learns both stamps."""
    both = asyncio.Barrier(2)

    @stateful(storage=storage, turns="optimistic")
    async def handler(_, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await both.wait()
        await conversation.set("n", seen + 1)

    results = await asyncio.gather(handler(task()), handler(task()), return_exceptions=True)
    lost = [result for result in results if isinstance(result, ConflictError)]
    assert len(lost) == 1
    assert lost[0].expected is None
    assert lost[0].found.version == 1
    assert await ConversationContext(storage).get_variable("c-1", "n") == 1


async def test_read_turns_see_a_snapshot_and_refuse_writes(storage):
    """turns='read' doesn't wait for a running turn, and writes raise."""
    entered, leave = asyncio.Event(), asyncio.Event()

    @stateful(storage=storage)
    async def slow(_, conversation: Conversation):
        await conversation.set("x", 1)
        entered.set()
        await leave.wait()

    @stateful(storage=storage, turns="read")
    async def status(_, conversation: Conversation):
        return await conversation.get("x", "nothing yet")

    @stateful(storage=storage, turns="read")
    async def writes(_, conversation: Conversation):
        await conversation.set("x", 2)

    running = asyncio.create_task(slow(task()))
    await entered.wait()
    assert await asyncio.wait_for(status(task()), 2) == "nothing yet"
    leave.set()
    await running
    with pytest.raises(ReadOnlyTurnError):
        await writes(task())


async def test_waiting_has_an_end_and_a_bound(storage):
    """wait= and max_waiting= end a queue that doesn't move, naming the holder."""
    entered, leave = asyncio.Event(), asyncio.Event()

    @stateful(storage=storage)
    async def holder(_, conversation: Conversation):
        entered.set()
        await leave.wait()

    @stateful(storage=storage, wait=0.05)
    async def waits(_, conversation: Conversation): ...

    @stateful(storage=storage, max_waiting=0)
    async def no_line(_, conversation: Conversation): ...

    running = asyncio.create_task(holder(task()))
    await entered.wait()
    with pytest.raises(TurnTimeoutError, match="holder"):
        await waits(task())
    with pytest.raises(TurnInProgressError, match="wait"):
        await no_line(task())
    leave.set()
    await running
    await waits(task())


async def test_a_turn_past_its_timeout_stores_nothing(storage):
    """turn_timeout= refuses the late commit and any later use."""

    @stateful(storage=storage, turn_timeout=0.01)
    async def handler(_, conversation: Conversation):
        await conversation.set("x", 1)
        time.sleep(0.02)  # noqa: ASYNC251 - a handler that blocks its loop

    with pytest.raises(TurnTimeoutError):
        await handler(task())
    assert not await ConversationContext(storage).exists("c-1")


async def test_a_call_outside_conflicts_with_a_turn_that_read_the_same(storage):
    """A write from outside is never overwritten by a turn that read the old value."""
    outside = ConversationContext(storage)
    await outside.set_variable("c-1", "n", 1)

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        seen = await conversation.get("n")
        await outside_write()
        await conversation.set("n", seen + 1)

    async def outside_write():
        import contextvars

        write = asyncio.get_running_loop().create_task(
            outside.set_variable("c-1", "n", 50), context=contextvars.Context()
        )
        await write

    with pytest.raises(ConflictError, match="n"):
        await handler(task())
    assert await outside.get_variable("c-1", "n") == 50


async def test_blind_writes_appends_and_increments_dont_conflict(storage):
    """What a turn never read can't conflict."""
    import contextvars

    outside = ConversationContext(storage)
    await outside.set_variable("c-1", "other", 0)

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.add("user", "mine")
        await conversation.increment("count")
        await conversation.set("blind", 1)

        async def others():
            await outside.add_to_history("c-1", "user", "theirs")
            await outside.increment("c-1", "count")
            await outside.set_variable("c-1", "blind", 2)

        await asyncio.get_running_loop().create_task(others(), context=contextvars.Context())

    await handler(task())
    state = await outside.get("c-1")
    assert state.variables == {"other": 0, "count": 2, "blind": 1}
    assert [message.content for message in state.history] == ["theirs", "mine"]


async def test_changed_but_not_set_is_noticed(storage):
    """A mutable value that was changed and not set raises, naming it; autosave stores it."""
    context = ConversationContext(storage)
    await context.set_variable("c-1", "prefs", {"a": 1})

    @stateful(storage=storage)
    async def forgets(_, conversation: Conversation):
        (await conversation.get("prefs"))["b"] = 2

    @stateful(storage=storage, autosave=True)
    async def saves(_, conversation: Conversation):
        (await conversation.get("prefs"))["b"] = 2

    with pytest.raises(UnsavedChangeError, match="prefs"):
        await forgets(task())
    assert await context.get_variable("c-1", "prefs") == {"a": 1}
    await saves(task())
    assert await context.get_variable("c-1", "prefs") == {"a": 1, "b": 2}


async def test_an_unsupported_value_is_refused_where_it_is_set(storage):
    """The error names the path inside the value, and the turn goes on."""

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        with pytest.raises(UnsupportedValueError) as caught:
            await conversation.set("x", {"items": [1, object()]})
        assert caught.value.path == "$.items[1]"
        await conversation.set("y", 1)

    await handler(task())
    assert await ConversationContext(storage).get_variables("c-1") == {"y": 1}


async def test_commit_publishes_and_the_turn_goes_on(storage):
    """context.commit() keeps what belongs to a side effect, also when the handler fails later."""

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        await context.add_to_history(context_id, "user", "one")
        await context.set_variable(context_id, "sent", True)
        await context.commit()
        history = await context.get_history(context_id)
        assert [(message.content, message.position) for message in history] == [("one", 1)]
        await context.add_to_history(context_id, "user", "two")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await handler(task())
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables, len(state.history)) == (1, {"sent": True}, 1)


async def test_a_turn_may_commit_many_times(storage):
    """Reading, writing and committing again sees each step, with no conflict with oneself."""

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        for number in range(5):
            assert await context.get_variable(context_id, "n", 0) == number
            await context.set_variable(context_id, "n", number + 1)
            await context.increment(context_id, "count")
            await context.add_to_history(context_id, "user", str(number))
            assert len(await context.get_history(context_id)) == number + 1
            await context.commit()

    await handler(task())
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables) == (5, {"n": 5, "count": 5})


async def test_immediate_commits_each_operation(storage):
    """commit='immediate' leaves what was done before an error."""

    @stateful(storage=storage, commit="immediate")
    async def handler(_, context, context_id):
        await context.set_variable(context_id, "a", 1)
        await context.add_to_history(context_id, "user", "one")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await handler(task())
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables, len(state.history)) == (2, {"a": 1}, 1)


async def test_a_context_kept_after_its_turn_is_closed(storage):
    """Using it later raises instead of losing what is written."""
    kept = []

    @stateful(storage=storage)
    async def handler(_, context, context_id):
        kept.append(context)

    await handler(task())
    with pytest.raises(TurnClosedError):
        await kept[0].set_variable("c-1", "x", 1)


async def test_no_id_is_an_error_that_says_where_was_looked(memory):
    """A task without an id doesn't get a state of its own by chance."""

    @stateful(storage=memory)
    async def handler(request, context, context_id): ...

    with pytest.raises(ContextIdError, match="context_id"):
        await handler({"text": "hi"})


async def test_once_runs_once_and_returns_the_first_result(storage):
    """A redelivery changes nothing and gets what the first got."""
    calls = []

    @stateful(storage=storage, once=lambda request: request["id"])
    async def handler(request, conversation: Conversation):
        calls.append(1)
        await conversation.add("user", request["text"])
        return {"answer": len(calls)}

    results = await asyncio.gather(*(handler(task(id="t-1")) for _ in range(5)))
    assert results == [{"answer": 1}] * 5
    assert calls == [1]
    assert len(await ConversationContext(storage).get_history("c-1")) == 1
    assert await handler(task(id="t-2")) == {"answer": 2}


async def test_once_with_another_input_is_an_error(storage):
    """One key names one input."""
    from agentstate.errors import OnceMismatchError

    @stateful(storage=storage, once=lambda request: request["id"])
    async def handler(request, conversation: Conversation):
        return request["text"]

    await handler(task("one", id="t-1"))
    with pytest.raises(OnceMismatchError):
        await handler(task("two", id="t-1"))


async def test_once_with_an_unstorable_result_says_already_done(storage):
    """The second delivery learns that it was done, and does nothing."""
    from agentstate.errors import AlreadyDone

    @stateful(storage=storage, once=lambda request: request["id"])
    async def handler(request, conversation: Conversation):
        await conversation.increment("n")
        return object()

    await handler(task(id="t-1"))
    with pytest.raises(AlreadyDone):
        await handler(task(id="t-1"))
    assert await ConversationContext(storage).get_variable("c-1", "n") == 1
