"""The context outside turns: each call atomic by itself, on every backend."""

from __future__ import annotations

import asyncio
from enum import Enum

import pytest
from pydantic import BaseModel

from agentstate import ConversationContext
from agentstate.errors import ContextIdError, ContextNotFoundError, UnsupportedValueError
from agentstate.state.store import Store


@pytest.fixture
def context(storage):
    """A context over each backend."""
    return ConversationContext(storage)


async def test_variables(context):
    """Get with a default, set, several at once, delete."""
    assert await context.get_variable("c", "x") is None
    assert await context.get_variable("c", "x", "fallback") == "fallback"
    await context.set_variable("c", "x", {"a": [1, 2.5, None, True]})
    assert await context.get_variable("c", "x") == {"a": [1, 2.5, None, True]}
    await context.set_variables("c", {"y": 1, "z": 2})
    assert await context.get_variables("c") == {"x": {"a": [1, 2.5, None, True]}, "y": 1, "z": 2}
    assert await context.get_variables("c", ["y", "absent"]) == {"y": 1}
    assert await context.delete_variable("c", "y") is True
    assert await context.delete_variable("c", "y") is False


async def test_set_variables_is_all_or_nothing(context):
    """One value that can't be stored keeps the others out."""
    with pytest.raises(UnsupportedValueError):
        await context.set_variables("c", {"good": 1, "bad": object()})
    assert await context.get_variables("c") == {}


async def test_returned_values_are_copies(context):
    """Changing what was returned changes nothing that is stored."""
    await context.set_variable("c", "x", [1])
    (await context.get_variable("c", "x")).append(2)
    assert await context.get_variable("c", "x") == [1]


async def test_typed_variables(context):
    """as_type= validates on the way out."""

    class Profile(BaseModel):
        name: str
        age: int = 0

    await context.set_variable("c", "profile", {"name": "Alice"})
    profile = await context.get_variable("c", "profile", as_type=Profile)
    assert profile == Profile(name="Alice")
    with pytest.raises(UnsupportedValueError, match="profile"):
        await context.get_variable("c", "profile", as_type=int)


async def test_increments_and_updates_lose_nothing(context):
    """Concurrent read-modify-writes are tried again, increments never conflict."""
    await asyncio.gather(*(context.increment("c", "n") for _ in range(20)))
    await asyncio.gather(*(context.update("c", "m", lambda v: v + 1, 0) for _ in range(10)))
    assert await context.get_variables("c") == {"n": 20, "m": 10}


async def test_increment_of_a_number_that_was_set(context):
    """A variable set as a plain number can be incremented, and read back as a number."""
    await context.set_variable("c", "n", 5)
    assert await context.increment("c", "n", 2) == 7
    assert await context.get_variable("c", "n") == 7
    await context.set_variable("c", "text", "x")
    with pytest.raises(TypeError):
        await context.increment("c", "text")


async def test_history_limits(context):
    """The last n oldest first, all without a limit, none for 0, an error for a negative one."""
    for number in range(15):
        await context.add_to_history("c", "user", str(number))
    contents = [message["content"] for message in await context.get_history("c", limit=10)]
    assert contents == [str(number) for number in range(5, 15)]
    assert len(await context.get_history("c")) == 15
    assert await context.get_history("c", limit=0) == []
    assert len(await context.get_history("c", limit=100)) == 15
    with pytest.raises(ValueError, match="-1"):
        await context.get_history("c", limit=-1)


async def test_history_has_no_silent_cap(context):
    """A thousand messages are a thousand messages."""
    await context.add_messages("c", [{"role": "user", "content": str(n)} for n in range(1000)])
    assert len(await context.get_history("c")) == 1000


