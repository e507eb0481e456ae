"""What the documents of Victor, RusticAI and rs-llmspell show of their state managers, with the names of this one.

Each test is one block of them, as near to its text as Python and the mapping in the docs allow.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from pydantic import BaseModel

from agentstate import AgentFields, Message, StateManager, StateScope, stateful, sync
from agentstate.errors import ConflictError, TurnTimeoutError
from agentstate.storage import registry
from agentstate.storage.memory import MemoryStorage
from agentstate.sync import BaseStateManager, GlobalStateManager

Scope = StateScope


# -- Victor ------------------------------------------------------------------------------------------


@pytest.fixture
def global_manager():
    """The process's manager, over memory."""
    GlobalStateManager.reset_instance()
    yield GlobalStateManager.get_instance(MemoryStorage())
    GlobalStateManager.reset_instance()


def test_victor_architecture(global_manager):
    """One entry point, with an accessor for each of the four scopes, whose states are their own."""
    states = [
        global_manager.get_conversation_state("session-123"),
        global_manager.get_workflow_state("w"),
        global_manager.get_team_state("t"),
        global_manager.get_global_state(),
    ]
    for number, state in enumerate(states):
        state.update({"n": number})
    assert [state.to_dict() for state in states] == [{"n": number} for number in range(4)]
    assert global_manager.get_conversation_state("session-124").to_dict() == {}


def test_victor_code_example(global_manager):
    """Get the manager, access a conversation, update it, and take it as a dict."""
    manager = GlobalStateManager.get_instance()
    assert manager is global_manager
    conversation = manager.get_conversation_state("session-123")
    conversation.update({"messages": ["hi", "ho"], "stage": "complete"})
    assert conversation.to_dict() == {"messages": ["hi", "ho"], "stage": "complete"}


async def test_victor_hierarchy(memory):
    """GLOBAL, TEAM, WORKFLOW, CONVERSATION: what isn't in one is looked for in the one above."""
    manager = StateManager(memory)
    team = manager.team("t")
    workflow = manager.workflow("w", parent=team)
    conversation = manager.conversation("c", parent=workflow)
    await manager.global_state.set("k", "global")
    await workflow.set("w", 1)
    assert await conversation.get("k", inherit=True) == "global"
    await team.set("k", "team")
    assert await conversation.get("k", inherit=True) == "team"
    assert await conversation.get("k") is None


async def test_victor_lifetimes(clocked, clock):
    """A workflow's state lives as long as its execution, a team's as its session; what is global stays."""
    manager = StateManager(clocked)
    await manager.global_state.set("k", 1)
    async with manager.team("t") as team, manager.workflow("w") as workflow:
        await team.set("k", 1)
        await workflow.set("k", 1)
        await workflow.step("s").set("k", 1)
    clock.advance(8 * 86400)
    assert [await one.exists() for one in (team, workflow, workflow.step("s"))] == [False] * 3
    assert await manager.global_state.exists()


# -- RusticAI ----------------------------------------------------------------------------------------


@pytest.fixture(params=("memory", "sqlite", "file", "valkey"))
def rustic(request, storage_options):
    """A manager over each backend."""
    manager = sync.StateManager(registry.create(request.param, storage_options(request.param)))
    yield manager
    manager.close()


def test_rustic_interface(rustic):
    """get, set, delete and list, the scope first, in all scopes."""
    manager: BaseStateManager = rustic.bind(agent="a", guild="g")
    for number, scope in enumerate((Scope.AGENT, Scope.GUILD, Scope.GLOBAL)):
        assert manager.get(scope, "key") is None
        manager.set(scope, "key", number)
        manager.set(scope, "other", [number])
        assert manager.list(scope) == {"key": number, "other": [number]}
        assert manager.list(scope, prefix="k") == {"key": number}
        manager.delete(scope, "other")
        assert manager.list(scope) == {"key": number}
    assert [manager.get(scope, "key") for scope in (Scope.AGENT, Scope.GUILD, Scope.GLOBAL)] == [0, 1, 2]
    assert isinstance(manager, BaseStateManager)


