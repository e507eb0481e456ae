"""My Skill remembers each conversation, and nothing of a turn that failed."""

import asyncio
import inspect
import sys
from pathlib import Path

import pytest
from agentstate import stateful

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, installed or not

from skills.my_skill import my_skill


@pytest.fixture
def skill(agentstate_storage):
    """Return the skill on a fresh storage of this test's own; the agent's isn't touched."""
    return stateful(storage=agentstate_storage)(inspect.unwrap(my_skill))


def test_it_remembers(skill, agentstate_context):
    """The second message of a conversation sees the first; another conversation doesn't."""

    async def talk():
        assert await skill({"context_id": "c-1", "text": "hello"}) == "Message 1: hello"
        assert await skill({"context_id": "c-1", "text": "again"}) == "Message 2: again (before that: Message 1: hello)"
        assert await skill({"context_id": "c-2", "text": "hello"}) == "Message 1: hello"
        history = await agentstate_context.get_history("c-1")
        assert [(one["role"], one["content"]) for one in history][:2] == [
            ("user", "hello"),
            ("assistant", "Message 1: hello"),
        ]

    asyncio.run(talk())


def test_a_failed_turn_leaves_nothing(skill, agentstate_context, fail_at):
    """A message whose commit fails can be sent again."""

    async def talk():
        fail_at(commit=1)
        with pytest.raises(ConnectionError):
            await skill({"context_id": "c-1", "text": "hello"})
        assert not await agentstate_context.exists("c-1")
        assert await skill({"context_id": "c-1", "text": "hello"}) == "Message 1: hello"

    asyncio.run(talk())
