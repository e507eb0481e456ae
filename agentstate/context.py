"""What a handler sees of its state: `ConversationContext`, and `Conversation`, bound to one id.

Inside a turn, calls read and change the turn's buffer, and what they change is committed
when the handler succeeds. Outside a turn each call is atomic by itself and doesn't wait for
turns; a call that reads before it writes is tried again when somebody else came between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from agentstate.context_base import ContextBase
from agentstate.context_listing import ContextInfo, ContextPage, cleanup, list_page
from agentstate.conversation import Conversation
from agentstate.errors import ContextNotFoundError, UnsupportedValueError
from agentstate.models import ConversationState, Message
from agentstate.scope import StateScope
from agentstate.state import history, operations
from agentstate.state.buffer import MISSING
from agentstate.state.failures import failed_turns, with_failed
from agentstate.state.operations import METADATA, VARIABLES, variable
from agentstate.state.operations import metadata as metadata_at
from agentstate.state.turn import Frame, current, not_found
from agentstate.storage.protocol import ANY, Increment, Part
from agentstate.validation import as_type_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from agentstate.exchange import Exported, Imported

__all__ = ["ContextInfo", "ContextPage", "Conversation", "ConversationContext"]

T = TypeVar("T")
R = TypeVar("R")


class ConversationContext(ContextBase):
    """Reads and changes the state of conversations.

    A handler gets one from ``@stateful``. Elsewhere make one over a storage, a `Store`, a URL, or
    over the configured default::

        context = ConversationContext("sqlite:///state.db")

    Args:
        storage: where the states are.
        settings: how turns opened by `turn` run, and how long states live.
        principal: who asks: only states of this owner, or of nobody, are there.
        tenant: whose data it is.
    """

    # -- variables -----------------------------------------------------------------------------

    @overload
    async def get_variable(self, context_id: str, key: str, default: Any = None) -> Any: ...
    @overload
    async def get_variable(self, context_id: str, key: str, default: T, *, as_type: type[T]) -> T: ...
    @overload
    async def get_variable(self, context_id: str, key: str, *, as_type: type[T]) -> T | None: ...
    async def get_variable(
        self, context_id: str, key: str, default: Any = None, *, as_type: type[Any] | None = None
    ) -> Any:
        """Return a variable, or ``default`` when there is none.

        Args:
            context_id: of the conversation.
            key: of the variable.
            default: returned, as it is, when the variable is absent.
            as_type: a pydantic model or any type pydantic knows: the value is validated as it.
        """
        buffer = self._ready(context_id)
        at = variable(key)
        value = buffer.get(at) if buffer is not None else await self._run(context_id, Frame.get, at)
        if value is MISSING:
            return default
        return value if as_type is None else as_type_of(value, as_type, key)

    async def get_variables(self, context_id: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
        """Return several variables, all of them without ``keys``; absent ones are left out."""
        return await self._run(context_id, operations.get_many, VARIABLES, None if keys is None else list(keys))

    async def set_variable(self, context_id: str, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Set a variable; ``ttl`` in seconds is its own lifetime.

        Raises:
            UnsupportedValueError: the value would not come back the same; the error says where.
        """
        buffer = self._ready(context_id)
        if buffer is not None:
            buffer.put(variable(key), value, ttl)
        else:
            await self._run(context_id, Frame.set, variable(key), value, ttl)

    async def set_variables(self, context_id: str, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set several variables as one change."""
        await self._run(context_id, operations.set_many, VARIABLES, {**(values or {}), **more})

    async def delete_variable(self, context_id: str, key: str) -> bool:
        """Delete a variable; return whether it was there."""
        return await self._run(context_id, Frame.delete, variable(key))

    async def increment(self, context_id: str, key: str, by: int = 1) -> int:
        """Add to a number, which starts at 0, and return it.

        Never conflicts with others' increments. Inside a turn the result is what this turn sees.
        """
        if type(by) is not int:
            raise UnsupportedValueError(
                f"{key!r} can't be incremented by {by!r}: counters are whole numbers.", path=key
            )
        at = variable(key)
        scope = self.scope_of(context_id)
        if self._joined(scope) is None and self._principal is None:
            part = Part(scope=scope, birth=ANY, increments=[Increment(*at, by)])
            try:
                done = await self._store.commit_call(part, self._settings)
            except UnsupportedValueError:
                pass  # it was set as a plain number: read it, and set it anew
            else:
                return done.counters[at]
        return await self._run(context_id, Frame.increment, at, by)

    async def update(self, context_id: str, key: str, fn: Callable[[Any], R], default: Any = None) -> R:
        """Replace a variable by ``fn(value)`` and return that.

        ``fn`` must be a pure function: outside a turn it is called again when another change
        came between.
        """
        return await self._run(context_id, operations.update, variable(key), fn, default)

    # -- history -------------------------------------------------------------------------------

    async def add_to_history(
        self,
        context_id: str,
        role: str,
        content: Any,
        metadata: Mapping[str, Any] | None = None,
        *,
        message_id: str | None = None,
        ttl: float | None = None,
        **fields: Any,
    ) -> Message:
        """Add a message and return it.

        Args:
            context_id: of the conversation.
            role: ``user``, ``assistant`` (``agent`` is the same), ``tool``, ``system``, …
            content: text, or a list of parts.
            metadata: your own, JSON-able.
            message_id: the host's id of the message: a second delivery with it adds nothing.
            ttl: the message's own lifetime in seconds.
            fields: ``tool_calls``, ``tool_call_id``, ``name``, ``timestamp``.
        """
        if message_id is None and self._frame is not None:
            message_id = self._frame.turn.next_message_id()
        now = self._store.clock()
        message = Message.new(role, content, id=message_id, metadata=metadata, now=now, **fields)
        buffer = self._ready(context_id)
        if buffer is not None:
            return history.append(buffer, message, ttl=ttl, unique=message_id is not None)
        return await self._run(context_id, history.add, message, ttl=ttl, unique=message_id is not None)

    async def add_messages(self, context_id: str, messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
        """Add several messages as one change; mappings hold ``role``, ``content`` and what else a message has."""
        made = [self._as_message(one) for one in messages]
        return await self._run(context_id, operations.add_many, made)

    def _as_message(self, one: Message | Mapping[str, Any]) -> tuple[Message, bool]:
        if isinstance(one, Message):
            return one, True
        fields = dict(one)
        role, content, own_id = fields.pop("role"), fields.pop("content", ""), fields.pop("id", None)
        if own_id is None and self._frame is not None:
            own_id = self._frame.turn.next_message_id()
        return Message.new(role, content, id=own_id, now=self._store.clock(), **fields), own_id is not None

    async def get_history(
        self,
        context_id: str,
        limit: int | None = None,
        *,
        before: int | Message | None = None,
        after: int | Message | None = None,
        include_failed: bool = False,
    ) -> list[Message]:
        """Return messages, oldest first: the last ``limit``, all without a limit, none for 0.

        ``before`` and ``after`` (a message, or its position) bound the range, both exclusive;
        with ``after`` alone the first ``limit`` after it are returned. ``include_failed`` shows the
        messages of the last failed turns among them, by their times: each is a `FailedMessage`.
        """
        if include_failed:
            return await self._run(context_id, with_failed, limit, before, after)
        buffer = self._ready(context_id) if limit and before is None and after is None else None
        found = history.last(buffer, limit, self._store.clock()) if buffer is not None and limit and limit > 0 else None
        return found if found is not None else await self._run(context_id, history.read, limit, before, after)

    async def edit_message(
        self,
        context_id: str,
        message: int | Message,
        content: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """Replace a message's content (and metadata); what it was stays in the journal."""
        return await self._run(context_id, operations.edit, message, content, metadata)

    async def truncate_history(self, context_id: str, message: int | Message) -> int:
        """Remove a message and all after it; return how many were removed."""
        return await self._run(context_id, history.truncate, message)

    async def trim_history(self, context_id: str, keep: int) -> int:
        """Remove the oldest messages beyond the last ``keep``; return how many were removed."""
        return await self._run(context_id, history.trim, keep)

    async def failed_turns(self, context_id: str) -> list[dict[str, Any]]:
        """Return what failed turns left: error type, time, handler, and the messages they had added."""
        if self._principal is not None:
            await self._run(context_id, operations.look)
        return await failed_turns(self._store, self.scope_of(context_id), self._principal)

    # -- metadata ------------------------------------------------------------------------------

    async def get_metadata(self, context_id: str, key: str, default: Any = None) -> Any:
        """Return one piece of metadata."""
        value = await self._run(context_id, Frame.get, metadata_at(key))
        return default if value is MISSING else value

    async def set_metadata(self, context_id: str, key: str, value: Any) -> None:
        """Set one piece of metadata."""
        await self._run(context_id, Frame.set, metadata_at(key), value)

    async def get_all_metadata(self, context_id: str) -> dict[str, Any]:
        """Return all metadata."""
        return await self._run(context_id, operations.get_many, METADATA, None)

    async def delete_metadata(self, context_id: str, key: str) -> bool:
        """Delete one piece of metadata; return whether it was there."""
        return await self._run(context_id, Frame.delete, metadata_at(key))

    # -- the whole -----------------------------------------------------------------------------

    async def get_or_create(self, context_id: str, user_id: str | None = None) -> ConversationState:
        """Return the whole state, made first if it is absent; ``user_id`` becomes its owner.

        Raises:
            ContextNotFoundError: it belongs to another user.
        """
        return await self._run(context_id, operations.whole, user_id, create=True)

    async def get(self, context_id: str) -> ConversationState:
        """Return the whole state.

        Raises:
            ContextNotFoundError: there is none for this caller.
        """
        return await self._run(context_id, operations.whole, None, create=False)

    async def exists(self, context_id: str) -> bool:
        """Whether there is such a state for this caller."""
        try:
            await self.get(context_id)
        except ContextNotFoundError:
            return False
        return True

    async def adopt(self, context_id: str, user_id: str) -> None:
        """Give a state that belongs to nobody to a user: an anonymous caller has signed in.

        Raises:
            ContextNotFoundError: it belongs to another user.
        """
        await self._run(context_id, operations.adopt, user_id)

    async def set_ttl(self, context_id: str, ttl: float | None) -> None:
        """Let a state live ``ttl`` seconds from now, or for ever."""
        await self._run(context_id, operations.set_ttl, ttl)

    async def clear_context(self, context_id: str) -> None:
        """Delete everything of a state: variables, history, metadata, journal."""
        await self._run(context_id, operations.clear)

    async def commit(self) -> None:
        """Publish what this turn has changed so far, and go on: the way to keep what belongs to a side effect."""
        frame = self._frame or current.get()
        if frame is not None:
            await frame.commit()

    async def list_contexts(
        self,
        user_id: str | None = None,
        *,
        prefix: str = "",
        updated_before: float | None = None,
        updated_after: float | None = None,
        order: Literal["id", "updated"] = "id",
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ContextPage:
        """List conversations, a page at a time; pass the page's ``cursor`` for the next.

        Args:
            user_id: only this owner's.
            prefix: of the id.
            updated_before: seconds since the epoch; so is ``updated_after``.
            updated_after: see ``updated_before``.
            order: ``id`` or ``updated``.
            reverse: turns the order round.
            limit: how many at most.
            cursor: of the page before.
        """
        owner = user_id if self._principal is None else self._principal
        if user_id is not None and owner != user_id:
            raise not_found(StateScope.user(user_id))
        return await list_page(
            self.storage, self._tenant, owner, prefix, updated_before, updated_after, order, cursor,
            reverse=reverse, limit=limit,
        )  # fmt: skip

    async def cleanup_old_contexts(self, max_age_hours: float = 24, *, dry_run: bool = False) -> int:
        """Drop conversations not changed for so many hours, except those in a turn; return how many."""
        before = self._store.clock() - max_age_hours * 3600
        return await cleanup(self.storage, self._tenant, self._principal, before, dry_run=dry_run)

    # -- turns and bound conversations ---------------------------------------------------------

    def conversation(self, context_id: str) -> Conversation:
        """Return the conversation, bound to its id."""
        return Conversation(self, context_id)

    def turn(self, context_id: str, *, name: str = "turn") -> AbstractAsyncContextManager[Conversation]:
        """Open a turn for an ``async with`` block: committed at its end, rolled back on an exception."""
        from agentstate.handling import open_turn

        return open_turn(self, context_id, name)

    @staticmethod
    def in_frame(frame: Frame) -> ConversationContext:
        """Return the context that works in a frame of a turn, for whoever the turn was taken for."""
        turn = frame.turn
        return ConversationContext(
            turn.store, settings=turn.settings, principal=turn.principal, tenant=turn.scope.tenant, frame=frame
        )

    async def export(
        self,
        path: str | os.PathLike[str],
        ids: str | Iterable[str] | None = None,
        *,
        prefix: str = "",
        user_id: str | None = None,
    ) -> Exported:
        """Write conversations to a file of JSON Lines; see `agentstate.exchange.export_contexts`."""
        from agentstate.exchange import export_contexts

        return await export_contexts(self, path, ids, prefix=prefix, user_id=user_id)

    async def import_(
        self, path: str | os.PathLike[str], *, on_existing: Literal["error", "skip", "replace"] = "error"
    ) -> Imported:
        """Store the conversations of such a file; see `agentstate.exchange.import_contexts`."""
        from agentstate.exchange import import_contexts

        return await import_contexts(self, path, on_existing=on_existing)
