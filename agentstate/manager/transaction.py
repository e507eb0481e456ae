"""Several changes of several states as one: all or nothing, checked against everything that was read.

A transaction holds nothing while it runs and waits for nobody; at its end one commit stores what it
changed, if everything it read is still so, else `ConflictError` is raised and nothing is stored. It is not
tried again by itself: only the caller knows whether its block may run twice.

Only what is touched is read, copied and written: a key of a large state, not the state. Cancelled before
its commit was sent, nothing is stored; after that the commit is carried through, and the cancellation then
goes on.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agentstate.errors import TurnClosedError
from agentstate.manager import outbox
from agentstate.manager.accessors import Accessors
from agentstate.manager.unit import Unit
from agentstate.state.record import Origin
from agentstate.state.turn import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

    from agentstate.manager.face import AnyScope, Operations
    from agentstate.manager.unit import UnitFrame
    from agentstate.scope import StateScope

__all__ = ["Transaction"]

R = TypeVar("R")


class Transaction(Accessors):
    """What ``async with manager.transaction() as tx`` gives: every call of the manager, on the transaction's own view.

    It reads its own writes; nobody else sees them before the commit.
    """

    def __init__(self, owner: Operations, *, reason: str = "", frame: UnitFrame | None = None) -> None:
        """See `StateManager.transaction`."""
        self._owner = owner
        self.routes = owner.routes
        self._reason = reason
        self._frame = frame

    def resolve(self, scope: AnyScope) -> StateScope:
        """Return the address that is meant."""
        return self._owner.resolve(scope)

    async def run(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Run an operation on a frame."""
        return await operation(self._open_frame(), scope, *args, **kwargs)

    def _open_frame(self) -> UnitFrame:
        if self._frame is None:
            raise TurnClosedError(
                "The transaction isn't open.", remedy="Use it in its block: async with manager.transaction() as tx."
            )
        return self._frame

    async def __aenter__(self) -> Self:
        """Begin; nothing is read or held yet."""
        if self._frame is not None:
            raise TurnClosedError("The transaction was begun already.", remedy="Make another one.")
        origin = Origin("transaction", turn=f"{new_id():016x}", actor=self.routes.principal or "", reason=self._reason)
        self._frame = Unit(self.routes, origin).root
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or roll back when the block raised.

        Raises:
            ConflictError: what it read has changed; nothing was stored.
        """
        unit = self._open_frame().turn
        if kind is not None:
            unit.close()
            return
        await unit.commit()
        if unit.sent:
            await outbox.deliver_now(self.routes, unit.own_scope())

    def outbox(self, scope: AnyScope) -> outbox.Outbox:
        """Return blind changes of a state that can't be in this transaction's commit.

        They are sent with the commit and applied right after it, exactly once; what a crash left is applied by
        the next `StateManager.sweep`. Where the state can be in the commit, they are a part of it. The states
        that the transaction is about must have been touched before.
        """
        return outbox.Outbox(self._open_frame(), self.routes, self.resolve(scope))

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[Transaction]:
        """Open a part of this transaction that is kept when its block succeeds, and undone when it raises.

        The exception goes on: catch it outside the block to go on without that part. Use the transaction that
        the block gets, and one savepoint at a time.
        """
        frame = self._open_frame()
        async with frame.lock:
            inner = frame.savepoint()
            try:
                yield Transaction(self._owner, frame=inner)
                await frame.merge(inner)
            except BaseException:
                if frame.open:
                    frame.keep_reads(inner)
                raise
            finally:
                inner.open = False
