"""What failed turns leave: their messages are shown where they were said, and stored nowhere."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from agentstate import Conversation, ConversationContext, StateScope, stateful
from agentstate.compat import agentup
from agentstate.errors import (
    ConflictError,
    LeaseLostError,
    StorageUnavailableError,
    TurnTimeoutError,
    UnsavedChangeError,
)
from agentstate.state.turn import current, new_id
from agentstate.storage.protocol import LeaseRequest, Part, Put, Wants
from agentstate.testing.faults import FaultyStorage

C1 = StateScope.conversation("c-1")


def said(messages):
    return [(one.content, one.failed) for one in messages]


async def meddle(storage):
    """Change a variable from outside of every turn."""
    await storage.commit([Part(scope=C1, puts=[Put("variables", "n", b"50")])], commit_id=new_id())


def speaker(storage, **settings):
    """Return a handler that adds what it is told, and raises on request."""

    @stateful(storage=storage, key="c-1", **settings)
    async def speak(text, conversation: Conversation, error=None, **fields):
        await conversation.add("user", text, **fields)
        if error is not None:
            raise error

    return speak


async def test_they_stand_where_they_were_said(storage):
    """In place by their times, marked, with what went wrong; the history itself has none of them."""
    speak, context = speaker(storage), ConversationContext(storage)
    await speak("one")
    with pytest.raises(OSError, match="429"):
        await speak("two", error=OSError("429"))
    await speak("three")
    with pytest.raises(ValueError, match="no"):
        await speak("four", error=ValueError("no"))
    conversation = context.conversation("c-1")
    shown = await conversation.history(include_failed=True)
    assert said(shown) == [("one", False), ("two", True), ("three", False), ("four", True)]
    assert [getattr(one, "error", None) for one in shown] == [None, "builtins.OSError", None, "builtins.ValueError"]
    assert said(await conversation.history()) == [("one", False), ("three", False)]
    assert [one.position for one in shown] == [1, 0, 2, 0]
    assert "failed" not in shown[1]
    async with context.turn("c-1") as inside:
        assert said(await inside.history(2, include_failed=True)) == [("three", False), ("four", True)]
    dicts = await agentup.ConversationContext(storage).get_history("c-1", include_failed=True)
    assert [one.get("failed", False) for one in dicts] == [False, True, False, True]


async def test_the_first_turn_of_all_may_fail(storage):
    """There is no state then, and what was said to it is known all the same."""
    with pytest.raises(OSError, match="429"):
        await speaker(storage)("one", error=OSError("429"))
    context = ConversationContext(storage)
    assert said(await context.get_history("c-1", include_failed=True)) == [("one", True)]
    assert not await context.exists("c-1")


async def test_bounds(memory):
    """Limits count what is shown; a bound is a moment, too."""
    speak, context = speaker(memory), ConversationContext(memory)
    for number in range(6):
        error = OSError("odd") if number % 2 else None
        with pytest.raises(OSError, match="odd") if error else nullcontext():
            await speak(str(number), error=error)

    async def shown(*args, **bounds):
        return "".join(one.content for one in await context.get_history("c-1", *args, **bounds, include_failed=True))

    assert [await shown(limit) for limit in (None, 0, 1, 2, 3, 9)] == ["012345", "", "5", "45", "345", "012345"]
    assert await shown(after=1) == "12345"
    assert await shown(2, after=1) == "12"
    assert await shown(before=3) == "0123"
    assert await shown(1, before=3) == "3"
    assert await shown(after=1, before=2) == "1"
    assert (await shown(after=3), await shown(after=4), await shown(before=9)) == ("5", "", "012345")
    first = (await context.get_history("c-1"))[0]
    assert await shown(after=first) == "12345"
    await context.trim_history("c-1", 2)
    assert await shown(2, after=2) == "34"
    with pytest.raises(ValueError, match="negative"):
        await shown(-1)


async def test_a_retry_takes_its_place(storage):
    """A message that was stored after all, or that failed again, is shown once."""
    speak, context = speaker(storage), ConversationContext(storage)
    for text in ("one", "once more"):
        with pytest.raises(OSError):
            await speak(text, error=OSError(), message_id="m-1")
    assert said(await context.get_history("c-1", include_failed=True)) == [("once more", True)]
    await speak("done", message_id="m-1")
    assert said(await context.get_history("c-1", include_failed=True)) == [("done", False)]


async def test_a_refused_commit_leaves_what_was_said(storage):
    """The handler succeeded, and somebody else was faster: its messages aren't lost to eyes, and the turn is free."""
    context = ConversationContext(storage)

    @stateful(storage=storage)
    async def handler(task, conversation: Conversation):
        await conversation.add("user", "hello")
        seen = await conversation.get("n", 0)
        if task["meddle"]:
            await meddle(storage)
        await conversation.set("n", seen + 1)

    for _ in range(2):
        with pytest.raises(ConflictError):
            await handler({"context_id": "c-1", "meddle": True})
    assert [one["error"] for one in await context.failed_turns("c-1")] == ["agentstate.errors.ConflictError"] * 2
    await handler({"context_id": "c-1", "meddle": False})
    assert said(await context.get_history("c-1", include_failed=True)) == [
        ("hello", True), ("hello", True), ("hello", False),
    ]  # fmt: skip


