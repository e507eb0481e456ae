"""What states of some kinds offer, for functions that take one: any object with these methods will do.

A test may hand in a stand-in; the states of `StateManager` are the real ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.manager.agentfields import AgentFields
    from agentstate.manager.contents import Progress
    from agentstate.models import Message

__all__ = [
    "AgentContents",
    "ConversationContents",
    "Entries",
    "GlobalContents",
    "TeamContents",
    "WorkflowContents",
]


@runtime_checkable
class Entries(Protocol):
    """Entries by key: what every state is."""

    async def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or ``default``."""
        ...

    async def set(self, key: str, value: Any) -> None:
        """Set a value."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether it was there."""
        ...

    async def to_dict(self) -> dict[str, Any]:
        """Return all values by their keys."""
        ...


@runtime_checkable
class ConversationContents(Entries, Protocol):
    """A history, and the results of tools."""

    async def add_message(self, role: str, content: Any) -> Message:
        """Add a message."""
        ...

    async def history(self, limit: int | None = None) -> list[Message]:
        """Return messages, oldest first."""
        ...

    async def add_tool_result(self, tool_call_id: str, content: Any) -> Message:
        """Add what a tool call returned."""
        ...

    async def tool_results(self) -> list[Message]:
        """Return the results of tools, oldest first."""
        ...


@runtime_checkable
class WorkflowContents(Entries, Protocol):
    """Nodes with their status and results, and a progress."""

    async def set_status(self, node: str, status: str) -> None:
        """Say how a node is."""
        ...

    async def statuses(self) -> dict[str, str]:
        """Return how all nodes are."""
        ...

    async def set_result(self, node: str, result: Any) -> None:
        """Store what a node produced."""
        ...

    async def results(self) -> dict[str, Any]:
        """Return what all nodes produced."""
        ...

    async def set_progress(self, step: int, total: int) -> None:
        """Say how far the workflow is."""
        ...

    async def progress(self) -> Progress | None:
        """Return how far the workflow is."""
        ...


@runtime_checkable
class TeamContents(Entries, Protocol):
    """Messages between members, and a shared context."""

    async def post(self, sender: str, content: Any) -> Message:
        """Post a message to all."""
        ...

    async def unread(self, member: str, limit: int | None = None) -> list[Message]:
        """Return what a member hasn't read yet."""
        ...

    async def mark_read(self, member: str, message: int | Message) -> None:
        """Move a member's place."""
        ...

    async def share(self, key: str, value: Any) -> None:
        """Put something into the shared context."""
        ...

    async def shared_context(self) -> Mapping[str, Any]:
        """Return the shared context."""
        ...


@runtime_checkable
class GlobalContents(Entries, Protocol):
    """Settings and caches."""

    async def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting."""
        ...

    async def set_setting(self, key: str, value: Any) -> None:
        """Change a setting."""
        ...

    async def cached(self, key: str, default: Any = None) -> Any:
        """Return what is cached."""
        ...

    async def cache(self, key: str, value: Any, *, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""
        ...


@runtime_checkable
class AgentContents(Entries, Protocol):
    """What an agent needs to go on after a restart."""

    async def save(self, fields: AgentFields) -> None:
        """Store an agent's fields."""
        ...

    async def load(self) -> AgentFields | None:
        """Return an agent's fields, ``None`` when none were saved."""
        ...
