"""The turn that everybody runs: load 10 messages, read 2 variables, append 2 messages, set 1 variable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from agentstate import ConversationContext, stateful
from agentstate.storage import registry

if TYPE_CHECKING:
    from collections.abc import Mapping

TAIL = 10
TEXT = "The quick brown fox jumps over the lazy dog, and then it does so again, for a message of usual length. "
CHUNK = 500


class Contender(Protocol):
    """Whoever runs turns. Messages are stored as JSON of about 200 bytes wherever bytes are stored."""

    name: str

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def seed(self, conversation: str, messages: int) -> None:
        """Make a conversation with so many messages and the variable ``other``."""

    async def turn(self, conversation: str) -> None: ...


def message(number: int, role: str = "user") -> dict[str, Any]:
    """Return a message as floors store it."""
    at = f"2026-01-31T12:00:00.{number % 1_000_000:06d}+00:00"
    return {"id": f"{number:024x}", "role": role, "content": TEXT, "timestamp": at, "metadata": {}}


class Agentstate:
    """agentstate on one backend, through ``@stateful``."""

    def __init__(self, backend: str, options: Mapping[str, Any]) -> None:
        self.name = f"agentstate {backend}"
        self.storage = registry.create(backend, dict(options))
        self.context = ConversationContext(self.storage)

        @stateful(storage=self.storage)
        async def handler(task, context, context_id):
            await context.get_history(context_id, limit=TAIL)
            count = await context.get_variable(context_id, "count", 0)
            await context.get_variable(context_id, "other")
            await context.add_to_history(context_id, "user", task["text"])
            await context.add_to_history(context_id, "assistant", TEXT)
            await context.set_variable(context_id, "count", count + 1)

        self.handler = handler

    async def open(self) -> None:
        await self.storage.open()

    async def close(self) -> None:
        await self.storage.close()

    async def seed(self, conversation: str, messages: int) -> None:
        await self.context.set_variable(conversation, "other", TEXT)
        for start in range(0, messages, CHUNK):
            many = [{"role": "user", "content": TEXT} for _ in range(start, min(start + CHUNK, messages))]
            await self.context.add_messages(conversation, many)

    async def turn(self, conversation: str) -> None:
        await self.handler({"context_id": conversation, "text": TEXT})
