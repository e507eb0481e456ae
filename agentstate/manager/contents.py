"""What states of some kinds usually hold, by name, over the plain entries and logs that they are.

Each class keeps its things in sections of their own, so that they never meet the entries a program sets itself.
The protocols in `agentstate.manager.protocols` say what each offers, for functions that take one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.manager import agentfields, entries
from agentstate.manager.scoped import ScopedState
from agentstate.models import Message
from agentstate.scope import StateScope
from agentstate.state import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.manager.agentfields import AgentFields
    from agentstate.state.turn import Frame

__all__ = ["AgentScope", "ConversationScope", "GlobalScope", "Progress", "TeamScope", "WorkflowScope"]

RESULTS: Final = "results"
STATUS: Final = "status"
PROGRESS: Final = "progress"
CURSORS: Final = "cursors"
SHARED: Final = "shared"
SETTINGS: Final = "settings"
CACHE: Final = "cache"


class _WithHistory(ScopedState):
    async def _add(self, role: str, content: Any, message_id: str | None = None, **fields: Any) -> Message:
        now = self._operations.routes.of(self.scope.kind).store.clock()
        message = Message.new(role, content, id=message_id, now=now, **fields)
        return await self._do(history.add, message, ttl=None, unique=message_id is not None)

    async def history(
        self, limit: int | None = None, *, before: int | Message | None = None, after: int | Message | None = None
    ) -> list[Message]:
        """Return messages, oldest first: the last ``limit``, all without a limit.

        ``before`` and ``after`` bound the range, both exclusive; with ``after`` alone the first are returned.
        """
        return await self._do(history.read, limit, before, after)


class ConversationScope(_WithHistory):
    """A conversation: its history, the results of its tools, and its entries (a handler's variables)."""

    async def add_message(
        self, role: str, content: Any, *, message_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """Add a message; a second one with the same ``message_id`` adds nothing."""
        return await self._add(role, content, message_id, metadata=metadata)

    async def add_tool_result(self, tool_call_id: str, content: Any, *, name: str | None = None) -> Message:
        """Add what a tool call returned; a second result of the same call adds nothing."""
        return await self._add(
            "tool",
            _parts(content),
            f"tool:{tool_call_id}",
            tool_call_id=tool_call_id,
            name=name,
        )

    async def tool_results(self) -> list[Message]:
        """Return the results of tools, oldest first."""
        return [message for message in await self.history() if message.role == "tool"]


def _parts(content: Any) -> str | list[Any]:
    """Return what a message can hold: text, or a list of parts."""
    whole: list[Any] = [content]
    return content if isinstance(content, str) else whole[0] if isinstance(content, list) else whole


class Progress(NamedTuple):
    """How far a workflow is."""

    step: int
    total: int

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.step >= self.total


class WorkflowScope(ScopedState):
    """A workflow: its nodes' results and status, its progress, and its steps, which are states below it."""

    def step(self, name: str) -> ScopedState:
        """Return the state of a step."""
        workflow = self.scope
        return ScopedState(self._operations, StateScope.step(workflow.ids[0], name, tenant=workflow.tenant))

    async def set_status(self, node: str, status: str) -> None:
        """Say how a node is: ``pending``, ``running``, ``done``, ``failed`` or a word of your own."""
        await self._put(STATUS, node, status)

    async def status(self, node: str) -> str | None:
        """Return how a node is."""
        return await self._value(STATUS, node)  # type: ignore[no-any-return]

    async def statuses(self) -> dict[str, str]:
        """Return how all nodes are."""
        return await self._section(STATUS)

    async def set_result(self, node: str, result: Any, *, status: str = "done") -> None:
        """Store what a node produced, and its status, as one change."""
        (await self._ready()).check_size(self.scope, node, result)
        await self._do(_set_both, (RESULTS, node), result, (STATUS, node), status)

    async def result(self, node: str, default: Any = None) -> Any:
        """Return what a node produced."""
        return await self._value(RESULTS, node, default)

    async def results(self) -> dict[str, Any]:
        """Return what all nodes produced."""
        return await self._section(RESULTS)

    async def set_progress(self, step: int, total: int) -> None:
        """Say how far the workflow is."""
        await self._put(PROGRESS, PROGRESS, [step, total])

    async def progress(self) -> Progress | None:
        """Return how far the workflow is."""
        found = await self._value(PROGRESS, PROGRESS)
        return None if found is None else Progress(*found)


async def _set_both(
    frame: Frame, scope: StateScope, first: tuple[str, str], one: Any, second: tuple[str, str], two: Any
) -> None:
    await frame.set(scope, first, one)
    await frame.set(scope, second, two)


class TeamScope(_WithHistory):
    """A team: messages between its members, each with a place up to which he has read, and a shared context."""

    async def post(
        self, sender: str, content: Any, *, message_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """Post a message to all; a second one with the same ``message_id`` adds nothing."""
        return await self._add("user", content, message_id, name=sender, metadata=metadata)

    async def unread(self, member: str, limit: int | None = None) -> list[Message]:
        """Return what a member hasn't read yet and others posted, oldest first; his place stays."""
        seen = await self.cursor(member)
        found = await self._do(history.read, None, None, seen or None)
        return [message for message in found if message.name != member][:limit]

    async def mark_read(self, member: str, message: int | Message) -> None:
        """Move a member's place to a message (or position); it never goes back."""
        position = history.position_of(message)

        def forward(old: Any) -> int:
            return max(position, old if type(old) is int else 0)

        await self._do(entries.change, (CURSORS, member), forward)

    async def cursor(self, member: str) -> int:
        """Return the position up to which a member has read, 0 at first."""
        return await self._value(CURSORS, member, 0)  # type: ignore[no-any-return]

    async def share(self, key: str, value: Any) -> None:
        """Put something into the shared context."""
        await self._put(SHARED, key, value)

    async def shared(self, key: str, default: Any = None) -> Any:
        """Return something of the shared context."""
        return await self._value(SHARED, key, default)

    async def shared_context(self) -> dict[str, Any]:
        """Return the shared context."""
        return await self._section(SHARED)


class GlobalScope(ScopedState):
    """What all share: settings, and caches whose entries end by themselves."""

    async def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting."""
        return await self._value(SETTINGS, key, default)

    async def set_setting(self, key: str, value: Any) -> None:
        """Change a setting."""
        await self._put(SETTINGS, key, value)

    async def settings(self) -> dict[str, Any]:
        """Return all settings."""
        return await self._section(SETTINGS)

    async def cached(self, key: str, default: Any = None) -> Any:
        """Return what is cached."""
        return await self._value(CACHE, key, default)

    async def cache(self, key: str, value: Any, *, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""
        await self._put(CACHE, key, value, ttl)


class AgentScope(_WithHistory):
    """An agent: what it needs to go on after a restart, and its own entries."""

    async def save(self, fields: AgentFields) -> None:
        """Store an agent's fields as one change; its conversation history is appended to what is there."""
        await self._do(agentfields.save, fields)

    async def load(self) -> AgentFields | None:
        """Return an agent's fields, ``None`` when none were saved."""
        return await self._do(agentfields.load)

    async def add_message(self, role: str, content: Any) -> Message:
        """Add a message to the agent's conversation history."""
        return await self._add(role, content)

    async def count_tool(self, name: str, by: int = 1) -> int:
        """Count the use of a tool; return how often it was used."""
        return await self._do(entries.increment, (agentfields.TOOLS, name), by)
