"""Handlers, and calls of them. Both type checkers must report the lines marked ``wrong``, and no others."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, assert_type

from agentstate import (
    Conversation,
    ConversationContext,
    SyncConversation,
    SyncConversationContext,
    stateful,
    stateful_conversation,
    stateful_session,
    stateful_user,
    with_state,
)


class Task:
    """What a host passes."""

    id: str = ""


task = Task()


@stateful
async def bound(task: Task, conversation: Conversation) -> int:
    return await conversation.increment("n")


@stateful(storage="memory", ttl=None, turns="reject", max_connections=3)
async def more(task: Task, conversation: Conversation, text: str, *, loud: bool = False) -> int:
    return 1


@stateful
async def request_first(request: Task, conversation: Conversation, text: str = "") -> int:
    return 1


@stateful
async def leading(conversation: Conversation, task: Task, text: str = "") -> int:
    return 1


@stateful
async def alone(conversation: Conversation) -> int:
    return 1


@stateful
async def optional(task: Task, conversation: Conversation | None = None) -> int:
    return 1


@stateful
async def by_name(task: Task, context: ConversationContext, context_id: str) -> str:
    return context_id


@stateful
async def by_name_more(task: Task, context: ConversationContext, context_id: str, text: str = "") -> str:
    return context_id


@stateful
async def by_name_leading(context: ConversationContext, context_id: str, task: Task) -> str:
    return context_id


@stateful
async def third(task: Task, text: str, conversation: Conversation, loud: bool = False) -> int:
    return 1


@stateful
async def stream(task: Task, conversation: Conversation) -> AsyncGenerator[str, None]:
    yield "chunk"


@stateful
async def iterate(task: Task, conversation: Conversation) -> AsyncIterator[str]:
    yield "chunk"


@stateful
def block(task: Task, conversation: SyncConversation) -> int:
    return 1


@stateful
def block_by_name(task: Task, context: SyncConversationContext, context_id: str) -> int:
    return 1


async def functions() -> None:
    assert_type(await bound(task), int)
    assert_type(await bound(task=task), int)
    coroutine: Coroutine[Any, Any, int] = bound(task)
    assert_type(await coroutine, int)
    assert_type(await more(task, "hi", loud=True), int)
    assert_type(await more(task=task, text="hi"), int)
    assert_type(await request_first(task, text="hi"), int)
    assert_type(await leading(task, "hi"), int)
    assert_type(await leading(task=task, text="hi"), int)
    assert_type(await alone(), int)
    assert_type(await by_name(task), str)
    assert_type(await by_name(task=task), str)
    assert_type(await by_name_more(task, text="hi"), str)
    assert_type(await by_name_leading(task=task), str)
    assert_type(await third(task, "hi", loud=True), int)
    assert_type(stream(task), AsyncGenerator[str, None])
    assert_type([chunk async for chunk in iterate(task=task)], list[str])
    assert_type(block(task), int)
    assert_type(block_by_name(task=task), int)
    table: dict[str, Callable[[Task], Coroutine[Any, Any, int]]] = {"bound": bound, "leading": leading}
    assert_type(await table["bound"](task), int)
    await bound()  # wrong: no task
    await bound("task")  # wrong: no Task
    await bound(task, 7)  # wrong: too many
    await bound(task, nonsense=7)  # wrong: no such parameter
    await more(task)  # wrong: no text
    await more(task, text=7)  # wrong: text is no number
    await leading(7)  # wrong: no Task
    await alone(task)  # wrong: it takes nothing
    await by_name(task, 7)  # wrong: too many
    await by_name_more(task, text=7)  # wrong: text is no number
    block(7)  # wrong: no Task
    (await bound(task)).upper()  # wrong: it returns a number


class Agent:
    """Handlers that are methods."""

    @stateful
    async def bound(self, task: Task, conversation: Conversation) -> int:
        return 1

    @stateful(storage="memory")
    async def more(self, task: Task, conversation: Conversation, text: str = "") -> int:
        return 1

    @stateful
    async def request_first(self, request: Task, conversation: Conversation) -> int:
        return 1

    @stateful
    async def leading(self, conversation: Conversation, task: Task) -> int:
        return 1

    @stateful
    async def by_name(self, task: Task, context: ConversationContext, context_id: str) -> str:
        return context_id

    @stateful
    async def stream(self, task: Task, conversation: Conversation) -> AsyncGenerator[str, None]:
        yield "chunk"

    @staticmethod
    @stateful
    async def static(task: Task, conversation: Conversation) -> int:
        return 1

    @classmethod
    @stateful
    async def of_class(cls, task: Task, conversation: Conversation) -> int:
        return 1


async def methods(agent: Agent) -> None:
    assert_type(await agent.bound(task), int)
    assert_type(await agent.bound(task=task), int)
    assert_type(await agent.more(task=task, text="hi"), int)
    assert_type(await agent.request_first(task), int)
    assert_type(await agent.leading(task=task), int)
    assert_type(await agent.by_name(task=task), str)
    assert_type(agent.stream(task), AsyncGenerator[str, None])
    assert_type(await agent.static(task=task), int)
    assert_type(await agent.of_class(task), int)
    assert_type(await Agent.of_class(task=task), int)
    assert_type(await Agent.bound(agent, task=task), int)
    assert_type(await Agent.leading(agent, task), int)
    await agent.bound()  # wrong: no task
    await agent.bound(task, 7)  # wrong: too many
    await agent.more(task, text=7)  # wrong: text is no number
    await agent.by_name("task")  # wrong: no Task
    await Agent.of_class(7)  # wrong: no Task


@stateful_conversation
async def per_conversation(task: Task, conversation: Conversation) -> int:
    return 1


@stateful_session(storage="memory")
async def per_session(task: Task, conversation: Conversation) -> int:
    return 1


@stateful_user
async def per_user(task: Task, conversation: Conversation) -> int:
    return 1


@with_state({"backend": "memory"})
async def configured(task: Task, conversation: Conversation) -> int:
    return 1


async def siblings() -> None:
    assert_type(await per_conversation(task=task), int)
    assert_type(await per_session(task=task), int)
    assert_type(await per_user(task=task), int)
    assert_type(await configured(task=task), int)
    await per_user(7)  # wrong: no Task


# Other shapes can be called with anything, and keep what they return.


@stateful
async def renamed(task: Task, chat: Conversation) -> int:
    return 1


@stateful
async def keyword(task: Task, *, conversation: Conversation) -> int:
    return 1


@stateful(inject={"context": "state", "context_id": "sid"})
async def mapped(task: Task, state: ConversationContext, sid: str) -> int:
    return 1


@stateful(inject=False)
async def nothing(task: Task) -> int:
    return 1


async def others() -> None:
    assert_type(await renamed(task), int)
    assert_type(await keyword(task=task), int)
    assert_type(await mapped(task), int)
    assert_type(await nothing(task), int)
    assert_type(await stateful(functools.partial(mapped, sid="x"))(task), int)


# So can handlers without annotations, as long as they are called with what they take.


@stateful
async def bare(task, context, context_id):
    return 1


@stateful
async def bare_bound(request, conversation):
    return 1


@stateful
async def half_bound(task, conversation: Conversation):
    return 1


@stateful
async def bare_five(one, two, three, context, context_id):
    return 1


class Bare:
    """Methods without annotations."""

    @stateful
    async def bare(self, task, context, context_id):
        return 1

    @stateful
    async def other(self, request, conversation):
        return 1


async def without_annotations() -> None:
    await bare(task)
    await bare_bound(task)
    await half_bound(task)
    await half_bound(task=task)
    await bare_five(task, 2, 3)
    await Bare().bare(task)
    await Bare().other(task)


# Settings are checked where they are known.

stateful(turns="sometimes")  # wrong: no such way
stateful(ttl="long")  # wrong: no number
stateful(7)  # wrong: no handler
