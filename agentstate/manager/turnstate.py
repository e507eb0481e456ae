"""What a handler gets as ``state``: all states by kind, inside its turn.

Calls on the turn's own state are calls of the turn. Another state joins it at its first touch: it is read as it
is then, checked and committed together with the turn's own, or undone with it. Where the engine can't commit
both as one, the touch raises `UnsupportedError`, before the handler has done anything that couldn't be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.errors import UnsupportedError
from agentstate.manager import lock
from agentstate.manager.accessors import Accessors
from agentstate.manager.bound import BoundState
from agentstate.manager.routes import SHARED, Routes
from agentstate.manager.states import in_tenant
from agentstate.scope import StateScope
from agentstate.state.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.manager.face import AnyScope
    from agentstate.state.turn import Frame

__all__ = ["TurnStates", "state_in"]

R = TypeVar("R")


class _SharedBuffer(Buffer):
    """The buffer of a state that belongs to all principals."""

    __slots__ = ()

    def claim(self, principal: str) -> None:
        """Leave the state to all."""


class TurnStates(Accessors):
    """Calls on any state, in the turn that a frame belongs to.

    Attributes:
        own: the turn's own state.
    """

    def __init__(self, frame: Frame) -> None:
        """Work in a frame."""
        turn = frame.turn
        self._frame = frame
        self.own = turn.scope
        self.routes = Routes(
            turn.store, None, tenant=turn.scope.tenant, principal=turn.principal or None, max_value_bytes=None
        )

    def resolve(self, scope: AnyScope) -> StateScope:
        """Return the address that is meant."""
        return in_tenant(scope, self.routes.tenant)

    async def run(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Run an operation on a frame."""
        if scope.kind in SHARED and scope not in self._frame.buffers:
            await self._join_shared(scope)
        return await lock.in_turn(self._frame, scope, operation, *args, **kwargs)

    async def _join_shared(self, scope: StateScope) -> None:
        """Let a state join that has no owner, whoever the turn was taken for."""
        turn, store = self._frame.turn, self._frame.turn.store
        self._frame.check_open()
        if not store.storage.capabilities.atomic_scopes:
            raise UnsupportedError(
                f"{store.storage.name} can't commit {scope} together with {turn.scope}.",
                scope=scope,
                remedy="Change it with a StateManager, as a commit of its own, or use a backend that can.",
            )
        snapshot = await store.read(scope, store.wants(turn.settings, ""))
        self._frame.adopt(scope, _SharedBuffer(snapshot))


def state_in(frame: Frame) -> BoundState:
    """Return what a handler gets: bound to its own state, to its name as the agent, and to who asks as the user."""
    turn = frame.turn
    scopes = {"global": StateScope.GLOBAL, turn.scope.kind: turn.scope}
    if turn.origin.handler:
        scopes.setdefault("agent", StateScope.agent(turn.origin.handler))
    if turn.principal:
        scopes.setdefault("user", StateScope.user(turn.principal))
    return BoundState(TurnStates(frame), scopes)