def test_rustic_working_with_agent_state(tmp_path):
    """A processor counts its visits in its agent's state."""

    class Processor:
        @stateful(url=f"sqlite:///{tmp_path}/guild.db", name="greeter")
        def handle(self, message: dict[str, Any], state: sync.BoundState) -> None:
            visits = state.get(Scope.AGENT, "visits") or 0
            state.set(Scope.AGENT, "visits", visits + 1)

    for _ in range(3):
        Processor().handle({"context_id": "c"})
    with sync.SQLiteStateManager(tmp_path / "guild.db") as manager:
        assert manager.agent("greeter").get("visits") == 3


def test_rustic_strategies(rustic):
    """A conflicting write raises; a write lock is held for as long as it is needed."""
    agent = rustic.agent("a")
    agent.set("k", 1)
    _, version = agent.get_versioned("k")
    agent.set("k", 2)
    with pytest.raises(ConflictError):
        agent.set_expecting("k", 3, version)
    with rustic.lock(agent.scope) as held:
        held.set("k", held.get("k") + 1)
    assert agent.get("k") == 3


def test_rustic_locks_exclude(rustic):
    """A lock that is held elsewhere isn't had."""
    from concurrent.futures import ThreadPoolExecutor

    def elsewhere():
        with pytest.raises(TurnTimeoutError), rustic.lock(Scope.agent("a"), wait=0.05):
            pass

    with rustic.lock(Scope.agent("a")), ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere).result()


def test_rustic_typed_values(rustic):
    """Typed pydantic models for complex values."""

    class Knowledge(BaseModel):
        version: int = 1
        facts: list[str] = []

    rustic.guild("g").set("knowledge", Knowledge(facts=["a"]), as_type=Knowledge)
    assert rustic.guild("g").get("knowledge", as_type=Knowledge) == Knowledge(facts=["a"])


def test_rustic_dependency_injection(valkey_server):
    """A container makes the manager from its class and its configuration."""
    spec = {
        "state_manager": {
            "resolver_class": "agentstate.sync.RedisStateManager",
            "config": {"redis_url": valkey_server.url.replace("valkey://", "redis://")},
        }
    }
    module, _, name = spec["state_manager"]["resolver_class"].rpartition(".")
    manager = getattr(importlib.import_module(module), name)(**spec["state_manager"]["config"])
    manager.set(Scope.agent("injected"), "k", 1)
    assert manager.get(Scope.agent("injected"), "k") == 1
    manager.clear(Scope.agent("injected"))
    manager.close()


# -- rs-llmspell -------------------------------------------------------------------------------------


async def test_llmspell_state_manager(tmp_path):
    """A manager over memory, and one over a file."""
    for url in ("memory://", f"sqlite:///{tmp_path}/state.db"):
        async with StateManager(url) as state_manager:
            await state_manager.set(StateScope.GLOBAL, "key", "value")
            assert await state_manager.get(StateScope.GLOBAL, "key") == "value"


async def test_llmspell_basic_operations(storage):
    """Set, get, delete and list."""
    state_manager = StateManager(storage)
    await state_manager.set(StateScope.GLOBAL, "key", "value")
    assert await state_manager.get(StateScope.GLOBAL, "key") == "value"
    assert await state_manager.list_keys(StateScope.GLOBAL) == ["key"]
    assert await state_manager.delete(StateScope.GLOBAL, "key") is True
    assert await state_manager.delete(StateScope.GLOBAL, "key") is False
    assert await state_manager.list_keys(StateScope.GLOBAL) == []


async def test_llmspell_scope_examples(storage):
    """Values of each kind of scope, without conflicts between their keys."""
    state_manager = StateManager(storage)
    scopes = {
        StateScope.GLOBAL: "1.0.0",
        StateScope.agent("gpt-4-assistant"): ["messages"],
        StateScope.workflow("data-processing"): {"step": 3, "total": 10},
        StateScope.step(workflow_id="data-processing", step_name="validation"): ["results"],
        StateScope.session("s"): 1,
        StateScope.custom("ns"): None,
    }
    for scope, value in scopes.items():
        await state_manager.set(scope, "same key", value)
    assert {scope: await state_manager.get(scope, "same key", "absent") for scope in scopes} == scopes


