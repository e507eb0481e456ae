"""The quickest way of the commonest calls: one round trip each, and no buffers between.

They do the same as their namesakes in `agentstate.manager.entries` for a caller outside of any turn and
without a principal.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from agentstate import codec
from agentstate.errors import ConflictError, UnsupportedValueError
from agentstate.manager import entries
from agentstate.manager.entries import Mismatch
from agentstate.state.buffer import MISSING
from agentstate.storage.protocol import Check, Increment, Part, Put, Stamp, Wants

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from agentstate.manager.entries import At
    from agentstate.manager.routes import Route
    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Entry

PAGE = 500


def _value(entry: Entry | None) -> Any:
    if entry is None:
        return MISSING
    value = entry.value
    return value if type(value) is int else codec.decode(value)  # type: ignore[arg-type]


async def get(route: Route, scope: StateScope, at: At) -> Any:
    """Return a value, `MISSING` when it is absent."""
    snapshot = await route.store.read(scope, Wants((), (at,), (), 0))
    return _value(snapshot.entries.get(at))


async def get_many(route: Route, scope: StateScope, section: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return those values that are there."""
    wanted = tuple((section, key) for key in keys)
    snapshot = await route.store.read(scope, Wants((), wanted, (), 0))
    return {at[1]: _value(snapshot.entries[at]) for at in wanted if at in snapshot.entries}


async def put(route: Route, scope: StateScope, at: At, value: Any, ttl: float | None = None) -> None:
    """Set a value."""
    part = Part(scope=scope, puts=(Put(at[0], at[1], codec.encode(value), ttl),))
    await route.store.commit_call(part, route.settings)


async def put_expecting(
    route: Route, scope: StateScope, at: At, value: Any, ttl: float | None, expected: Stamp | None
) -> Mismatch | None:
    """Set a value if its entry still has this version."""
    part = Part(
        scope=scope,
        checks=(Check("entry", at[0], expected, at[1]),),
        puts=(Put(at[0], at[1], codec.encode(value), ttl),),
    )
    try:
        await route.store.commit_call(part, route.settings)
    except ConflictError as error:
        return Mismatch(error.found if isinstance(error.found, Stamp) else None)
    return None


async def put_many(route: Route, scope: StateScope, section: str, values: Mapping[str, Any]) -> None:
    """Set several values."""
    puts = [Put(section, key, codec.encode(value)) for key, value in values.items()]
    if puts:
        await route.store.commit_call(Part(scope=scope, puts=puts), route.settings)


async def increment(route: Route, scope: StateScope, at: At, by: int) -> Any:
    """Add to a counter."""
    part = Part(scope=scope, increments=(Increment(at[0], at[1], by),))
    try:
        return (await route.store.commit_call(part, route.settings)).counters[at]
    except UnsupportedValueError:  # it was set as a plain number: that is read first, and set anew
        return NotImplemented


async def has(route: Route, scope: StateScope, at: At) -> bool:
    """Return whether an entry is there."""
    snapshot = await route.store.read(scope, Wants((), (at,), (), 0))
    return at in snapshot.entries


async def page(
    route: Route, scope: StateScope, section: str, prefix: str, limit: int | None, cursor: str | None, *, reverse: bool
) -> tuple[dict[str, Any], str | None]:
    """Return a page of entries in the order of their keys, and where the next one begins.

    Engines page forwards only: backwards, the section is read up to the page, at most ``limit``
    of its entries being held at a time.
    """
    if reverse:
        return await _page_before(route, scope, section, prefix, limit, cursor)
    scan = route.store.storage.scan
    found: list[tuple[str, Entry]] = []
    while True:
        left = PAGE if limit is None else min(limit - len(found), PAGE)
        more = await scan(scope, section, prefix=prefix, cursor=cursor, limit=left)
        found += more.entries
        cursor = more.cursor
        if cursor is None or (limit is not None and len(found) >= limit):
            return {key: _value(entry) for key, entry in found}, cursor


async def _page_before(
    route: Route, scope: StateScope, section: str, prefix: str, limit: int | None, before: str | None
) -> tuple[dict[str, Any], str | None]:
    held: deque[tuple[str, Entry]] = deque(maxlen=None if limit is None else limit + 1)
    cursor: str | None = None
    while True:
        more = await route.store.storage.scan(scope, section, prefix=prefix, cursor=cursor, limit=PAGE)
        held.extend(pair for pair in more.entries if before is None or pair[0] < before)
        cursor = more.cursor
        if cursor is None or (before is not None and cursor >= before):
            break
    found = list(held)[::-1]
    chosen = found if limit is None else found[:limit]
    return {key: _value(entry) for key, entry in chosen}, chosen[-1][0] if len(chosen) < len(found) else None


DIRECT: dict[Callable[..., Any], Callable[..., Coroutine[Any, Any, Any]]] = {
    entries.get: get,
    entries.get_many: get_many,
    entries.put: put,
    entries.put_expecting: put_expecting,
    entries.put_many: put_many,
    entries.has: has,
    entries.page: page,
    entries.increment: increment,
}
"""An operation on a frame → what does the same without one, or returns ``NotImplemented``."""
