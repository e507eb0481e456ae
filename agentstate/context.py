"""What a handler sees of its state: `ConversationContext`, and `Conversation`, bound to one id.

Inside a turn, calls read and change the turn's buffer, and what they change is committed
when the handler succeeds. Outside a turn each call is atomic by itself and doesn't wait for
turns; a call that reads before it writes is tried again when somebody else came between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from agentstate.context_listing import ContextInfo, ContextPage, cleanup, list_page
from agentstate.conversation import Conversation
from agentstate.errors import ConflictError, ContextNotFoundError, UnsupportedValueError
from agentstate.models import ConversationState, Message
from agentstate.randomness import random_bits
from agentstate.scope import StateScope
from agentstate.state import history
from agentstate.state.buffer import MISSING, Buffer
from agentstate.state.record import Origin
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store, not_found
from agentstate.state.turn import Frame, Turn, current
from agentstate.storage.protocol import ANY, Increment, Part, Snapshot, Storage
from agentstate.validation import as_type_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["ContextInfo", "ContextPage", "Conversation", "ConversationContext"]

T = TypeVar("T")
R = TypeVar("R")

VARIABLES = "variables"
METADATA = "metadata"
TRIES = 20
OUTSIDE = Origin("call")


class ConversationContext:
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

    def __init__(
        self,
        storage: Storage | Store | str | None = None,
        *,
        settings: TurnSettings | None = None,
        principal: str | None = None,
        tenant: str = "",
        frame: Frame | None = None,
    ) -> None:
        """See the class."""
        if isinstance(storage, Store):
            self._store = storage
        else:
            from agentstate.stores import open_store

            self._store = open_store(storage)
        self._settings = settings or TurnSettings()
        self._principal = principal
        self._tenant = tenant
        self._frame = frame

    @property
    def store(self) -> Store:
        """The store this context works on."""
        return self._store

    @property
    def storage(self) -> Storage:
        """The storage this context works on."""
        return self._store.storage

    @property
    def settings(self) -> TurnSettings:
        """How turns opened here run."""
        return self._settings

    @property
    def principal(self) -> str | None:
        """Who asks."""
        return self._principal

    @property
    def persistent(self) -> bool:
        """Whether what is written here outlives the process."""
        return self.storage.capabilities.durability != "none"

    async def aclose(self) -> None:
        """Close the storage."""
        await self.storage.close()

    async def __aenter__(self) -> Self:
        """Return this context; leaving it closes the storage."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- running an operation ------------------------------------------------------------------

    def scope_of(self, context_id: str) -> StateScope:
        """Return the address of a state; inside a turn, its own id means its own state, of whatever kind."""
        frame = self._frame
        if frame is not None:
            scope = frame.turn.scope
            if scope.id == context_id:
                return scope
        return StateScope.conversation(context_id, tenant=self._tenant)

    def _joined(self, scope: StateScope) -> Frame | None:
        return self._frame if self._frame is not None else Frame.joined(self._store, scope)

    def _ready(self, context_id: str) -> Buffer | None:
        """Return the buffer that serves this call without waiting for anything, if there is one."""
        frame = self._frame
        return frame.ready(context_id) if frame is not None else None

    async def _run(self, context_id: str, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        scope = self.scope_of(context_id)
        frame = self._joined(scope)
        if frame is None:
            return await self._outside(scope, operation, *args, **kwargs)
        result = await operation(frame, scope, *args, **kwargs)
        if frame.turn.settings.commit == "immediate" and frame is frame.turn.frame:
            await frame.commit()
        return result

    async def _outside(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        for tried in range(TRIES):
            turn = self._lazy_turn(scope)
            try:
                if self._principal is not None:
                    await turn.frame.log(scope, history.LOG)
                result = await operation(turn.frame, scope, *args, **kwargs)
                await self._store.commit_turn(turn, release=True)
            except ConflictError:
                if tried == TRIES - 1:
                    raise
                await _pause(tried)
            else:
                return result
        raise AssertionError  # the last try returned or raised

    def _lazy_turn(self, scope: StateScope) -> Turn:
        snapshot = Snapshot(scope=scope, now=0.0, complete=False)
        return Turn(
            self._store,
            snapshot,
            self._settings._replace(autosave=True, turns="optimistic"),
            OUTSIDE,
            lazy=True,
            principal=self._principal,
        )

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
        at = (VARIABLES, key)
        value = buffer.get(at) if buffer is not None else await self._run(context_id, Frame.get, at)
        if value is MISSING:
            return default
        return value if as_type is None else as_type_of(value, as_type, key)

    async def get_variables(self, context_id: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
        """Return several variables, all of them without ``keys``; absent ones are left out."""
        return await self._run(context_id, _get_many, VARIABLES, None if keys is None else list(keys))

    async def set_variable(self, context_id: str, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Set a variable; ``ttl`` in seconds is its own lifetime.

        Raises:
            UnsupportedValueError: the value would not come back the same; the error says where.
        """
        buffer = self._ready(context_id)
        if buffer is not None:
            buffer.put((VARIABLES, key), value, ttl)
        else:
            await self._run(context_id, Frame.set, (VARIABLES, key), value, ttl)

    async def set_variables(self, context_id: str, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set several variables as one change."""
        await self._run(context_id, _set_many, VARIABLES, {**(values or {}), **more})

    async def delete_variable(self, context_id: str, key: str) -> bool:
        """Delete a variable; return whether it was there."""
        return await self._run(context_id, Frame.delete, (VARIABLES, key))

    async def increment(self, context_id: str, key: str, by: int = 1) -> int:
        """Add to a number, which starts at 0, and return it.

        Never conflicts with others' increments. Inside a turn the result is what this turn sees.
        """
        scope = self.scope_of(context_id)
        if self._joined(scope) is None and self._principal is None:
            part = Part(scope=scope, birth=ANY, increments=[Increment(VARIABLES, key, by)])
            try:
                done = await self._store.commit_call(part, self._settings)
            except UnsupportedValueError:
                pass  # it was set as a plain number: read it, and set it anew
            else:
                return done.counters[VARIABLES, key]
        return await self._run(context_id, Frame.increment, (VARIABLES, key), by)

    async def update(self, context_id: str, key: str, fn: Callable[[Any], R], default: Any = None) -> R:
        """Replace a variable by ``fn(value)`` and return that.

        ``fn`` must be a pure function: outside a turn it is called again when another change
        came between.
        """
        return await self._run(context_id, _update, (VARIABLES, key), fn, default)

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
        message = self._message(role, content, metadata, message_id, fields)
        buffer = self._ready(context_id)
        if buffer is not None:
            return history.append(buffer, message, ttl=ttl, unique=message_id is not None)
        return await self._run(context_id, history.add, message, ttl=ttl, unique=message_id is not None)

    async def add_messages(self, context_id: str, messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
        """Add several messages as one change; mappings hold ``role``, ``content`` and what else a message has."""
        made = [self._as_message(one) for one in messages]
        return await self._run(context_id, _add_many, made)

    def _as_message(self, one: Message | Mapping[str, Any]) -> tuple[Message, bool]:
        if isinstance(one, Message):
            return one, True
        fields = dict(one)
        role, content, own_id = fields.pop("role"), fields.pop("content", ""), fields.pop("id", None)
        return self._message(role, content, fields.pop("metadata", None), own_id, fields), own_id is not None

    def _message(
        self, role: str, content: Any, metadata: Mapping[str, Any] | None, own_id: str | None, fields: dict[str, Any]
    ) -> Message:
        return Message.new(role, content, id=own_id, metadata=metadata, now=self._store.clock(), **fields)

    async def get_history(
        self,
        context_id: str,
        limit: int | None = None,
        *,
        before: int | Message | None = None,
        after: int | Message | None = None,
    ) -> list[Message]:
        """Return messages, oldest first: the last ``limit``, all without a limit, none for 0.

        ``before`` and ``after`` (a message, or its position) bound the range, both exclusive;
        with ``after`` alone the first ``limit`` after it are returned.
        """
        return await self._run(context_id, history.read, limit, before, after)

    async def edit_message(
        self,
        context_id: str,
        message: int | Message,
        content: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """Replace a message's content (and metadata); what it was stays in the journal."""
        return await self._run(context_id, _edit, message, content, metadata)

    async def truncate_history(self, context_id: str, message: int | Message) -> int:
        """Remove a message and all after it; return how many were removed."""
        return await self._run(context_id, history.truncate, message)

    async def trim_history(self, context_id: str, keep: int) -> int:
        """Remove the oldest messages beyond the last ``keep``; return how many were removed."""
        return await self._run(context_id, history.trim, keep)

    async def failed_turns(self, context_id: str) -> list[dict[str, Any]]:
        """Return what failed turns left: error type, time, handler, and the messages they had added."""
        from agentstate.state.record import decode_record

        return [decode_record(one) for one in await self.storage.failures(self.scope_of(context_id))]

    # -- metadata ------------------------------------------------------------------------------

    async def get_metadata(self, context_id: str, key: str, default: Any = None) -> Any:
        """Return one piece of metadata."""
        value = await self._run(context_id, Frame.get, (METADATA, key))
        return default if value is MISSING else value

    async def set_metadata(self, context_id: str, key: str, value: Any) -> None:
        """Set one piece of metadata."""
        await self._run(context_id, Frame.set, (METADATA, key), value)

    async def get_all_metadata(self, context_id: str) -> dict[str, Any]:
        """Return all metadata."""
        return await self._run(context_id, _get_many, METADATA, None)

    async def delete_metadata(self, context_id: str, key: str) -> bool:
        """Delete one piece of metadata; return whether it was there."""
        return await self._run(context_id, Frame.delete, (METADATA, key))

    # -- the whole -----------------------------------------------------------------------------

    async def get_or_create(self, context_id: str, user_id: str | None = None) -> ConversationState:
        """Return the whole state, made first if it is absent; ``user_id`` becomes its owner.

        Raises:
            ContextNotFoundError: it belongs to another user.
        """
        return await self._run(context_id, _state, user_id, create=True)

    async def get(self, context_id: str) -> ConversationState:
        """Return the whole state.

        Raises:
            ContextNotFoundError: there is none for this caller.
        """
        return await self._run(context_id, _state, None, create=False)

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
        await self._run(context_id, _adopt, user_id)

    async def set_ttl(self, context_id: str, ttl: float | None) -> None:
        """Let a state live ``ttl`` seconds from now, or for ever."""
        await self._run(context_id, _set_ttl, ttl)

    async def clear_context(self, context_id: str) -> None:
        """Delete everything of a state: variables, history, metadata, journal."""
        await self._run(context_id, _clear)

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
        order: str = "id",
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

    def in_frame(self, frame: Frame) -> ConversationContext:
        """Return this context, working in a frame of a turn."""
        return ConversationContext(
            self._store,
            settings=frame.turn.settings,
            principal=frame.turn.principal,
            tenant=frame.turn.scope.tenant,
            frame=frame,
        )

    def export(self, context_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield a conversation as JSON-able lines; see `agentstate.exchange`."""
        from agentstate.exchange import lines_of

        return lines_of(self, context_id)


async def _pause(tried: int) -> None:
    """Wait a little, so that contenders don't meet again and again."""
    import asyncio

    await asyncio.sleep(random_bits(10) / 2**20 * 2 ** min(tried, 6))


async def _get_many(frame: Frame, scope: StateScope, section: str, keys: Sequence[str] | None) -> dict[str, Any]:
    wanted = await frame.keys(scope, section) if keys is None else keys
    found = {key: await frame.get(scope, (section, key)) for key in wanted}
    return {key: value for key, value in found.items() if value is not MISSING}


async def _set_many(frame: Frame, scope: StateScope, section: str, values: Mapping[str, Any]) -> None:
    from agentstate import codec

    for value in values.values():
        codec.encode(value)  # all or nothing: refuse before the first is set
    for key, value in values.items():
        await frame.set(scope, (section, key), value)


async def _update(frame: Frame, scope: StateScope, at: tuple[str, str], fn: Callable[[Any], R], default: Any) -> R:
    value = await frame.get(scope, at)
    result = fn(default if value is MISSING else value)
    await frame.set(scope, at, result)
    return result


async def _add_many(frame: Frame, scope: StateScope, made: Sequence[tuple[Message, bool]]) -> list[Message]:
    return [await history.add(frame, scope, message, ttl=None, unique=unique) for message, unique in made]


async def _edit(
    frame: Frame, scope: StateScope, place: int | Message, content: Any, metadata: Mapping[str, Any] | None
) -> Message:
    old = await history.get(frame, scope, place)
    return await history.edit(frame, scope, place, old.changed(content=content, metadata=metadata))


async def _state(frame: Frame, scope: StateScope, user_id: str | None, *, create: bool) -> ConversationState:
    messages = await history.read(frame, scope, None, None, None)
    buffer = await frame.buffer(scope)
    base = buffer.snapshot
    owner = base.owner if buffer.owner_kept else buffer.owner
    if (not base.birth and not buffer.changed) and not create:
        raise not_found(scope)
    if user_id is not None and owner not in (None, user_id):
        raise not_found(scope)
    if create and ((not base.birth and not buffer.changed) or (user_id is not None and owner is None)):
        (await frame.writable(scope)).touch(owner if user_id is None else user_id)
        owner = owner if user_id is None else user_id
    now = frame.turn.store.clock()
    return ConversationState(
        context_id=scope.id,
        user_id=owner if isinstance(owner, str) else None,
        created_at=base.created_at or now,
        updated_at=base.updated_at or now,
        version=base.stamp.version if base.stamp is not None else 0,
        metadata=await _get_many(frame, scope, METADATA, None),
        variables=await _get_many(frame, scope, VARIABLES, None),
        history=messages,
    )


async def _adopt(frame: Frame, scope: StateScope, user_id: str) -> None:
    await frame.log(scope, history.LOG)
    buffer = await frame.writable(scope)
    if not buffer.snapshot.birth or buffer.snapshot.owner not in (None, user_id):
        raise not_found(scope)
    buffer.touch(user_id)


async def _set_ttl(frame: Frame, scope: StateScope, ttl: float | None) -> None:
    (await frame.writable(scope)).expiry = ttl


async def _clear(frame: Frame, scope: StateScope) -> None:
    (await frame.writable(scope)).clear()
