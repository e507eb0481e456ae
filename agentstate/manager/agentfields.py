"""What an agent needs to go on after a restart: its fields, stored each in its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.manager import entries
from agentstate.state import history
from agentstate.state.operations import METADATA

if TYPE_CHECKING:
    from agentstate.models import Message
    from agentstate.scope import StateScope
    from agentstate.state.turn import Frame

__all__ = ["AgentFields"]

AGENT: Final = "agent"
TOOLS: Final = "tools"
SCHEMA: Final = "schema_version"


@dataclass(slots=True, kw_only=True)
class AgentFields:
    """What `AgentScope` saves and loads.

    Attributes:
        conversation_history: messages; saving adds those that aren't stored yet, by their ids.
        configuration: the agent's own settings.
        tool_usage_stats: how often each tool was used.
        execution_state: where the agent is in its work.
        metadata: anything else.
        schema_version: of the agent's own data.
        created_at: seconds since the epoch; set by loading, like ``updated_at``.
    """

    agent_id: str
    conversation_history: list[Message] = field(default_factory=list["Message"])
    configuration: dict[str, Any] = field(default_factory=dict[str, Any])
    tool_usage_stats: dict[str, int] = field(default_factory=dict[str, int])
    execution_state: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    schema_version: int = 1
    created_at: float | None = None
    updated_at: float | None = None


async def save(frame: Frame, scope: StateScope, fields: AgentFields) -> None:
    """Store an agent's fields."""
    await frame.set(scope, (AGENT, "configuration"), fields.configuration)
    await frame.set(scope, (AGENT, "execution_state"), fields.execution_state)
    await frame.set(scope, (AGENT, SCHEMA), fields.schema_version)
    for section, values in ((TOOLS, fields.tool_usage_stats), (METADATA, fields.metadata)):
        for key in await frame.keys(scope, section):
            if key not in values:
                await frame.delete(scope, (section, key))
        for key, value in values.items():
            await frame.set(scope, (section, key), value)
    stored = {message.id for message in await history.read(frame, scope, None, None, None)}
    for message in fields.conversation_history:
        if message.id not in stored:
            await history.add(frame, scope, message, ttl=None, unique=True)


async def load(frame: Frame, scope: StateScope) -> AgentFields | None:
    """Return an agent's fields, ``None`` when none were saved."""
    names = ("configuration", "execution_state", SCHEMA)
    found = await frame.get_many(scope, [(AGENT, name) for name in names])
    if (AGENT, SCHEMA) not in found:
        return None
    buffer = await entries.known(frame, scope)
    return AgentFields(
        agent_id=scope.id,
        conversation_history=await history.read(frame, scope, None, None, None),
        configuration=found[AGENT, "configuration"],
        tool_usage_stats=(await entries.page(frame, scope, TOOLS, "", None, None, reverse=False))[0],
        execution_state=found[AGENT, "execution_state"],
        metadata=(await entries.page(frame, scope, METADATA, "", None, None, reverse=False))[0],
        schema_version=found[AGENT, SCHEMA],
        created_at=buffer.snapshot.created_at,
        updated_at=buffer.snapshot.updated_at,
    )
