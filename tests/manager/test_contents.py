"""What states of some kinds hold by name: histories, results, messages with cursors, settings, an agent's fields."""

from __future__ import annotations

import asyncio

import pytest

from agentstate import AgentFields, Message, StateManager, StateScope
from agentstate.errors import UnsupportedValueError
from agentstate.manager import protocols


async def test_a_conversation(manager):
    """Messages and results of tools, the same result once however often it comes."""
    conversation = manager.conversation("c")
    await conversation.add_message("user", "hi", message_id="m-1")
    await conversation.add_message("user", "hi", message_id="m-1")
    await conversation.add_tool_result("call-1", "sunny", name="weather")
    await conversation.add_tool_result("call-1", "sunny", name="weather")
    await conversation.add_tool_result("call-2", {"degrees": 3})
    assert [one.role for one in await conversation.history()] == ["user", "tool", "tool"]
    found = [(one.tool_call_id, one.name, one.content) for one in await conversation.tool_results()]
    assert found == [("call-1", "weather", "sunny"), ("call-2", None, [{"degrees": 3}])]
    assert await conversation.to_dict() == {}


async def test_a_workflow(manager):
    """Status, results and progress of its nodes, apart from its own entries, and its steps."""
    workflow = manager.workflow("w")
    await workflow.set("status", "mine")
    await workflow.set_status("fetch", "running")
    assert (await workflow.status("fetch"), await workflow.status("none")) == ("running", None)
    assert await workflow.progress() is None
    await workflow.set_result("fetch", {"rows": 3})
    await workflow.set_progress(1, 2)
    assert await workflow.statuses() == {"fetch": "done"}
    assert await workflow.results() == {"fetch": {"rows": 3}}
    assert (await workflow.result("fetch"), await workflow.result("none", 0)) == ({"rows": 3}, 0)
    assert not (await workflow.progress()).done
    await workflow.set_progress(2, 2)
    assert (await workflow.progress()).done
    assert await workflow.to_dict() == {"status": "mine"}
    await workflow.step("fetch").set("k", 1)
    assert await manager.get(StateScope.step("w", "fetch"), "k") == 1
    with pytest.raises(UnsupportedValueError):
        await workflow.set_result("bad", object())
    assert await workflow.status("bad") is None


async def test_a_team(manager):
    """Each member reads what others posted, from his own place on, which never goes back."""
    team = manager.guild("t")
    first = await team.post("ann", "one")
    await team.post("bob", "two", message_id="m")
    await team.post("bob", "two", message_id="m")
    assert [one.content for one in await team.unread("ann")] == ["two"]
    assert [one.content for one in await team.unread("eve")] == ["one", "two"]
    assert [one.content for one in await team.unread("eve", limit=1)] == ["one"]
    await team.mark_read("eve", first)
    assert [one.content for one in await team.unread("eve")] == ["two"]
    await team.mark_read("eve", 2)
    await team.mark_read("eve", first)
    assert (await team.unread("eve"), await team.cursor("eve"), await team.cursor("ann")) == ([], 2, 0)
    await team.share("goal", "ship")
    assert (await team.shared("goal"), await team.shared_context()) == ("ship", {"goal": "ship"})


async def test_members_read_at_once(manager):
    """Members that move their places at once each keep the furthest."""
    team = manager.team("t")
    for n in range(10):
        await team.post("ann", str(n))
    await asyncio.gather(*[team.mark_read("bob", n) for n in range(1, 11)])
    assert await team.cursor("bob") == 10


async def test_a_limit_counts_what_others_posted(manager):
    """A member's own messages don't take the places of those he asked for."""
    team = manager.team("t")
    for n in range(4):
        await team.post("ann", f"own {n}")
    await team.post("bob", "for ann")
    assert [one.content for one in await team.unread("ann", limit=1)] == ["for ann"]


async def test_the_global_state(clocked, clock):
    """Settings stay, what is cached ends by itself."""
    shared = StateManager(clocked).global_state
    await shared.set_setting("theme", "dark")
    await shared.cache("rates", [1, 2], ttl=10)
    assert (await shared.setting("theme"), await shared.settings()) == ("dark", {"theme": "dark"})
    assert (await shared.cached("rates"), await shared.setting("none", 5)) == ([1, 2], 5)
    clock.advance(11)
    assert await shared.cached("rates") is None
    assert await shared.setting("theme") == "dark"


async def test_an_agent(manager):
    """All fields come back; what was saved before and isn't there any more is gone, messages are added once."""
    agent = manager.agent("a")
    assert await agent.load() is None
    await agent.set("own", 1)
    fields = AgentFields(
        agent_id="a",
        conversation_history=[Message.new("user", "hi"), Message.new("assistant", "ho")],
        configuration={"model": "small"},
        tool_usage_stats={"search": 2, "old": 1},
        execution_state={"step": 3},
        metadata={"team": "red"},
        schema_version=2,
    )
    await agent.save(fields)
    assert await agent.count_tool("search") == 3
    loaded = await agent.load()
    assert loaded.created_at is not None
    assert loaded.updated_at is not None
    loaded.created_at = loaded.updated_at = None
    fields.tool_usage_stats["search"] = 3
    assert loaded == fields
    del loaded.tool_usage_stats["old"]
    loaded.metadata = {}
    loaded.conversation_history.append(await agent.add_message("user", "more"))
    await agent.save(loaded)
    again = await agent.load()
    assert (again.tool_usage_stats, again.metadata) == ({"search": 3}, {})
    assert [one.content for one in again.conversation_history] == ["hi", "ho", "more"]
    assert await agent.to_dict() == {"own": 1}


def test_what_each_kind_offers(memory):
    """The states are what the protocols say, and not what another kind is."""
    manager = StateManager(memory)
    states = {
        protocols.ConversationContents: manager.conversation("c"),
        protocols.WorkflowContents: manager.workflow("w"),
        protocols.TeamContents: manager.team("t"),
        protocols.GlobalContents: manager.global_state,
        protocols.AgentContents: manager.agent("a"),
    }
    for wanted in states:
        assert [kind for kind, state in states.items() if isinstance(state, wanted)] == [wanted]
    assert all(isinstance(state, protocols.Entries) for state in states.values())


async def test_a_stand_in():
    """A function that takes a protocol takes whatever has its methods."""

    class Scripted:
        async def get(self, key, default=None):
            return default

        async def set(self, key, value): ...

        async def delete(self, key):
            return False

        async def to_dict(self):
            return {}

    assert isinstance(Scripted(), protocols.Entries)
    assert not isinstance(Scripted(), protocols.TeamContents)


async def test_contents_in_a_transaction(joint):
    """What a transaction does to them is one change with the rest of it."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it ends the transaction's block
        async with joint.transaction() as tx:
            await tx.team("t").post("ann", "hi")
            await tx.workflow("w").set_result("n", 1)
            assert await tx.workflow("w").results() == {"n": 1}
            assert len(await tx.team("t").unread("bob")) == 1
            raise ZeroDivisionError
    assert not await joint.team("t").exists()
    assert not await joint.workflow("w").exists()
