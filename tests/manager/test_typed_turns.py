"""A handler's variables as an object of its own type: only the fields that it changed are stored."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, Field

from agentstate import Conversation, StateManager, stateful
from agentstate.errors import ConflictError, HandlerSignatureError, UnsupportedValueError
from agentstate.state.record import decode_record

TASK = {"context_id": "c"}


class Profile(BaseModel):
    """What a conversation knows of its user."""

    name: str = ""
    visits: int = 0
    tags: list[str] = Field(default_factory=list)
    since: datetime | None = None


@dataclass
class Counter:
    """The same as a dataclass."""

    n: int = 0
    seen: list[int] = field(default_factory=list)


async def changed(storage):
    """Return what each commit set."""
    from agentstate import StateScope

    records = [decode_record(one.record) for one in await storage.journal(StateScope.conversation("c"))]
    return [record.get("set", {}).get("variables", {}) for record in records]


async def test_changed_fields_alone(memory):
    """Fields that weren't changed aren't written, and callers don't see the parameter."""

    @stateful(storage=memory, state=Profile)
    async def handler(task, profile: Profile):
        profile.visits += 1
        if "name" in task:
            profile.name = task["name"]
            profile.tags.append("named")
            profile.since = datetime(2026, 1, 1, tzinfo=UTC)
        return profile.model_copy(deep=True)

    assert [*inspect.signature(handler).parameters] == ["task"]
    assert await handler(TASK) == Profile(visits=1)
    found = await handler({**TASK, "name": "Ada"})
    assert found == Profile(name="Ada", visits=2, tags=["named"], since=datetime(2026, 1, 1, tzinfo=UTC))
    assert (await handler(TASK)).tags == ["named"]
    assert [sorted(one) for one in await changed(memory)] == [
        ["visits"],
        ["name", "since", "tags", "visits"],
        ["visits"],
    ]


async def test_with_other_parameters(memory):
    """It stands beside the conversation, whose variables are the fields."""

    @stateful(storage=memory, state=Profile)
    async def handler(task, conversation: Conversation, state):
        await conversation.add("user", "hi")
        assert await conversation.get("visits", 0) == state.visits
        state.visits += 1
        return await conversation.get("visits", 0)

    assert [await handler(TASK), await handler(TASK)] == [0, 1]
    assert await StateManager(memory).conversation("c").to_dict() == {"visits": 2}


async def test_nothing_changed(memory):
    """A handler that changes nothing commits nothing."""

    @stateful(storage=memory, state=Profile)
    async def handler(task, profile: Profile):
        return profile.visits

    assert await handler(TASK) == 0
    assert not await StateManager(memory).conversation("c").exists()


async def test_a_failed_handler(memory):
    """What a failed handler changed isn't stored."""

    @stateful(storage=memory, state=Profile)
    async def handler(task, profile: Profile):
        profile.visits += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler(TASK)
    assert not await StateManager(memory).conversation("c").exists()


def test_a_synchronous_handler(tmp_path):
    """The same in a synchronous handler, with a dataclass."""
    from agentstate import sync

    url = f"sqlite:///{tmp_path}/s.db"

    @stateful(url=url, state=Counter)
    def handler(task, counter: Counter):
        counter.n += 1
        counter.seen.append(counter.n)
        return counter.seen

    assert [handler(TASK), handler(TASK)] == [[1], [1, 2]]
    with sync.StateManager(url) as manager:
        assert manager.conversation("c").to_dict() == {"n": 2, "seen": [1, 2]}


async def test_a_method(memory):
    """The same in a method."""

    class Agent:
        @stateful(storage=memory, state=Counter)
        async def handle(self, task, counter: Counter):
            counter.n += 1
            return counter.n

    agent = Agent()
    assert [await agent.handle(TASK), await agent.handle(TASK)] == [1, 2]


async def test_a_stored_value_of_another_type(memory):
    """A variable that doesn't fit is an error that names it, before the handler runs."""
    await StateManager(memory).conversation("c").set("visits", "many")

    @stateful(storage=memory, state=Profile)
    async def handler(task, profile: Profile):
        raise AssertionError

    with pytest.raises(UnsupportedValueError, match="/visits"):
        await handler(TASK)


async def test_what_it_read_is_checked(memory):
    """A field that somebody else changed meanwhile refuses the commit."""

    memory_manager = StateManager(memory)

    @stateful(storage=memory, state=Profile, turns="optimistic")
    async def racing(task, profile: Profile):
        import asyncio
        import contextvars

        other = memory_manager.conversation("c").set("visits", 9)
        await asyncio.create_task(other, context=contextvars.Context())
        profile.visits += 1

    with pytest.raises(ConflictError):
        await racing(TASK)
    assert await memory_manager.conversation("c").get("visits") == 9


def test_refused_at_decoration():
    """A type without defaults, a handler without a place for it, and a stream are refused where they are decorated."""

    class Strict(BaseModel):
        name: str

    async def strict(task, profile: Strict): ...

    async def nowhere(task, context): ...

    async def stream(task, profile: Profile):
        yield 1

    for func, wanted, said in ((strict, Strict, "default"), (nowhere, Profile, "Add one"), (stream, Profile, "stream")):
        with pytest.raises(HandlerSignatureError, match=said):
            stateful(state=wanted)(func)
