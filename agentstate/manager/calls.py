"""How single calls run: in the turn they belong to, directly, or as a small unit of work of their own.

A unit is tried again when another change came between. Calls that change a value by a function stand in
line within the process, so that they don't make each other try again; the line is neutral to loops and
threads, and a cancelled caller leaves it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from agentstate.errors import ConflictError
from agentstate.manager import entries, lock
from agentstate.manager.direct import DIRECT
from agentstate.manager.patches import FailedTestError
from agentstate.manager.unit import Unit
from agentstate.randomness import random_bits
from agentstate.state.line import TurnLine
from agentstate.state.record import Origin
from agentstate.state.turn import Frame, current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.manager.routes import Routes
    from agentstate.scope import StateScope
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Lease

R = TypeVar("R")

TRIES: Final = 20
PATIENCE: Final = 60.0
QUEUED: Final = frozenset({entries.change})

_lines: WeakKeyDictionary[Store, TurnLine] = WeakKeyDictionary()


async def run(
    routes: Routes, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any
) -> R:
    """Run an operation by itself, or in the turn of its state that the caller is in."""
    if current.get() is not None:
        joined = _joined(routes, scope)
        if joined is not None:
            return await lock.in_turn(joined, scope, operation, *args, **kwargs)
    if routes.owner_of(scope.kind) is None:
        direct = DIRECT.get(operation)
        if direct is not None:
            result: Any = await direct(routes.of(scope.kind), scope, *args, **kwargs)
            if result is not NotImplemented:
                return result  # type: ignore[no-any-return]
    if operation not in QUEUED:
        return await _in_units(routes, scope, operation, *args, **kwargs)
    store = routes.of(scope.kind).store
    line = _line(store)
    ticket = line.take(scope, "call")
    if ticket is None:
        ticket = await line.wait(scope, "call", seconds=PATIENCE, max_waiting=2**31, held=())
    try:
        return await _in_units(routes, scope, operation, *args, **kwargs)
    finally:
        line.leave(ticket)


def _joined(routes: Routes, scope: StateScope) -> Frame | None:
    """Return the frame of the state's turn, if the caller is in one, and on its loop."""
    found = Frame.joined(routes.of(scope.kind).store, scope)
    return found if found is not None and found.turn.loop is asyncio.get_running_loop() else None


async def _in_units(
    routes: Routes, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any
) -> R:
    origin = Origin("call", actor=routes.principal or "")
    for tried in range(TRIES):
        unit = Unit(routes, origin, autosave=True)
        try:
            result = await operation(unit.frame, scope, *args, **kwargs)
            await unit.commit()
        except ConflictError as error:
            if tried == TRIES - 1 or isinstance(error, FailedTestError):
                raise
            await pause(tried)
        else:
            return result
        finally:
            unit.close()
    raise AssertionError  # the last try returned or raised


async def pause(tried: int) -> None:
    """Wait a little, so that contenders don't meet again and again."""
    await asyncio.sleep(random_bits(10) / 2**20 * 2 ** min(tried, 6))


def _line(store: Store) -> TurnLine:
    line = _lines.get(store)
    if line is None:
        line = _lines.setdefault(store, TurnLine(_nothing_to_give_back))
    return line


def _nothing_to_give_back(_lease: Lease) -> None:
    """These tickets bring no lease."""


os.register_at_fork(after_in_child=_lines.clear)