async def test_history_pages(context):
    """before= and after= bound the range; after= alone pages forward."""
    await context.add_messages("c", [{"role": "user", "content": str(n)} for n in range(1, 11)])
    last = await context.get_history("c", 3)
    earlier = await context.get_history("c", 3, before=last[0])
    assert [m.content for m in earlier] == ["5", "6", "7"]
    forward = await context.get_history("c", 3, after=earlier[-1])
    assert [m.content for m in forward] == ["8", "9", "10"]
    assert [m.content for m in await context.get_history("c", after=2, before=5)] == ["3", "4"]


async def test_history_format(context):
    """A message is a mapping with role, content and an ISO timestamp in UTC."""
    await context.add_to_history("c", "agent", "hello", {"model": "x"})
    message = (await context.get_history("c"))[0]
    assert (message["role"], message["content"], message["metadata"]) == ("assistant", "hello", {"model": "x"})
    assert message["timestamp"].endswith("+00:00")


async def test_edit_and_truncate(context):
    """Chat products edit message n, or cut the history there; numbers are never reused."""
    await context.add_messages("c", [{"role": "user", "content": str(n)} for n in range(1, 6)])
    edited = await context.edit_message("c", 2, "two")
    assert (edited.content, edited.position) == ("two", 2)
    assert await context.truncate_history("c", 4) == 2
    await context.add_to_history("c", "user", "four")
    history = await context.get_history("c")
    assert [(m.content, m.position, m.seq) for m in history] == [
        ("1", 1, 1),
        ("two", 2, 2),
        ("3", 3, 3),
        ("four", 4, 6),
    ]
    with pytest.raises(ContextNotFoundError):
        await context.edit_message("c", 9, "x")
    assert await context.trim_history("c", 2) == 2
    assert [m.position for m in await context.get_history("c")] == [3, 4]


async def test_a_message_id_is_added_once(context):
    """A redelivered message with the host's id adds nothing."""
    for _ in range(3):
        await context.add_to_history("c", "user", "hi", message_id="m-1")
    assert len(await context.get_history("c")) == 1


async def test_messages_and_variables_may_expire(clocked, clock):
    """A message or variable with its own lifetime is absent afterwards, the rest stays."""
    context = ConversationContext(Store(clocked, clock=clock))
    await context.add_to_history("c", "user", "stays")
    await context.add_to_history("c", "user", "goes", ttl=10)
    await context.set_variable("c", "goes", 1, ttl=10)
    assert len(await context.get_history("c", 1)) == 1
    clock.advance(11)
    assert [m.content for m in await context.get_history("c", 1)] == ["stays"]
    assert await context.get_variable("c", "goes") is None


async def test_get_or_create(context):
    """It returns the whole state, and makes it when it is absent."""
    state = await context.get_or_create("c", user_id="alice")
    assert (state.context_id, state.user_id, state.variables, state.history) == ("c", "alice", {}, ())
    await context.set_variable("c", "x", 1)
    await context.add_to_history("c", "user", "hi")
    again = await context.get_or_create("c", user_id="alice")
    assert again["version"] == 3
    assert again.variables == {"x": 1}
    assert again.created_at <= again.updated_at
    with pytest.raises(ContextNotFoundError):
        await context.get_or_create("c", user_id="bob")


async def test_owners(context, storage):
    """A state of one owner is not there for another; adopt gives one that is nobody's to a user."""
    alice = ConversationContext(storage, principal="alice")
    bob = ConversationContext(storage, principal="bob")
    await alice.set_variable("c", "x", 1)
    with pytest.raises(ContextNotFoundError) as denied:
        await bob.get_variable("c", "x")
    with pytest.raises(ContextNotFoundError):
        await bob.set_variable("c", "x", 2)
    with pytest.raises(ContextNotFoundError) as absent:
        await bob.get("nothing")
    assert str(denied.value).replace("c ", "") == str(absent.value).replace("nothing ", "")
    assert [info.context_id for info in await alice.list_contexts()] == ["c"]
    assert await bob.list_contexts() == []
    await context.set_variable("anonymous", "x", 1)
    await context.adopt("anonymous", "bob")
    with pytest.raises(ContextNotFoundError):
        await context.adopt("anonymous", "alice")
    assert await bob.get_variable("anonymous", "x") == 1


