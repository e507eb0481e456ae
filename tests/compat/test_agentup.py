"""AgentUp's names and signatures over this core."""

from __future__ import annotations

import inspect
import json
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

import agentstate
from agentstate.compat import agentup
from agentstate.compat.agentup import (
    ConversationContext,
    ConversationState,
    FileStorage,
    InMemoryStorage,
    StateStorage,
    ValkeyStorage,
    get_context_manager,
    register_handler,
    stateful,
    stateful_conversation,
    stateful_session,
    stateful_user,
    with_state,
)
from agentstate.errors import ContextIdError, UnknownBackendError, UnsupportedError


def task(context_id="c-1", **metadata):
    return SimpleNamespace(id="task-1", context_id=context_id, metadata=metadata)


@pytest.fixture
def storage():
    return InMemoryStorage()


async def test_all_names_are_there():
    """Everything that a handler file imports from AgentUp can be imported here."""
    for name in agentup.__all__:
        assert getattr(agentup, name) is not None


async def test_without_a_storage_a_context_is_in_memory():
    """ConversationContext() and ConversationContext(InMemoryStorage()) are for tests, each on its own."""
    first, second = ConversationContext(), ConversationContext(InMemoryStorage())
    await first.set_variable("c", "n", 1)
    assert await second.get_variable("c", "n") is None
    assert not first.persistent


async def test_history_is_a_list_of_plain_dicts(storage):
    """What get_history returns is JSON-able, as model clients want it, in and outside of handlers."""
    context = ConversationContext(storage)
    await context.add_to_history("c-1", "user", "hello", {"tokens": 3})
    await context.add_to_history("c-1", "agent", "hi")

    @stateful(storage)
    async def handler(task, context, context_id):
        return await context.get_history(context_id, limit=1)

    history = await context.get_history("c-1")
    assert json.loads(json.dumps(history)) == history
    assert [(one["role"], one["content"], one["metadata"]) for one in history] == [
        ("user", "hello", {"tokens": 3}),
        ("assistant", "hi", {}),
    ]
    assert await handler(task()) == history[-1:]
    assert await context.get_history("c-1", 0) == []


async def test_a_handler_gets_what_it_asks_for(storage):
    """context, context_id, both or neither, whatever they are annotated with; other arguments go on."""

    @stateful(storage=storage)
    async def neither(task):
        return await agentstate.current().increment("n")

    @stateful(storage=storage)
    async def only_id(task, context_id):
        return context_id

    @stateful(storage=storage)
    async def annotated(task, factor, *rest, context: "SomethingElse", context_id: str, **more):  # noqa: F821, UP037
        return type(context), context_id, factor, rest, more

    assert await neither(task()) == 1
    assert await only_id(task()) == "c-1"
    assert await annotated(task(), 2, 3, extra=4) == (ConversationContext, "c-1", 2, (3,), {"extra": 4})
    assert "context" not in inspect.signature(annotated).parameters


async def test_methods_are_handlers(storage):
    """A method gets its state, too."""

    class Plugin:
        @stateful(storage=storage)
        async def run(self, task, context, context_id):
            assert isinstance(self, Plugin)
            return context_id

    assert await Plugin().run(task()) == "c-1"


async def test_a_failing_handler_runs_once_and_leaves_nothing(storage):
    """No second call, and no half of a turn."""
    calls = []

    @stateful(storage=storage)
    async def failing(task, context, context_id):
        calls.append(context_id)
        await context.add_to_history(context_id, "user", "hello")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await failing(task())
    assert calls == ["c-1"]
    assert await ConversationContext(storage).get_history("c-1") == []


async def test_immediate_commits_keep_what_came_before_a_crash(storage):
    """commit="immediate" is AgentUp's way: each call is stored at once."""

    @stateful(storage=storage, commit="immediate")
    async def failing(task, context, context_id):
        await context.add_to_history(context_id, "user", "hello")
        assert len(await ConversationContext(storage).get_history(context_id)) == 1
        raise LookupError

    with pytest.raises(LookupError):
        await failing(task())
    assert len(await ConversationContext(storage).get_history("c-1")) == 1


async def test_register_handler_in_either_order(storage):
    """A registered handler is the one with state, wherever the decorator stands."""
    names = [f"handler-{uuid.uuid4()}" for _ in range(2)]

    @register_handler(names[0])
    @stateful(storage=storage)
    async def above(task, context, context_id):
        return context_id

    @stateful(storage=storage)
    @register_handler(names[1])
    async def below(task, context, context_id):
        return context_id

    assert [await agentstate.dispatch(name, task()) for name in names] == ["c-1", "c-1"]
    assert below.binding.names[0] == names[1]


async def test_the_siblings(storage):
    """Conversation, session and user each have a state of their own."""

    @stateful_conversation(storage)
    async def conversation(task, context, context_id):
        return context_id

    @stateful_session(backend=storage)
    async def session(task, context, context_id):
        await context.set_variable(context_id, "kind", "session")
        return context_id

    @stateful_user(storage, owner=lambda task: task.metadata.get("who"))
    async def user(task, context, context_id):
        return context_id, await context.get_variable(context_id, "kind")

    asked = task("c-1", conversation_id="c-2", session_id="same", who="same")
    assert await conversation(asked) == "c-2"
    assert await session(asked) == "same"
    assert await user(asked) == ("same", None)
    with pytest.raises(ContextIdError, match="signed in"):
        await user(task(user_id="alice"))


