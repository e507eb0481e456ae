"""Holding a state: its turn, with each call under it committed at once.

The lease is renewed while it is held, and checked in the storage's commit: a holder that has lost it is
told by `LeaseLostError` at its next call, and writes nothing. Calls of others that take no turn don't wait: so
each call under a lock reads anew. Calls of one holder run one at a time.

Cancelled while waiting, the place in line is given up; cancelled while holding, the turn is given back by a
task of the store's own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentstate.errors import ConflictError
from agentstate.manager.patches import FailedTestError
from agentstate.state.buffer import Buffer
from agentstate.state.record import Origin
from agentstate.state.turn import Frame, current, new_id
from agentstate.storage.protocol import Snapshot, Wants

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agentstate.manager.routes import Routes
    from agentstate.scope import StateScope
    from agentstate.state.turn import Turn

R = TypeVar("R")

NOTHING: Final = Wants((), (), (), 0)
"""Reads what a state is, and none of what it holds."""

TRIES: Final = 20
LOCK: Final = "lock"


async def acquire(routes: Routes, scope: StateScope, *, wait: float | None, limit: float, name: str) -> Turn:
    """Wait for, and take, the turn of a state; give it back with ``turn.store.abandon(turn)``."""
    store, settings, _ = routes.of(scope.kind)
    settings = settings._replace(
        commit="immediate", history=0, turn_timeout=limit, wait=settings.wait if wait is None else wait
    )
    principal = routes.owner_of(scope.kind)
    origin = Origin(LOCK, name, f"{new_id():016x}", principal or "")
    return await store.enter(scope, settings, origin, principal=principal, parent=current.get())


@asynccontextmanager
async def hold(
    routes: Routes, scope: StateScope, *, wait: float | None, limit: float, name: str
) -> AsyncGenerator[Turn]:
    """Hold the turn of a state for a block."""
    turn = await acquire(routes, scope, wait=wait, limit=limit, name=name)
    token = current.set(turn.frame)
    try:
        yield turn
    finally:
        current.reset(token)
        await turn.store.abandon(turn)


async def in_turn(
    frame: Frame, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any
) -> R:
    """Run an operation in the turn that the caller is in; under a lock it is committed at once."""
    if not is_lock(frame) or frame is not frame.turn.frame:
        return await _once(frame, scope, operation, *args, **kwargs)
    async with frame.lock:
        for _ in range(TRIES - 1):
            forget(frame, scope)
            if frame.turn.principal is not None:  # whose it is must be known before it changes
                await frame.turn.load(frame.buffers[scope], NOTHING)
            try:
                return await _once(frame, scope, operation, *args, **kwargs)
            except FailedTestError:
                raise
            except ConflictError:
                continue
            finally:
                forget(frame, scope)
        return await _once(frame, scope, operation, *args, **kwargs)


def is_lock(frame: Frame) -> bool:
    """Return whether a frame belongs to a lock."""
    return frame.turn.origin.operation == LOCK


def forget(frame: Frame, scope: StateScope) -> None:
    """Forget what was read and changed of a state: the next call begins over the state as it is then."""
    frame.check_open()
    frame.turn.lazy = True
    frame.buffers[scope] = buffer = Buffer(Snapshot(scope=scope, now=0.0, complete=False))
    if scope == frame.turn.scope:
        frame.own = buffer


async def _once(
    frame: Frame, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any
) -> R:
    result = await operation(frame, scope, *args, **kwargs)
    if frame.turn.settings.commit == "immediate" and frame is frame.turn.frame:
        await frame.commit()
    return result
