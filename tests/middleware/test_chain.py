"""Handlers in dispatch tables and chains get their state from StateMiddleware."""

from __future__ import annotations

import functools
import inspect

import pytest

import agentstate
from agentstate import Conversation, configure
from agentstate.errors import ContextIdError
from agentstate.middleware import StateMiddleware


async def bare(request):
    """Take nothing injected."""
    return await agentstate.current().increment("n")


async def seed_style(request, context, context_id):
    return await context.increment(context_id, "n")


async def bound_style(request, conversation: Conversation):
    return await conversation.increment("n")


class Link:
    """A link of a chain, whose call is a coroutine function."""

    def __init__(self, inner=bare):
        self.inner = inner

    async def __call__(self, request):
        return await self.inner(request)


class PlainLink:
    """A link of a chain that hands an awaitable on."""

    def __init__(self, inner=bare):
        self.inner = inner

    def __call__(self, request):
        return self.inner(request)


class Typed:
    """A link that asks for its conversation itself."""

    async def __call__(self, request, conversation: Conversation):
        return await conversation.increment("n")


class Agent:
    async def chat(self, request, conversation: Conversation):
        assert isinstance(self, Agent)
        return await conversation.increment("n")


HANDLERS = [
    bare,
    seed_style,
    bound_style,
    Link(),
    PlainLink(),
    Link(PlainLink(Link())),
    Agent().chat,
    Typed(),
    functools.partial(bare),
    functools.partial(bound_style),
]


@pytest.mark.parametrize("handler", HANDLERS, ids=range(len(HANDLERS)))
async def test_whatever_can_be_called_gets_state(memory, stored, handler):
    """Functions, methods, partials and links of a chain run in a turn of the request's conversation."""
    wrapped = StateMiddleware(handler, storage=memory)
    assert [await wrapped({"context_id": "c-1"}) for _ in range(3)] == [1, 2, 3]
    assert (await stored.get("c-1")).version == 3
    assert inspect.iscoroutinefunction(wrapped)
    assert list(inspect.signature(wrapped).parameters) == ["request"]


async def test_a_dispatch_table(tmp_path, monkeypatch):
    """Each handler of a table has its own name, and with it its own block of the configuration."""
    path = tmp_path / "agent_config.yaml"
    path.write_text(
        f"state: {{backend: sqlite, url: 'sqlite:///{tmp_path}/a.db'}}\n"
        f"handlers: {{two: {{state: {{url: 'sqlite:///{tmp_path}/b.db'}}}}}}\n"
    )
    configure(path)
    try:
        table = {name: StateMiddleware(bare, name=name) for name in ("one", "two")}
        assert [await table[name]({"context_id": "c"}) for name in ("one", "two", "one")] == [1, 1, 2]
        assert (tmp_path / "a.db").exists()
        assert (tmp_path / "b.db").exists()
        await agentstate.aclose()
    finally:
        monkeypatch.chdir(tmp_path / "..")
        configure()


async def test_streams_run_in_a_turn(memory, stored):
    """A streaming link holds its turn until its end."""

    class Streaming:
        async def __call__(self, request):
            for n in range(3):
                await agentstate.current().add("assistant", str(n))
                yield n

    assert [n async for n in StateMiddleware(Streaming(), storage=memory)({"context_id": "c-1"})] == [0, 1, 2]
    assert (await stored.get("c-1")).version == 1


async def test_errors_roll_back_and_go_on(memory, stored):
    """A handler that fails stores nothing, and is called once."""
    calls = []

    async def failing(request):
        calls.append(request)
        await agentstate.current().set("n", 1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await StateMiddleware(failing, storage=memory)({"context_id": "c-1"})
    assert len(calls) == 1
    assert not await stored.exists("c-1")


async def test_a_request_without_an_id_says_what_was_looked_at(memory):
    """No id is a typed error that names the handler."""
    with pytest.raises(ContextIdError, match="bare"):
        await StateMiddleware(bare, storage=memory)({"text": "hi"})


async def test_nested_links_share_a_turn(memory, stored):
    """Two links with state on one conversation are one commit."""
    inner = StateMiddleware(bare, storage=memory)
    assert await StateMiddleware(Link(inner), storage=memory)({"context_id": "c-1"}) == 1
    assert (await stored.get("c-1")).version == 1
