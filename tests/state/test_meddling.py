"""Several things at once inside one turn: nested handlers, gathered calls, and commits half-way."""

from __future__ import annotations

import asyncio

import pytest

from agentstate import ConversationContext
from agentstate.errors import ConflictError, ContextNotFoundError
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store


@pytest.fixture
def context(storage):
    """A context over each backend."""
    return ConversationContext(storage)


async def fill(context, count):
    """Add so many messages."""
    await context.add_messages("c", [{"role": "user", "content": str(n)} for n in range(1, count + 1)])


def contents(messages):
    """What messages say."""
    return [one.content for one in messages]


async def test_two_readers_of_old_messages(context):
    """Two gathered reads that need the same older messages see each message once, in order."""
    await fill(context, 30)
    async with context.turn("c") as conversation:
        first, second, third = await asyncio.gather(
            conversation.history(25), conversation.history(20), conversation.history()
        )
        assert contents(first) == [str(n) for n in range(6, 31)]
        assert contents(second) == [str(n) for n in range(11, 31)]
        assert contents(third) == contents(await conversation.history()) == [str(n) for n in range(1, 31)]


async def test_an_edited_message_may_be_trimmed(context):
    """Edit the first message, then trim it, in one turn."""
    await fill(context, 3)
    async with context.turn("c") as conversation:
        await conversation.edit(1, "edited")
        await context.trim_history("c", 1)
    assert contents(await context.get_history("c")) == ["3"]


async def test_a_frame_trims_and_edits_what_its_parent_added(context):
    """Positions in a nested frame are those it saw, also after it trimmed."""
    await fill(context, 2)
    async with context.turn("c") as outer:
        for text in ("a", "b", "c"):
            await outer.add("user", text)
        async with context.turn("c") as inner:
            await inner.edit(5, "C")
            await context.trim_history("c", 2)
            assert contents(await inner.history()) == ["b", "C"]
            await inner.add("user", "d")
        assert contents(await outer.history()) == ["b", "C", "d"]
    assert contents(await context.get_history("c")) == ["b", "C", "d"]


async def test_an_increment_beside_a_frame_isnt_lost(context):
    """A nested handler that read a number which its parent then increments doesn't overwrite that."""
    async with context.turn("c") as outer:

        async def nested():
            async with context.turn("c") as inner:
                seen = await inner.get("n", 0)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await inner.set("n", seen + 1)

        async def beside():
            await asyncio.sleep(0)
            await outer.increment("n")

        results = await asyncio.gather(nested(), beside(), return_exceptions=True)
    failed = [one for one in results if one is not None]
    assert all(isinstance(one, ConflictError) for one in failed)
    assert await context.get_variable("c", "n") == 2 - len(failed)


async def test_a_nested_handler_sees_that_its_state_is_there(context):
    """What the outer handler wrote makes the state exist for the inner one, owner included."""
    async with context.turn("c") as outer:
        await outer.set("x", 1)
        await context.get_or_create("c", "alice")
        async with context.turn("c"):
            assert (await context.get("c")).user_id == "alice"
            with pytest.raises(ContextNotFoundError):
                await context.get_or_create("c", "bob")
    assert (await context.get("c")).user_id == "alice"


async def test_deleting_what_isnt_there_makes_nothing(context):
    """No state comes to be by deleting from it."""
    assert not await context.delete_variable("c", "x")
    async with context.turn("c") as conversation:
        assert not await conversation.delete("x")
    assert not await context.exists("c")
    assert not await context.list_contexts()


async def test_an_increment_keeps_the_lifetime_of_a_number(clocked, clock):
    """A number set with a ttl and then incremented still goes away."""
    context = ConversationContext(Store(clocked, clock=clock))
    await context.set_variable("c", "n", 5, ttl=60)
    async with context.turn("c") as conversation:
        assert await conversation.increment("n") == 6
        await conversation.set("m", 1, ttl=60)
        await conversation.increment("m")
    await context.increment("c", "n")
    assert await context.get_variables("c") == {"n": 7, "m": 2}
    clock.advance(61)
    assert await context.get_variables("c") == {}


async def test_a_commit_that_timed_out_isnt_made_twice(context):
    """A handler that gives up on commit() and goes on adds its messages once."""
    async with context.turn("c") as conversation:
        await conversation.add("user", "once")
        task = asyncio.ensure_future(conversation.commit())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await conversation.add("user", "after")
    assert contents(await context.get_history("c")) == ["once", "after"]


async def test_writing_while_a_commit_is_under_way(context):
    """Calls made beside commit() belong to the next commit, each once."""
    async with context.turn("c") as conversation:
        await conversation.add("user", "0")
        await asyncio.gather(
            conversation.commit(),
            *(conversation.add("user", str(n)) for n in range(1, 5)),
            conversation.set("x", 1),
            conversation.increment("n"),
            conversation.commit(),
            conversation.add("user", "5"),
        )
    assert sorted(contents(await context.get_history("c"))) == [str(n) for n in range(6)]
    assert await context.get_variables("c") == {"x": 1, "n": 1}


async def test_immediate_commits_at_once(storage):
    """With commit="immediate", gathered calls store everything once."""
    context = ConversationContext(storage, settings=TurnSettings(commit="immediate"))
    async with context.turn("c") as conversation:
        await asyncio.gather(
            *(conversation.add("user", str(n)) for n in range(8)), *(conversation.increment("n") for _ in range(8))
        )
    assert sorted(contents(await context.get_history("c"))) == [str(n) for n in range(8)]
    assert await context.get_variable("c", "n") == 8


async def test_many_variables_outside_a_turn_are_one_read(context):
    """Reading all of many variables while another writes is one consistent read, not one per variable."""
    await context.set_variables("c", {f"k{n}": 0 for n in range(40)})
    done = asyncio.Event()

    async def writer():
        number = 0
        while not done.is_set():
            number += 1
            await context.set_variables("c", {f"k{n}": number for n in range(40)})

    writing = asyncio.ensure_future(writer())
    try:
        for _ in range(5):
            assert len(set((await context.get_variables("c")).values())) == 1
    finally:
        done.set()
        await writing
