"""How states end: by the policy of their kind, with all that is below them.

Ending writes down what is to be done before it does it, under a label that a sweep finds. So a process that
is killed half-way leaves work for the next sweep, never half an end that nobody knows of. Every step may be
done twice. A state whose turn is held is left for the next sweep.

A parent lists its children before they name it; steps are found by their workflow's id.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from agentstate.errors import ConfigError, ContextIdError, ContextNotFoundError
from agentstate.manager import calls, entries
from agentstate.manager.parents import parent_of
from agentstate.manager.unit import UnitFrame
from agentstate.scope import MAX_ID_BYTES, StateScope
from agentstate.state.buffer import MISSING
from agentstate.storage.protocol import KEEP, Part, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentstate.manager.face import Operations
    from agentstate.manager.routes import Route, Routes
    from agentstate.state.turn import Frame

CHILDREN: Final = "children"
LIFETIME: Final = "lifetime"
ENDING: Final = "agentstate-ending"
YES: Final = "yes"
EXPIRE: Final = "expire:"
AT: Final = (LIFETIME, "ending")


async def end(routes: Routes, scope: StateScope) -> bool:
    """End a state and all below it; return whether nothing is left for a sweep."""
    policy = routes.of(scope.kind).on_end
    if policy == "keep":
        return True
    seconds_of(policy)
    await calls.run(routes, scope, _mark, policy)
    return await finish(routes, scope)


def seconds_of(policy: str) -> float | None:
    """Return how long a state that has ended is kept, ``None`` when it is deleted.

    Raises:
        ConfigError: it is no policy.
    """
    if policy == "delete":
        return None
    try:
        seconds = float(policy.removeprefix(EXPIRE)) if policy.startswith(EXPIRE) else -1.0
    except ValueError:
        seconds = -1.0
    if seconds <= 0:
        raise ConfigError(f"on_end is {policy!r}.", remedy="Use 'keep', 'delete' or 'expire:SECONDS'.")
    return seconds


async def _mark(frame: Frame, scope: StateScope, policy: str) -> None:
    buffer = await entries.known(frame, scope)
    await frame.set(scope, AT, policy)
    buffer.labels = {**buffer.snapshot.labels, ENDING: YES}


async def _unmark(frame: Frame, scope: StateScope, seconds: float) -> None:
    buffer = await entries.known(frame, scope)
    await frame.delete(scope, AT)
    buffer.labels = {name: value for name, value in buffer.snapshot.labels.items() if name != ENDING}
    buffer.expiry = seconds


async def finish(routes: Routes, scope: StateScope) -> bool:
    """Do what ending a marked state still asks for; return whether all of it is done."""
    policy = await calls.run(routes, scope, entries.get, AT)
    if policy is MISSING:
        return True
    seconds = seconds_of(policy)
    done, seen = True, {scope}
    async for child in _below(routes, scope, seen):
        done &= await _end_one(routes, child, seconds)
    if not done:
        return False
    if seconds is None:
        _, found = await calls.run(routes, scope, entries.state)
        done = await _end_one(routes, scope, None)
        if done and found.parent is not None:
            above = StateScope.parse(found.parent)
            await calls.run(routes, above, entries.delete_many, CHILDREN, [_child_key(scope)])
        return done
    await calls.run(routes, scope, _unmark, seconds)
    return True


async def _end_one(routes: Routes, scope: StateScope, seconds: float | None) -> bool:
    try:
        there, _ = await calls.run(routes, scope, entries.state)
    except ContextNotFoundError:  # somebody else's by now
        return True
    if not there:
        return True
    if seconds is None:
        return await routes.of(scope.kind).store.storage.drop(scope)
    await calls.run(routes, scope, entries.set_ttl, seconds)
    return True


async def _below(routes: Routes, scope: StateScope, seen: set[StateScope]) -> AsyncIterator[StateScope]:
    """Yield all states below one, children before their parents."""
    async for child in _children(routes, scope):
        if child not in seen:
            seen.add(child)
            async for one in _below(routes, child, seen):
                yield one
            yield child


async def _children(routes: Routes, scope: StateScope) -> AsyncIterator[StateScope]:
    for text in (await calls.run(routes, scope, entries.page, CHILDREN, "", None, None, reverse=False))[0].values():
        yield StateScope.parse(text)
    if scope.kind != "workflow":
        return
    prefix = StateScope.step(scope.ids[0], "x").id[:-1]
    query = ScopeQuery(kind="step", prefix=prefix, tenant=scope.tenant)
    while True:
        page = await routes.of("step").store.storage.scopes(query)
        for info in page.items:
            yield info.scope
        if page.cursor is None:
            return
        query = query._replace(cursor=page.cursor)


async def finish_all(routes: Routes) -> int:
    """Finish what was marked and not finished; return how many states are ended now."""
    ended = 0
    for store in routes.stores():
        query = ScopeQuery(label=(ENDING, YES), tenant=routes.tenant)
        while True:
            page = await store.storage.scopes(query)
            for info in page.items:
                ended += await finish(routes, info.scope)
            if page.cursor is None:
                break
            query = query._replace(cursor=page.cursor)
    return ended


# -- parents -------------------------------------------------------------------------------------


async def set_parent(operations: Operations, scope: StateScope, parent: StateScope) -> None:
    """Store which state is above another one, for lookups and for the end.

    Raises:
        ContextIdError: it would be above itself, or belongs to another tenant.
    """
    parent = operations.resolve(parent)
    run = operations.run
    if await run(scope, entries.parent) == parent.text:
        return
    above: StateScope | None = parent
    seen: set[StateScope] = set()
    while above is not None and above not in seen:
        if above == scope:
            raise ContextIdError(f"{parent} can't be above {scope}, which is above it.", remedy="Choose another one.")
        seen.add(above)
        above = parent_of(above, await run(above, entries.parent))
    await run(parent, entries.put, (CHILDREN, _child_key(scope)), scope.text)
    await run(scope, partial(store_parent, operations.routes), parent.text)


def _child_key(scope: StateScope) -> str:
    text = scope.text
    return text if len(text.encode()) <= MAX_ID_BYTES else blake2b(text.encode(), digest_size=16).hexdigest()


async def store_parent(routes: Routes, frame: Frame, scope: StateScope, parent: str) -> None:
    """Store a parent's address with a state: in a transaction with it, in a handler's turn at once."""
    if isinstance(frame, UnitFrame):
        buffer = await frame.writable(scope)
        buffer.touch(KEEP)
        frame.parents[scope] = parent
    else:
        route: Route = routes.of(scope.kind)
        await route.store.commit_call(Part(scope=scope, parent=parent), route.settings)
