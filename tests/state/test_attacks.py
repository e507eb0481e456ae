"""Owners, idempotency keys and ids, met by callers who race, pry and repeat."""

from __future__ import annotations

import asyncio

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import (
    ConflictError,
    ContextNotFoundError,
    ReadOnlyTurnError,
    TurnInProgressError,
    TurnTimeoutError,
)
from agentstate.state.store import Store

TASK = {"context_id": "c", "text": "hi"}


def of(storage, user):
    """A context of a user."""
    return ConversationContext(storage, principal=user)


async def owner_of(storage):
    """Whose the conversation is."""
    return (await ConversationContext(storage).get("c")).user_id


async def test_two_users_create_one_conversation_at_once(storage):
    """One gets it, the other gets what an unknown id gets; nobody's write lands in the other's."""
    users = [f"u{n}" for n in range(6)]
    results = await asyncio.gather(
        *(of(storage, user).set_variable("c", "secret", user) for user in users), return_exceptions=True
    )
    assert [type(one) for one in results if one is not None] == [ContextNotFoundError] * 5
    owner = users[results.index(None)]
    assert await owner_of(storage) == owner
    assert await of(storage, owner).get_variable("c", "secret") == owner


async def test_two_optimistic_turns_of_two_users_on_a_new_conversation(storage):
    """The second to commit doesn't take the first one's conversation over."""

    @stateful(storage=storage, turns="optimistic", owner=lambda task: task["user"])
    async def handler(task, conversation: Conversation):
        await asyncio.sleep(0.02)
        await conversation.add("user", task["user"])

    results = await asyncio.gather(
        handler({**TASK, "user": "alice"}), handler({**TASK, "user": "bob"}), return_exceptions=True
    )
    assert [type(one) for one in results if one is not None] == [ConflictError]
    messages = await ConversationContext(storage).get_history("c")
    assert [one.content for one in messages] == [await owner_of(storage)]


async def test_two_creators_and_two_adopters(storage):
    """get_or_create(user_id) and adopt() have one winner."""
    context = ConversationContext(storage)
    made = await asyncio.gather(*(context.get_or_create("c", f"u{n}") for n in range(6)), return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in made) == 1
    await context.clear_context("c")
    await context.set_variable("c", "x", 1)
    adopted = await asyncio.gather(*(context.adopt("c", f"u{n}") for n in range(6)), return_exceptions=True)
    assert sum(one is None for one in adopted) == 1
    assert await owner_of(storage) == f"u{adopted.index(None)}"


async def test_a_cleared_conversation_stays_its_users(storage):
    """Clear and go on, in one turn: others still can't open it."""

    @stateful(storage=storage, owner="alice")
    async def handler(_, conversation: Conversation):
        await conversation.set("old", 1)
        await conversation.clear()
        await conversation.set("secret", 1)

    await handler(TASK)
    await handler(TASK)
    with pytest.raises(ContextNotFoundError):
        await of(storage, "bob").get_variable("c", "secret")
    assert await of(storage, "alice").get_variables("c") == {"secret": 1}


async def test_an_owner_that_is_nobody_opens_nobodys_only(storage):
    """owner= that finds no user is an anonymous caller, not a trusted host."""
    await of(storage, "alice").set_variable("c", "secret", 1)

    @stateful(storage=storage, owner=lambda task: task.get("user"))
    async def handler(_, conversation: Conversation):
        return await conversation.get("secret")

    with pytest.raises(ContextNotFoundError):
        await handler(TASK)
    assert await handler({**TASK, "user": "alice"}) == 1


async def test_a_nested_handler_for_somebody_else(storage):
    """A handler called inside a turn still opens only what is its own principal's."""

    @stateful(storage=storage, owner="bob")
    async def inner(_, conversation: Conversation):
        return await conversation.get("secret")

    @stateful(storage=storage, owner="alice")
    async def outer(task, conversation: Conversation):
        await conversation.set("secret", 1)
        await conversation.commit()
        return await inner(task)

    with pytest.raises(ContextNotFoundError):
        await outer(TASK)


