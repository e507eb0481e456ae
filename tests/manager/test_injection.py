"""States of all kinds in handlers: injected as ``state``, a part of the turn."""

from __future__ import annotations

import inspect

import pytest

from agentstate import BoundState, Conversation, StateManager, StateScope, stateful, sync
from agentstate.errors import ConflictError, ContextIdError, HandlerSignatureError, UnsupportedError
from agentstate.storage import registry

TASK = {"context_id": "c"}


@pytest.fixture
def storage(joint):
    """The storage of a manager that commits several states as one."""
    return joint.routes.of("agent").store.storage


async def test_by_annotation_and_by_name(joint, storage):
    """A handler counts its visits under its own name as the agent, and callers don't see the parameter."""

    @stateful(storage=storage)
    async def annotated(task, state: BoundState):
        visits = await state.get(StateScope.AGENT, "visits") or 0
        await state.set(StateScope.AGENT, "visits", visits + 1)
        await state.increment(StateScope.CONVERSATION, "n")

    @stateful(storage=storage)
    async def named(task, context_id, state):
        await state.increment(StateScope.AGENT, "visits", 10)
        await state.increment(StateScope.GLOBAL, "all")

    await annotated(TASK)
    await annotated(TASK)
    await named(TASK)
    assert [*inspect.signature(annotated).parameters] == [*inspect.signature(named).parameters] == ["task"]
    assert await joint.agent("annotated").get("visits") == 2
    assert await joint.agent("named").get("visits") == 10
    assert await joint.conversation("c").get("n") == 2
    assert await joint.global_state.get("all") == 1


def test_a_synchronous_handler(tmp_path):
    """The same in a synchronous handler, without await."""
    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/s.db"})

    @stateful(storage=storage)
    def handle(message, state: sync.BoundState, conversation: sync.ConversationScope = 5):
        visits = state.get(StateScope.AGENT, "visits") or 0
        state.set(StateScope.AGENT, "visits", visits + 1)
        return visits

    @stateful(storage=storage)
    def named(message, state):
        return state.bind(agent="handle").get(StateScope.AGENT, "visits")

    assert [handle(TASK), handle(TASK), named(TASK)] == [0, 1, 2]
    manager = sync.StateManager(storage)
    assert manager.agent("handle").get("visits") == 2
    manager.close()


async def test_a_handler_that_fails(joint, storage):
    """What it did to other states is undone with its own."""

    @stateful(storage=storage)
    async def handler(task, conversation: Conversation, state: BoundState):
        await conversation.set("k", 1)
        await state.set(StateScope.AGENT, "k", 1)
        await state.bind(team="t").set(StateScope.TEAM, "k", 1)
        assert await state.get(StateScope.AGENT, "k") == 1
        assert await joint.agent("handler").get("k") is None
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler(TASK)
    assert [await joint.exists(scope) for scope in (StateScope.agent("handler"), StateScope.team("t"))] == [False] * 2


async def test_another_state_is_checked(joint, storage):
    """A change of what the handler read of another state, and built on, refuses its commit."""

    @stateful(storage=storage)
    async def handler(task, state: BoundState):
        visits = await state.get(StateScope.AGENT, "visits", 0)
        await joint.agent("handler").set("visits", 100)
        await state.set(StateScope.AGENT, "visits", visits + 1)

    with pytest.raises(ConflictError):
        await handler(TASK)
    assert await joint.agent("handler").get("visits") == 100


async def test_nested_handlers(joint, storage):
    """A handler inside another one's turn works in its frame: kept with its success, dropped with its error."""

    @stateful(storage=storage)
    async def inner(task, state: BoundState):
        await state.bind(team="t").increment(StateScope.TEAM, "n")
        if task.get("fail"):
            raise ZeroDivisionError

    @stateful(storage=storage)
    async def outer(task, state: BoundState):
        await inner(TASK)
        with pytest.raises(ZeroDivisionError):
            await inner({**TASK, "fail": True})
        return await state.bind(team="t").get(StateScope.TEAM, "n")

    assert await outer(TASK) == 1
    assert await joint.team("t").get("n") == 1


async def test_states_of_users(joint, storage):
    """Who asks is the user; what is shared belongs to nobody, whoever made it."""

    @stateful(storage=storage, owner=lambda task: task["user"])
    async def handler(task, state: BoundState):
        await state.increment(StateScope.USER, "n")
        return await state.bind(team="t").increment(StateScope.TEAM, "n")

    assert [await handler({"context_id": name, "user": name}) for name in ("ada", "bob", "ada")] == [1, 2, 3]
    assert (await joint.team("t").info()).owner is None
    assert (await joint.user("ada").info()).owner == "ada"
    assert await joint.user("ada").get("n") == 2


async def test_what_isnt_known(storage):
    """A kind to which nothing is bound is an error that says how to bind it."""

    @stateful(storage=storage)
    async def handler(task, state: BoundState):
        await state.get(StateScope.TEAM, "k")

    with pytest.raises(ContextIdError, match="bind"):
        await handler(TASK)


@pytest.mark.parametrize("backend", ["file", "valkey"])
@pytest.mark.parametrize("kind", [StateScope.AGENT, StateScope.user("u")])
async def test_an_engine_that_cant(storage_options, backend, kind):
    """Where another state can't be in the turn's commit, touching it raises; the turn's own state works."""
    storage = registry.create(backend, storage_options(backend))

    @stateful(storage=storage)
    async def handler(task, state: BoundState):
        await state.set(StateScope.CONVERSATION, "k", 1)
        if task.get("other"):
            await state.get(kind, "k")

    await handler(TASK)
    with pytest.raises(UnsupportedError):
        await handler({**TASK, "other": True})
    assert await StateManager(storage).conversation("c").get("k") == 1
    await storage.close()


def test_the_wrong_face():
    """An asynchronous handler that asks for the blocking state, or the other way round, is refused at decoration."""
    with pytest.raises(HandlerSignatureError, match="from agentstate"):

        @stateful
        async def one(task, state: sync.BoundState): ...

    with pytest.raises(HandlerSignatureError, match=r"from agentstate\.sync"):

        @stateful
        def two(task, state: BoundState): ...


async def test_a_first_parameter_called_state(storage):
    """A first parameter of that name is the caller's: graph nodes take their state there."""

    @stateful(storage=storage)
    async def node(state, context, context_id):
        return state

    assert await node({"context_id": "c", "x": 1}) == {"context_id": "c", "x": 1}


async def test_renamed(storage):
    """Another parameter may get it by name."""

    @stateful(storage=storage, inject={"state": "memory"})
    async def handler(task, memory):
        return await memory.increment(StateScope.AGENT, "n")

    assert await handler(TASK) == 1


async def test_a_method(joint, storage):
    """Methods get it as functions do."""

    class Agent:
        @stateful(storage=storage)
        async def handle(self, task, state):
            return await state.bind(agent="a").increment(StateScope.AGENT, "n")

    assert await Agent().handle(TASK) == 1
    assert await joint.agent("a").get("n") == 1
