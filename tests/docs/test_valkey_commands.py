"""The commands with which docs/backends.md looks into a Valkey."""

from __future__ import annotations

import re
from pathlib import Path

from agentstate import ConversationContext
from tests.servers import ValkeyServer

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")


async def test_commands_find_the_state():
    """Each command shows what it is said to show: the value, the messages, the state's record."""
    commands = re.findall(r"^> (\w+) (.+)$", PAGE, re.MULTILINE)
    with ValkeyServer() as server:
        async with ConversationContext(server.url) as context:
            await context.set_variable("c-1", "name", "Ada")
            await context.add_to_history("c-1", "user", "Hello!")
        value, items, record = (server.ask(name, *rest.split()) for name, rest in commands)
    assert value == b'"Ada"'
    assert b'"content":"Hello!"' in items[0]
    assert record
