"""FastMCP tools."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agentstate import ConversationContext, stateful

from .hidden import HiddenParameters

pytest.importorskip("fastmcp", reason="FastMCP isn't here: tests/matrix/run has it")

from fastmcp import Client, Context, FastMCP

if TYPE_CHECKING:
    from agentstate import Conversation

pytestmark = pytest.mark.matrix


def server(handler):
    """A server with one tool."""
    made = FastMCP("test")
    made.tool(handler)
    return made


async def the_tool(handler):
    """Return the one tool, as a client sees it."""
    async with Client(server(handler)) as client:
        (tool,) = await client.list_tools()
        return tool


class TestHiddenParameters(HiddenParameters):
    """Each kind of handler as a tool."""

    def schema(self, handler):
        tool = asyncio.run(the_tool(handler))
        return set(tool.input_schema["properties"]), tool.description

    async def call(self, handler, **arguments):
        tool = await the_tool(handler)
        async with Client(server(handler)) as client:
            return (await client.call_tool(tool.name, arguments)).data


async def test_a_tool_beside_the_frameworks_own_context(memory):
    """The framework's context and ours go side by side, both hidden; the model names the conversation."""

    @stateful(storage=memory)
    async def bump(ctx: Context, context_id: str, conversation: Conversation, amount: int = 1) -> str:
        return f"{ctx.fastmcp.name} {conversation.id} {await conversation.increment('n', amount)}"

    assert set((await the_tool(bump)).input_schema["properties"]) == {"context_id", "amount"}
    async with Client(server(bump)) as client:
        assert (await client.call_tool("bump", {"context_id": "a", "amount": 3})).data == "test a 3"
        assert (await client.call_tool("bump", {"context_id": "a"})).data == "test a 4"
    assert await ConversationContext(memory).get_variable("a", "n") == 4