async def test_input_kept_on_an_error_stays_its_owners(storage):
    """on_error="keep_input" keeps whose the conversation is, too."""

    @stateful(storage=storage, on_error="keep_input")
    async def handler(_, context, context_id):
        await context.get_or_create(context_id, "alice")
        await context.add_to_history(context_id, "user", "hi")
        raise LookupError

    with pytest.raises(LookupError):
        await handler(TASK)
    assert await owner_of(storage) == "alice"


async def test_an_anonymous_caller_lists_and_drops_nothing(storage):
    """Whoever has not signed in sees nobody's list."""
    await of(storage, "alice").set_variable("c", "x", 1)
    assert await of(storage, "").list_contexts() == []
    assert await of(storage, "").cleanup_old_contexts(-1) == 0


async def test_a_reading_handler_inside_a_turn_may_not_write(storage):
    """turns="read" means the same when the handler is called inside another one's turn."""

    @stateful(storage=storage, turns="read")
    async def status(_, conversation: Conversation):
        seen = await conversation.get("x")
        with pytest.raises(ReadOnlyTurnError):
            await conversation.set("x", 2)
        with pytest.raises(ReadOnlyTurnError):
            await conversation.add("user", "no")
        return seen

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        await conversation.set("x", 1)
        return await status(task)

    assert await outer(TASK) == 1
    assert (await ConversationContext(storage).get("c")).variables == {"x": 1}


async def test_one_key_delivered_twice_at_once_to_optimistic_turns(storage):
    """The second delivery gets the first one's result, also when both had read the same."""
    calls = 0

    @stateful(storage=storage, turns="optimistic", once=lambda task: task["id"])
    async def handler(_, conversation: Conversation):
        nonlocal calls
        calls += 1
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0.02)
        await conversation.set("n", seen + 1)
        return seen + 1

    await ConversationContext(storage).set_variable("c", "n", 0)
    assert await asyncio.gather(*(handler({**TASK, "id": "1"}) for _ in range(4))) == [1] * 4
    assert await ConversationContext(storage).get_variable("c", "n") == 1


async def test_a_deadlock_over_three_states(memory):
    """A holds a and b and wants c; B holds c and wants a: B is told at once."""
    context = ConversationContext(Store(memory))

    async def first():
        async with context.turn("a"), context.turn("b"):
            await asyncio.sleep(0.01)
            async with context.turn("c"):
                pass

    async def second():
        async with context.turn("c"):
            await asyncio.sleep(0.02)
            async with context.turn("a"):
                pass

    results = await asyncio.wait_for(asyncio.gather(first(), second(), return_exceptions=True), 5)
    assert [type(one) for one in results] == [type(None), TurnInProgressError]


async def test_a_stream_that_idled_says_so(storage):
    """Pulling a stream whose turn has ended is an error, not the end of the stream."""

    @stateful(storage=storage, idle=0.01)
    async def handler(_, conversation: Conversation):
        await conversation.add("user", "1")
        yield 1
        yield 2

    stream = handler(TASK)
    assert await anext(stream) == 1
    await asyncio.sleep(0.2)
    with pytest.raises(TurnTimeoutError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_closed_stream_says_that_its_commit_failed(storage):
    """aclose() raises what the commit of the chunks handed out raised."""
    context = ConversationContext(storage)

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.set("x", await conversation.get("x", 0) + 1)
        yield 1
        yield 2

    stream = handler(TASK)
    assert await anext(stream) == 1
    await context.set_variable("c", "x", 50)
    with pytest.raises(ConflictError):
        await stream.aclose()
    assert await context.get_variable("c", "x") == 50


async def test_a_nested_stream_that_ends_early_keeps_what_was_seen(storage):
    """Inside another turn, too, what was handed out stays when a stream is closed."""

    @stateful(storage=storage)
    async def inner(_, conversation: Conversation):
        await conversation.add("assistant", "seen")
        yield 1
        yield 2

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        stream = inner(task)
        assert await anext(stream) == 1
        await stream.aclose()

    await outer(TASK)
    assert [one.content for one in await ConversationContext(storage).get_history("c")] == ["seen"]