async def test_a_lost_turn_leaves_what_was_said(storage):
    """Another holder took the turn over; the late one's record doesn't disturb him."""

    @stateful(storage=storage)
    async def handler(task, conversation: Conversation):
        await conversation.add("user", "late")
        await storage.leave(C1, current.get().turn.lease.nonce)
        taken = await storage.read(C1, Wants(), lease=LeaseRequest(7, 30.0, "another"))
        assert taken.lease is not None

    with pytest.raises(LeaseLostError):
        await handler({"context_id": "c-1"})
    context = ConversationContext(storage)
    (record,) = await context.failed_turns("c-1")
    assert record["error"] == "agentstate.errors.LeaseLostError"
    assert (await storage.read(C1, Wants(), lease=LeaseRequest(8, 30.0, "third"))).holder is not None
    await storage.leave(C1, 7)


async def test_what_is_refused_before_it_is_sent(memory):
    """A forgotten set, and a turn that took too long, leave a record like any other failure."""
    context = ConversationContext(memory)
    await context.set_variable("c-1", "list", [1])

    @stateful(storage=memory)
    async def forgets(task, conversation: Conversation):
        await conversation.add("user", "forgets")
        (await conversation.get("list")).append(2)

    @stateful(storage=memory, turn_timeout=5)
    async def slow(task, conversation: Conversation):
        await conversation.add("user", "slow")
        current.get().turn.deadline = 0.0  # as if that had taken its time

    for handler, error in ((forgets, UnsavedChangeError), (slow, TurnTimeoutError)):
        with pytest.raises(error):
            await handler({"context_id": "c-1"})
    assert said(await context.get_history("c-1", include_failed=True)) == [("forgets", True), ("slow", True)]


async def test_calls_outside_turns_leave_no_records(memory):
    """They are tried again, and nobody said anything."""
    context = ConversationContext(memory)
    await context.set_variable("c-1", "n", 0)
    meddled = []

    def add(value):
        if not meddled:
            meddled.append(memory.commit([Part(scope=C1, puts=[Put("variables", "n", b"10")])], commit_id=1))
            with pytest.raises(StopIteration):  # memory never waits
                meddled[0].send(None)
        return value + 1

    assert await context.update("c-1", "n", add) == 11
    assert await context.failed_turns("c-1") == []


async def test_a_storage_that_is_down_isnt_asked_to_keep_a_record(memory):
    """The error is the storage's; nothing more is tried than to give the turn back."""
    faulty = FaultyStorage(memory)
    faulty.fail_at(commit=1)
    with pytest.raises(StorageUnavailableError):
        await speaker(faulty)("one")
    assert await ConversationContext(memory).failed_turns("c-1") == []
    await speaker(memory, turns="reject")("two")


async def test_a_second_delivery_that_loses_is_no_failure(memory):
    """The first delivery's result is the answer, and no record says otherwise; a real conflict leaves one."""
    context = ConversationContext(memory)
    inside, go = asyncio.Event(), asyncio.Event()

    @stateful(storage=memory, turns="optimistic", once=lambda task: task["id"])
    async def handler(task, conversation: Conversation):
        await conversation.add("user", "hello")
        n = await conversation.increment("n")
        if task.get("slow"):
            inside.set()
            await go.wait()
        return n

    slow = asyncio.ensure_future(handler({"context_id": "c-1", "id": "d-1", "slow": True, "text": "x"}))
    await inside.wait()
    first = await handler({"context_id": "c-1", "id": "d-1", "text": "x"})
    go.set()
    assert (first, await slow) == (1, 1)
    assert await context.failed_turns("c-1") == []

    @stateful(storage=memory, once=lambda task: task["id"])
    async def conflicts(task, conversation: Conversation):
        await conversation.add("user", "again")
        await conversation.set("n", await conversation.get("n") + 1)
        await meddle(memory)

    with pytest.raises(ConflictError):
        await conflicts({"context_id": "c-1", "id": "d-2"})
    (record,) = await context.failed_turns("c-1")
    assert (record["once"], [one["content"] for one in record["messages"]]) == ("d-2", ["again"])


async def test_nobody_sees_what_others_said(storage):
    """A turn that failed before there was a state had no owner, but it had somebody who asked."""

    @stateful(storage=storage, owner=lambda task: task["user"])
    async def handler(task, conversation: Conversation):
        await conversation.add("user", "my secret")
        raise OSError

    for user in ("alice", None):
        with pytest.raises(OSError):
            await handler({"context_id": "c-1", "user": user})
    for principal, count in (("alice", 2), ("bob", 1), ("", 1), (None, 2)):
        context = ConversationContext(storage, principal=principal)
        assert len(await context.failed_turns("c-1")) == count
        assert len(await context.get_history("c-1", include_failed=True)) == count


async def test_a_stream_that_ended_early_leaves_what_was_said(memory):
    """Rolled back, and not forgotten."""

    @stateful(storage=memory, on_cancel="rollback")
    async def stream(task, conversation: Conversation):
        await conversation.add("user", "hello")
        yield 1
        yield 2

    chunks = stream({"context_id": "c-1"})
    assert await anext(chunks) == 1
    await chunks.aclose()
    assert said(await ConversationContext(memory).get_history("c-1", include_failed=True)) == [("hello", True)]
