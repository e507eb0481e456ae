"""A conversation bound to its id: what most handlers want to work with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from agentstate.context import ConversationContext
    from agentstate.models import ConversationState, Message

T = TypeVar("T")
R = TypeVar("R")


class Conversation:
    """One conversation.

    ::

        @stateful
        async def assistant(task, conversation: Conversation):
            await conversation.add("user", message_text(task))
            visits = await conversation.increment("visits")

    Each method is the one of `ConversationContext`, without the id.
    """

    __slots__ = ("context", "id")

    def __init__(self, context: ConversationContext, context_id: str) -> None:
        """Bind a context to an id."""
        self.context = context
        self.id = context_id

    def __repr__(self) -> str:
        return f"Conversation({self.id!r})"

    @overload
    async def get(self, key: str, default: Any = None) -> Any: ...
    @overload
    async def get(self, key: str, default: T, *, as_type: type[T]) -> T: ...
    @overload
    async def get(self, key: str, *, as_type: type[T]) -> T | None: ...
    async def get(self, key: str, default: Any = None, *, as_type: type[Any] | None = None) -> Any:
        """Return a variable, or ``default``; ``as_type`` validates it as that type."""
        if as_type is None:
            return await self.context.get_variable(self.id, key, default)
        return await self.context.get_variable(self.id, key, default, as_type=as_type)

    async def set(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Set a variable."""
        await self.context.set_variable(self.id, key, value, ttl=ttl)

    async def delete(self, key: str) -> bool:
        """Delete a variable; return whether it was there."""
        return await self.context.delete_variable(self.id, key)

    async def increment(self, key: str, by: int = 1) -> int:
        """Add to a number, which starts at 0, and return it."""
        return await self.context.increment(self.id, key, by)

    async def update(self, key: str, fn: Callable[[Any], R], default: Any = None) -> R:
        """Replace a variable by ``fn(value)`` and return that."""
        return await self.context.update(self.id, key, fn, default)

    async def variables(self, keys: Iterable[str] | None = None) -> dict[str, Any]:
        """Return several variables, or all."""
        return await self.context.get_variables(self.id, keys)

    async def set_many(self, values: Mapping[str, Any]) -> None:
        """Set several variables as one change."""
        await self.context.set_variables(self.id, values)

    async def add(self, role: str, content: Any, metadata: Mapping[str, Any] | None = None, **fields: Any) -> Message:
        """Add a message and return it."""
        return await self.context.add_to_history(self.id, role, content, metadata, **fields)

    async def add_messages(self, messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
        """Add several messages as one change."""
        return await self.context.add_messages(self.id, messages)

    async def history(
        self,
        limit: int | None = None,
        *,
        before: int | Message | None = None,
        after: int | Message | None = None,
        include_failed: bool = False,
    ) -> list[Message]:
        """Return messages, oldest first: the last ``limit``, all without a limit; on request failed turns' too."""
        return await self.context.get_history(self.id, limit, before=before, after=after, include_failed=include_failed)

    async def edit(self, message: int | Message, content: Any, *, metadata: Mapping[str, Any] | None = None) -> Message:
        """Replace a message's content."""
        return await self.context.edit_message(self.id, message, content, metadata=metadata)

    async def truncate(self, message: int | Message) -> int:
        """Remove a message and all after it; return how many."""
        return await self.context.truncate_history(self.id, message)

    async def get_metadata(self, key: str, default: Any = None) -> Any:
        """Return one piece of metadata."""
        return await self.context.get_metadata(self.id, key, default)

    async def set_metadata(self, key: str, value: Any) -> None:
        """Set one piece of metadata."""
        await self.context.set_metadata(self.id, key, value)

    async def state(self) -> ConversationState:
        """Return the whole state, made first if it is absent."""
        return await self.context.get_or_create(self.id)

    async def adopt(self, user_id: str) -> None:
        """Give a state that belongs to nobody to a user."""
        await self.context.adopt(self.id, user_id)

    async def set_ttl(self, ttl: float | None) -> None:
        """Let the state live ``ttl`` seconds from now, or for ever."""
        await self.context.set_ttl(self.id, ttl)

    async def clear(self) -> None:
        """Delete everything of this conversation."""
        await self.context.clear_context(self.id)

    async def commit(self) -> None:
        """Publish what this turn has changed so far, and go on."""
        await self.context.commit()

    def turn(self) -> AbstractAsyncContextManager[Conversation]:
        """Open a turn for an ``async with`` block."""
        return self.context.turn(self.id)
