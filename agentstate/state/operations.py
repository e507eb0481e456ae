"""What calls on a conversation do, through a frame: the same inside a turn and outside."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from agentstate import codec
from agentstate.models import ConversationState, Message
from agentstate.scope import check_key
from agentstate.state import history
from agentstate.state.buffer import MISSING
from agentstate.state.turn import not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentstate.scope import StateScope
    from agentstate.state.turn import Frame

R = TypeVar("R")

VARIABLES = "variables"
METADATA = "metadata"


def variable(key: str) -> tuple[str, str]:
    """Return where a variable lies.

    Raises:
        ContextIdError: the key can't be one.
    """
    try:
        return _entry(VARIABLES, key)
    except TypeError:  # it can't be hashed, so it is no text either
        return (VARIABLES, check_key(key))


def metadata(key: str) -> tuple[str, str]:
    """Return where a piece of metadata lies; raises as `variable` does."""
    return (METADATA, check_key(key))


@lru_cache(maxsize=1024)
def _entry(section: str, key: str) -> tuple[str, str]:
    """Check a key once: a handler's few keys come again at every turn."""
    return (section, check_key(key))


async def get_many(frame: Frame, scope: StateScope, section: str, keys: Sequence[str] | None) -> dict[str, Any]:
    """Return several values of a section, all without ``keys``; absent ones are left out."""
    wanted = await frame.keys(scope, section) if keys is None else keys
    found = await frame.get_many(scope, [(section, check_key(key)) for key in wanted])
    return {key: value for (_, key), value in found.items()}


async def set_many(frame: Frame, scope: StateScope, section: str, values: Mapping[str, Any]) -> None:
    """Set several values of a section, all or none."""
    for value in values.values():
        codec.encode(value)  # all or nothing: refuse before the first is set
    for key, value in values.items():
        await frame.set(scope, (section, check_key(key)), value)


async def update(frame: Frame, scope: StateScope, at: tuple[str, str], fn: Callable[[Any], R], default: Any) -> R:
    """Replace a value by ``fn(value)`` and return that."""
    value = await frame.get(scope, at)
    result = fn(default if value is MISSING else value)
    await frame.set(scope, at, result)
    return result


async def add_many(frame: Frame, scope: StateScope, made: Sequence[tuple[Message, bool]]) -> list[Message]:
    """Append several messages."""
    return [await history.add(frame, scope, message, ttl=None, unique=unique) for message, unique in made]


async def edit(
    frame: Frame, scope: StateScope, place: int | Message, content: Any, metadata: Mapping[str, Any] | None
) -> Message:
    """Replace a message's content, and its metadata if given."""
    old = await history.get(frame, scope, place)
    return await history.edit(frame, scope, place, old.changed(content=content, metadata=metadata))


async def whole(frame: Frame, scope: StateScope, user_id: str | None, *, create: bool) -> ConversationState:
    """Return the whole state; with ``create`` it is made, and gets an owner, if need be."""
    messages = await history.read(frame, scope, None, None, None)
    buffer = await frame.buffer(scope)
    base, owner, exists = buffer.snapshot, buffer.owned_by, buffer.exists
    if not exists and not create:
        raise not_found(scope)
    if user_id is not None and owner not in (None, user_id):
        raise not_found(scope)
    if create and (not exists or (user_id is not None and owner is None)):
        (await frame.writable(scope)).touch(owner if user_id is None else user_id)
        owner = owner if user_id is None else user_id
    now = frame.turn.store.clock()
    return ConversationState(
        context_id=scope.id,
        user_id=owner,
        created_at=base.created_at or now,
        updated_at=base.updated_at or now,
        version=base.stamp.version if base.stamp is not None else 0,
        metadata=await get_many(frame, scope, METADATA, None),
        variables=await get_many(frame, scope, VARIABLES, None),
        history=messages,
    )


async def look(frame: Frame, scope: StateScope) -> None:
    """Raise what a caller who may not see the state gets."""
    await frame.log(scope, history.LOG)


async def adopt(frame: Frame, scope: StateScope, user_id: str) -> None:
    """Give a state that is nobody's to a user."""
    await frame.log(scope, history.LOG)
    buffer = await frame.writable(scope)
    if not buffer.exists or buffer.owned_by not in (None, user_id):
        raise not_found(scope)
    buffer.touch(user_id)


async def set_ttl(frame: Frame, scope: StateScope, ttl: float | None) -> None:
    """Let the state live so many seconds from now, or for ever."""
    (await frame.writable(scope)).expiry = ttl


async def clear(frame: Frame, scope: StateScope) -> None:
    """Delete everything of the state."""
    (await frame.writable(scope)).clear()