async def test_with_state_takes_the_first_configuration(tmp_path):
    """AgentUp's list of configurations; one that isn't enabled leaves the handler alone."""

    async def handler(task, context, context_id):
        return await context.increment(context_id, "n")

    config = {"enabled": True, "backend": "file", "config": {"storage_dir": str(tmp_path / "states")}}
    applied = with_state([config])(handler)
    assert [await applied(task()) for _ in range(2)] == [1, 2]
    assert (tmp_path / "states").is_dir()
    assert with_state([])(handler) is handler
    assert with_state([config | {"enabled": False}])(handler) is handler
    await agentstate.aclose()


async def test_each_call_of_get_context_manager_counts(tmp_path):
    """A second backend is really another one; equal settings share theirs."""
    one = get_context_manager("file", storage_dir=str(tmp_path / "one"))
    two = get_context_manager("file", storage_dir=str(tmp_path / "two"), ttl=60)
    await one.set_variable("c", "n", 1)
    assert await two.get_variable("c", "n") is None
    assert two.settings.ttl == 60
    assert get_context_manager("file", storage_dir=str(tmp_path / "one")).store is one.store
    memory = get_context_manager()
    assert get_context_manager("memory").store is memory.store
    assert get_context_manager("memory", force_new=True).store is not memory.store
    with pytest.raises(UnknownBackendError):
        get_context_manager("mongo")
    await agentstate.aclose()


async def test_a_state_is_read_like_agentups(storage):
    """get_or_create gives the fields as attributes; to_dict and from_dict are inverse."""
    context = ConversationContext(storage)
    await context.get_or_create("c-1", user_id="alice")
    await context.set_variable("c-1", "prefs", {"theme": "dark"})
    await context.add_to_history("c-1", "user", "hello")
    state = await context.get_or_create("c-1")
    assert isinstance(state, ConversationState)
    assert (state.context_id, state.user_id) == ("c-1", "alice")
    assert state.variables == {"prefs": {"theme": "dark"}}
    assert state.history[0]["content"] == "hello"
    assert state.updated_at >= state.created_at
    data = json.loads(json.dumps(state.to_dict()))
    assert ConversationState.from_dict(data).to_dict() == data
    made = ConversationState("c", None, datetime.now(UTC), datetime.now(UTC), {}, {"n": 1}, [])
    assert made.variables["n"] == 1
    with pytest.raises(TypeError):
        state.variables["lost"] = 1


async def test_update_state_replaces_whole_fields(storage):
    """update_state() is one change; what it can't replace is an error."""
    context = ConversationContext(storage)
    await context.set_variables("c-1", {"old": 1, "kept": 2})
    await context.add_to_history("c-1", "user", "old")
    version = (await context.get("c-1")).version
    await context.update_state(
        "c-1", variables={"kept": 3, "new": 4}, history=[{"role": "user", "content": "new"}], metadata={"m": 1}
    )
    state = await context.get("c-1")
    assert state.version == version + 1
    assert state.variables == {"kept": 3, "new": 4}
    assert state.metadata == {"m": 1}
    assert [one["content"] for one in await context.get_history("c-1")] == ["new"]
    with pytest.raises(TypeError, match="user_id"):
        await context.update_state("c-1", user_id="mallory")


def test_storages_have_agentups_arguments(tmp_path):
    """FileStorage(storage_dir) and ValkeyStorage(url, key_prefix, ttl), which connect to nothing yet."""
    assert FileStorage(str(tmp_path / "x")).location == str(tmp_path / "x")
    assert FileStorage(storage_dir=str(tmp_path)).location == str(tmp_path)
    storage = ValkeyStorage("valkey://nowhere:1", "prefix:", 60)
    assert storage.options.key_prefix == "prefix:"
    assert ConversationContext(storage).settings.ttl == 60
    assert ValkeyStorage().options.key_prefix == "agentup:state:"
    assert ConversationContext(ValkeyStorage()).settings.ttl == 3600
    for made in (storage, InMemoryStorage(), FileStorage(str(tmp_path))):
        assert isinstance(made, StateStorage)


def test_a_storage_of_ones_own_is_refused_at_its_definition():
    """AgentUp's four methods can't be atomic; the error names what to write instead."""
    with pytest.raises(UnsupportedError, match=r"Mine .*agentstate\.storage\.protocol\.Storage"):
        type("Mine", (StateStorage,), {})


async def test_valkey_states_expire(valkey_server, valkey_prefix):
    """The storage's ttl is the states'."""
    storage = ValkeyStorage(valkey_server.url, valkey_prefix, ttl=1000)
    await ConversationContext(storage).set_variable("c-1", "n", 1)
    (info,) = await ConversationContext(storage).list_contexts()
    assert info.expires_at - info.updated_at == pytest.approx(1000, abs=1)
    await storage.close()
