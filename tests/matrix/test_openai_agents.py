"""Function tools of the OpenAI Agents SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agentstate import ConversationContext, stateful

from .hidden import HiddenParameters

pytest.importorskip("agents", reason="The OpenAI Agents SDK isn't here: tests/matrix/run has it")

from agents import Agent, RunContextWrapper, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

if TYPE_CHECKING:
    from agentstate import Conversation

pytestmark = pytest.mark.matrix


async def run(tool, arguments, **extra):
    """Let an agent call its one tool, and return what the tool returned."""
    model = ScriptedModel([[function_call(tool.name, arguments, call_id="c1")], [assistant_message("done")]])
    result = await Runner.run(Agent(name="a", model=model, tools=[tool]), "go", **extra)
    model.assert_complete()
    return next(one.output for one in result.new_items if one.type == "tool_call_output_item")


class TestHiddenParameters(HiddenParameters):
    """Each kind of handler as a tool."""

    def schema(self, handler):
        tool = function_tool(handler, strict_mode=True)
        return set(tool.params_json_schema["properties"]), tool.description

    async def call(self, handler, **arguments):
        return await run(function_tool(handler, failure_error_function=None), arguments)


@dataclass
class Where:
    """What an application gives its tools."""

    room: str


async def test_the_run_context_names_the_state(memory):
    """``key=`` finds the id in the run's own context, which stays hidden as well."""

    @stateful(storage=memory, key=lambda ctx: ctx.context.room)
    async def bump(ctx: RunContextWrapper[Where], amount: int, conversation: Conversation) -> int:
        """Add to the counter.

        Args:
            amount: how much.
        """
        return await conversation.increment("n", amount)

    tool = function_tool(bump)
    assert {name: one["description"] for name, one in tool.params_json_schema["properties"].items()} == {
        "amount": "how much."
    }
    assert await run(tool, {"amount": 3}, context=Where("a")) == 3
    assert await run(tool, {"amount": 4}, context=Where("a")) == 7
    assert await ConversationContext(memory).get_variable("a", "n") == 7