async def test_llmspell_persistent_agent(storage):
    """An agent hands its state over, and takes it back."""

    class MyAgent:
        def __init__(self, agent_id):
            self.id = agent_id
            self.conversation, self.config, self.tool_stats, self.execution_state, self.metadata = [], {}, {}, None, {}

        def get_persistent_state(self):
            return AgentFields(
                agent_id=self.id,
                conversation_history=self.conversation,
                configuration=self.config,
                tool_usage_stats=self.tool_stats,
                execution_state=self.execution_state,
                metadata=self.metadata,
                schema_version=2,
            )

        def apply_persistent_state(self, state):
            self.conversation = state.conversation_history
            self.config = state.configuration
            self.tool_stats = state.tool_usage_stats
            self.execution_state = state.execution_state
            self.metadata = state.metadata

    agent = MyAgent("my-agent")
    agent.conversation = [Message.new("user", "hi")]
    agent.config, agent.tool_stats, agent.execution_state = {"model": "gpt-4"}, {"search": 1}, {"at": 3}
    await StateManager(storage).agent(agent.id).save(agent.get_persistent_state())

    restarted = MyAgent("my-agent")
    restarted.apply_persistent_state(await StateManager(storage).agent(restarted.id).load())
    assert vars(restarted) == vars(agent)


async def test_llmspell_read_copy_update(storage):
    """A pure function of the current state gives the next, however many do it at once."""
    import asyncio

    agent = StateManager(storage).agent("agent_123")

    def counted(current_state):
        new_state = dict(current_state)
        new_state["message_count"] += 1
        return new_state

    await asyncio.gather(*[agent.update("state", counted, {"message_count": 0}) for _ in range(10)])
    assert await agent.get("state") == {"message_count": 10}


def test_llmspell_script(rustic):
    """The counting script: save, and load ten times."""

    def save(scope, key, value):
        rustic.set(StateScope.parse(scope), key, value)

    def load(scope, key):
        return rustic.get(StateScope.parse(scope), key)

    save("global", "counter", 0)
    for _ in range(10):
        count = load("global", "counter") or 0
        save("global", "counter", count + 1)
    assert load("global", "counter") == 10
    save("agent:gpt-4", "conversation", [{"role": "user", "content": "hi"}])
    assert rustic.agent("gpt-4").get("conversation", path="/0/role") == "user"


async def test_llmspell_getting_started(tmp_path):
    """Store a message, start again, retrieve it."""
    url = f"sqlite:///{tmp_path}/state.db"
    async with StateManager(url) as state_manager:
        await state_manager.set(StateScope.GLOBAL, "welcome_message", "Hello, rs-llmspell!")
    async with StateManager(url) as state_manager:
        assert await state_manager.get(StateScope.GLOBAL, "welcome_message") == "Hello, rs-llmspell!"


# -- AgentUp -----------------------------------------------------------------------------------------


async def test_agentup_shared_across_instances(storage_options):
    """What one instance stores on the server, another one reads and counts on."""
    options = storage_options("valkey")
    one, two = (StateManager(registry.create("valkey", options)) for _ in range(2))
    await one.user("u").set("theme", "dark")
    assert await two.user("u").get("theme") == "dark"
    assert [await manager.user("u").increment("n") for manager in (one, two, one)] == [1, 2, 3]
    for manager in (one, two):
        await manager.routes.of("user").store.storage.close()


async def test_agentup_several_valkeys(tmp_path, monkeypatch, valkey_server, valkey_prefix):
    """A database service of its own for the state of a kind, beside the cache that the agent uses."""
    from agentstate import configure

    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent_config.yaml").write_text(
        f"services:\n  valkey_state: {{type: database, config: {{url: '{valkey_server.url}'}}}}\n"
        f"state:\n  backend: memory\n  scopes:\n    user: {{service: valkey_state, key_prefix: '{valkey_prefix}'}}\n"
    )
    try:
        configure()
        manager = StateManager()
        await manager.user("u").set("k", 1)
        await manager.agent("a").set("k", 2)
        names = [manager.routes.of(kind).store.storage.name for kind in ("user", "agent")]
        assert names == ["valkey", "memory"]
        assert await manager.user("u").get("k") == 1
        await manager.aclose()
    finally:
        monkeypatch.undo()
        configure()
