"""AgentUp's `ConversationContext` and `ConversationState`, over this library's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from agentstate import context as native
from agentstate import models
from agentstate.compat.agentup_records import message_of, moment_of
from agentstate.models import Message
from agentstate.state import history
from agentstate.state.settings import TurnSettings
from agentstate.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from agentstate.scope import StateScope
    from agentstate.state.store import Store
    from agentstate.state.turn import Frame
    from agentstate.storage.protocol import Storage

R = TypeVar("R")

SECTIONS = ("variables", "metadata")
FIELDS = (*SECTIONS, "history")


class ConversationState(models.ConversationState):
    """A whole conversation: AgentUp's fields, to be read. Change it with the context's methods."""

    __slots__ = ()

    def __init__(
        self,
        context_id: str,
        user_id: str | None,
        created_at: datetime,
        updated_at: datetime,
        metadata: Mapping[str, Any],
        variables: Mapping[str, Any],
        history: Iterable[Message | Mapping[str, Any]],
        version: int = 0,
    ) -> None:
        """Hold the parts of a state."""
        super().__init__(
            context_id=context_id,
            user_id=user_id,
            created_at=created_at.timestamp(),
            updated_at=updated_at.timestamp(),
            version=version,
            metadata=metadata,
            variables=variables,
            history=[one if isinstance(one, Message) else message_of(n, one) for n, one in enumerate(history)],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as AgentUp wrote them; moments as ISO 8601 text."""
        return {
            "context_id": self.context_id,
            "user_id": self.user_id,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "metadata": dict(self.metadata),
            "variables": dict(self.variables),
            "history": [dict(message) for message in self.history],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the state that AgentUp wrote as this."""
        return cls(
            data["context_id"],
            data.get("user_id"),
            moment_of(data["created_at"]),
            moment_of(data["updated_at"]),
            data.get("metadata", {}),
            data.get("variables", {}),
            data.get("history", ()),
        )


class ConversationContext(native.ConversationContext):
    """Reads and changes the state of conversations; without a storage it keeps them in memory."""

    def __init__(
        self,
        storage: Storage | Store | str | None = None,
        *,
        settings: TurnSettings | None = None,
        principal: str | None = None,
        tenant: str = "",
        frame: Frame | None = None,
    ) -> None:
        """See `agentstate.ConversationContext`; a storage with a ``ttl`` says how long states live."""
        if settings is None:
            settings = TurnSettings(ttl=getattr(storage, "ttl", None))
        where = MemoryStorage() if storage is None else storage
        super().__init__(where, settings=settings, principal=principal, tenant=tenant, frame=frame)

    async def get_or_create(self, context_id: str, user_id: str | None = None) -> ConversationState:
        """Return the whole state, made first if it is absent; ``user_id`` becomes its owner."""
        state = await super().get_or_create(context_id, user_id)
        return ConversationState(**state)

    async def get_history(  # type: ignore[override]
        self, context_id: str, limit: int | None = None, **bounds: Any
    ) -> list[dict[str, Any]]:
        """Return messages as dicts of their own, oldest first: the last ``limit``, all without a limit, none for 0."""
        found = await super().get_history(context_id, limit, **bounds)
        return [dict(one, failed=True) if one.failed else dict(one) for one in found]

    async def update_state(self, context_id: str, **fields: Any) -> None:
        """Replace ``variables``, ``metadata``, ``history``, each as a whole, in one change.

        Raises:
            TypeError: a field is none of these.
        """
        for name in fields:
            if name not in FIELDS:
                raise TypeError(f"update_state() can't replace {name!r}; it replaces {', '.join(FIELDS)}")
        await self._run(context_id, _replace, fields)


async def _replace(frame: Frame, scope: StateScope, fields: Mapping[str, Any]) -> None:
    for section in SECTIONS:
        if section in fields:
            for key in await frame.keys(scope, section):
                if key not in fields[section]:
                    await frame.delete(scope, (section, key))
            for key, value in fields[section].items():
                await frame.set(scope, (section, key), value)
    if "history" in fields:
        await history.truncate(frame, scope, await frame.first_position(scope, history.LOG))
        for number, one in enumerate(fields["history"]):
            message = one if isinstance(one, Message) else message_of(number, one)
            await history.add(frame, scope, message, ttl=None, unique=False)
