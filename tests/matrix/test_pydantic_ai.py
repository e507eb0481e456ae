"""Pydantic AI tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agentstate import ConversationContext, stateful

from .hidden import HiddenParameters

pytest.importorskip("pydantic_ai", reason="Pydantic AI isn't here: tests/matrix/run has it")

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

if TYPE_CHECKING:
    from agentstate import Conversation

pytestmark = pytest.mark.matrix


async def run(tool, arguments, **extra):
    """Let an agent call its one tool, and return what the tool returned."""

    def model(messages, info):
        returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        if returned:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(info.function_tools[0].name, arguments)])

    result = await Agent(FunctionModel(model), tools=[tool], retries=0).run("go", **extra)
    parts = [part for message in result.all_messages() for part in message.parts]
    return next(part.content for part in parts if isinstance(part, ToolReturnPart))


class TestHiddenParameters(HiddenParameters):
    """Each kind of handler as a tool."""

    def schema(self, handler):
        definition = Tool(handler).tool_def
        return set(definition.parameters_json_schema["properties"]), definition.description

    async def call(self, handler, **arguments):
        return await run(handler, arguments)


@dataclass
class Deps:
    """What an application gives its tools."""

    room: str


async def test_the_run_context_names_the_state(memory):
    """``key=`` finds the id in the tool's own context, which stays hidden as well."""

    @stateful(storage=memory, key=lambda ctx: ctx.deps.room)
    async def bump(ctx: RunContext[Deps], amount: int, conversation: Conversation) -> int:
        return await conversation.increment("n", amount)

    assert set(Tool(bump).tool_def.parameters_json_schema["properties"]) == {"amount"}
    assert await run(bump, {"amount": 3}, deps=Deps("a")) == 3
    assert await run(bump, {"amount": 4}, deps=Deps("a")) == 7
    assert await ConversationContext(memory).get_variable("a", "n") == 7


async def test_the_run_knows_its_conversation(memory):
    """Without ``key=`` it is the conversation that the agent runs in."""

    @stateful(storage=memory)
    async def bump(ctx: RunContext[None], amount: int, conversation: Conversation) -> int:
        return await conversation.increment("n", amount)

    assert await run(bump, {"amount": 3}, conversation_id="c-1") == 3
    assert await ConversationContext(memory).get_variable("c-1", "n") == 3
