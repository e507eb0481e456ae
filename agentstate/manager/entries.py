"""What calls on entries do, through a frame: the same in a transaction, in a turn and by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.errors import UnsupportedValueError
from agentstate.manager.unit import NOTHING, UnitFrame
from agentstate.state.buffer import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentstate.scope import StateScope
    from agentstate.state.buffer import Buffer
    from agentstate.state.turn import Frame
    from agentstate.storage.protocol import Snapshot, Stamp

At = tuple[str, str]


class Mismatch(NamedTuple):
    """A write was refused: the entry has another version than was expected, or none that is stored."""

    found: Stamp | None


class Found(NamedTuple):
    """A value (`MISSING`: none), its version, and the state's stored parent."""

    value: Any
    version: Stamp | None
    parent: str | None


async def known(frame: Frame, scope: StateScope) -> Buffer:
    """Return the buffer of a state, and have read what the state is."""
    if isinstance(frame, UnitFrame):
        return await frame.known(scope)
    buffer = await frame.buffer(scope)
    if frame.turn.lazy:  # under a lock
        buffer.snapshot.parent = (await frame.turn.load(buffer, NOTHING)).parent
    return buffer


async def get(frame: Frame, scope: StateScope, at: At) -> Any:
    """Return a value, `MISSING` when it is absent."""
    return await frame.get(scope, at)


async def look(frame: Frame, scope: StateScope, at: At) -> Found:
    """Return a value with its version."""
    if not isinstance(frame, UnitFrame):
        await known(frame, scope)
    value = await frame.get(scope, at)
    buffer = await known(frame, scope)
    return Found(value, _version(buffer, at), await parent(frame, scope))


async def parent(frame: Frame, scope: StateScope) -> str | None:
    """Return the parent that is stored with a state."""
    stored = (await known(frame, scope)).snapshot.parent
    return frame.parents.get(scope, stored) if isinstance(frame, UnitFrame) else stored


async def inherit(frame: Frame, scope: StateScope, at: At) -> Found:
    """Return a value; of a state that has none, its parent, upon which what is read next relies."""
    found = await look(frame, scope, at)
    if found.value is MISSING and isinstance(frame, UnitFrame):
        frame.watched.add(scope)
    return found


def _version(buffer: Buffer, at: At) -> Stamp | None:
    entry = buffer.snapshot.entries.get(at)
    return entry.stamp if entry is not None else None


def _changed(buffer: Buffer, at: At) -> bool:
    """Return whether an entry is another one here than in the storage."""
    entry = buffer.snapshot.entries.get(at)
    return buffer.peek(at) is not (entry.value if entry is not None else None)


async def get_many(frame: Frame, scope: StateScope, section: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return those values that are there."""
    found = await frame.get_many(scope, [(section, key) for key in keys])
    return {key: value for (_, key), value in found.items()}


async def put(frame: Frame, scope: StateScope, at: At, value: Any, ttl: float | None = None) -> None:
    """Set a value."""
    await frame.set(scope, at, value, ttl)


async def put_expecting(
    frame: Frame, scope: StateScope, at: At, value: Any, ttl: float | None, expected: Stamp | None
) -> Mismatch | None:
    """Set a value if its entry still has this version."""
    there = await frame.get(scope, at) is not MISSING  # which makes the commit check it, too
    buffer = await frame.buffer(scope)
    found = _version(buffer, at)
    if there if expected is None else found != expected or _changed(buffer, at):
        return Mismatch(None if _changed(buffer, at) else found)
    await frame.set(scope, at, value, ttl)
    return None


async def put_many(frame: Frame, scope: StateScope, section: str, values: Mapping[str, Any]) -> None:
    """Set several values."""
    for key, value in values.items():
        await frame.set(scope, (section, key), value)


async def delete_many(frame: Frame, scope: StateScope, section: str, keys: Sequence[str]) -> int:
    """Delete several values; return how many were there."""
    buffer = await frame.writable(scope)
    there = await frame.get_many(scope, [(section, key) for key in keys])
    for at in there:
        buffer.delete(at)
    return len(there)


async def change(frame: Frame, scope: StateScope, at: At, fn: Callable[[Any], Any]) -> Any:
    """Replace a value (`MISSING`: none) by ``fn(value)``, unless that is `MISSING`; return it.

    The entry keeps the lifetime it has left.
    """
    buffer = await frame.writable(scope)
    result = fn(await frame.get(scope, at))
    if result is not MISSING:
        buffer.put(at, result, buffer.ttl_left(at))
    return result


async def increment(frame: Frame, scope: StateScope, at: At, by: int) -> int:
    """Add to a number, which starts at 0, and return it."""
    try:
        return await frame.increment(scope, at, by)
    except TypeError as error:
        raise UnsupportedValueError(f"{at[1]!r} of {scope}: {error}.", path=at[1]) from None


async def keys(frame: Frame, scope: StateScope, section: str, prefix: str) -> list[str]:
    """Return the keys of a section that begin with a prefix, in order."""
    return [key for key in await frame.keys(scope, section) if key.startswith(prefix)]


async def page(
    frame: Frame, scope: StateScope, section: str, prefix: str, limit: int | None, cursor: str | None, *, reverse: bool
) -> tuple[dict[str, Any], str | None]:
    """Return a page of entries in the order of their keys, and where the next one begins."""
    found = await keys(frame, scope, section, prefix)
    if reverse:
        found.reverse()
    if cursor is not None:
        found = [key for key in found if (key < cursor if reverse else key > cursor)]
    chosen = found if limit is None else found[:limit]
    values = await get_many(frame, scope, section, chosen)
    return values, chosen[-1] if len(chosen) < len(found) else None


async def has(frame: Frame, scope: StateScope, at: At) -> bool:
    """Return whether an entry is there."""
    return await frame.get(scope, at) is not MISSING


async def state(frame: Frame, scope: StateScope) -> tuple[bool, Snapshot]:
    """Return whether a state is there, and what is known of it."""
    buffer = await known(frame, scope)
    if isinstance(frame, UnitFrame):
        frame.watched.add(scope)
    return buffer.exists, buffer.snapshot


async def clear(frame: Frame, scope: StateScope) -> None:
    """Delete everything of a state."""
    (await frame.writable(scope)).clear()


async def set_ttl(frame: Frame, scope: StateScope, ttl: float | None) -> None:
    """Let a state live so many seconds from now, or for ever."""
    (await frame.writable(scope)).expiry = ttl