async def test_clear_context(context):
    """Everything is gone, and the id can be used again."""
    await context.set_variable("c", "x", 1)
    await context.add_to_history("c", "user", "hi")
    await context.clear_context("c")
    assert not await context.exists("c")
    assert await context.list_contexts() == []
    assert await context.get_history("c") == []
    await context.set_variable("c", "x", 2)
    assert await context.get_variables("c") == {"x": 2}


async def test_listing_pages(context):
    """Pages cover everything once, by id or by update, in both directions."""
    for number in range(25):
        await context.get_or_create(f"id-{number:02}", user_id="even" if number % 2 == 0 else "odd")
    await context.get_or_create("other")
    found, cursor = [], None
    while True:
        page = await context.list_contexts(prefix="id-", limit=10, cursor=cursor)
        found += page.ids
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [f"id-{number:02}" for number in range(25)]
    assert len(await context.list_contexts("odd")) == 12
    newest = await context.list_contexts(order="updated", reverse=True, limit=1)
    assert newest.ids == ["other"]


async def test_cleanup(clocked, clock):
    """Old conversations go, new ones stay, a dry run only counts."""
    context = ConversationContext(Store(clocked, clock=clock))
    for number in range(5):
        await context.set_variable(f"old-{number}", "x", 1)
    clock.advance(25 * 3600)
    await context.set_variable("new", "x", 1)
    assert await context.cleanup_old_contexts(24, dry_run=True) == 5
    assert await context.cleanup_old_contexts(max_age_hours=24) == 5
    assert (await context.list_contexts()).ids == ["new"]


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\0b", "\ud800", None, 7])
async def test_bad_ids(context, bad):
    """An id that can't be one is refused, and nothing is stored."""
    with pytest.raises(ContextIdError):
        await context.set_variable(bad, "x", 1)
    assert await context.list_contexts() == []


@pytest.mark.parametrize(
    "hostile",
    ["../../etc/passwd", "a:b", "a/b", "{x}", "*", "💣", "a\nb", "\u00e9", "e\u0301", "CON", ".", "%2F", "'; DROP--"],
)
async def test_hostile_ids_are_data(context, hostile):
    """An id reads back byte for byte, and reaches no other state."""
    await context.set_variable(hostile, "x", 1)
    await context.set_variable(hostile + "2", "x", 2)
    assert await context.get_variable(hostile, "x") == 1
    assert sorted((await context.list_contexts()).ids) == sorted([hostile, hostile + "2"])
    await context.clear_context(hostile)
    assert (await context.list_contexts()).ids == [hostile + "2"]


async def test_a_conflict_outside_a_turn_is_tried_again(context, storage):
    """A read-modify-write outside a turn comes through while others write."""

    async def contend():
        for _ in range(5):
            await context.update("c", "n", lambda value: value + 1, 0)

    await asyncio.gather(*(contend() for _ in range(4)))
    assert await context.get_variable("c", "n") == 20


class Text(str, Enum):  # noqa: UP042 - str() of it is another text, which is the point
    """What a host may pass for text."""

    A = "a"


async def test_text_of_another_class_is_text(context):
    """An Enum of text names the same state and variable as its text."""
    await context.set_variable(Text.A, Text.A, 1)
    assert (await context.list_contexts()).ids == ["a"]
    assert type((await context.list_contexts()).ids[0]) is str
    assert await context.get_variables("a") == {"a": 1}


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\0b", "\ud800", None, 7])
async def test_bad_keys(context, bad):
    """A key that can't be one is refused wherever it is given, and nothing is stored."""
    for call in (
        context.set_variable("c", bad, 1),
        context.set_variables("c", {bad: 1}),
        context.increment("c", bad),
        context.update("c", bad, lambda v: v),
        context.set_metadata("c", bad, 1),
    ):
        with pytest.raises(ContextIdError, match="The key"):
            await call
    assert await context.list_contexts() == []
