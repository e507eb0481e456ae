"""Who is next for a scope within this process.

One waiter per process and scope reaches the storage; the others stand in this line, first
come, first served, whichever event loop or thread they are in. A turn that ends may hand
the storage's lease straight to the next in line, at most `HAND_OVERS` times in a row, so
that other processes get theirs.

Every step is atomic under one lock that is never held across an await. A waiter that is
cancelled or gives up leaves the line; if the turn was given to it in that very moment, it
passes the turn on.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentstate.errors import TurnInProgressError, TurnTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Lease

HAND_OVERS = 4


@dataclass(slots=True, eq=False)
class Ticket:
    """The right to be this process's one turn (or waiter at the storage) on a scope.

    Attributes:
        holder: who has it, for error messages.
        lease: the storage's lease when it was handed over together with the ticket.
        handed: how many times in a row the lease was handed over.
        waits_for: the scopes whose turns this turn's handler, or one inside it, waits for.
    """

    scope: StateScope
    holder: str
    lease: Lease | None = None
    handed: int = 0
    waits_for: tuple[StateScope, ...] = ()


@dataclass(slots=True)
class _Line:
    holder: Ticket
    waiting: list[tuple[asyncio.Future[Ticket], str]]


class TurnLine:
    """The lines of one store."""

    def __init__(self, give_back: Callable[[Lease], None]) -> None:
        """Begin with no lines. ``give_back`` takes leases that nobody here wants any more."""
        self._give_back = give_back
        self._lock = threading.Lock()
        self._lines: dict[StateScope, _Line] = {}
        # Tickets on their way to a waiter: it takes its own, or passes it on when it leaves.
        self._served: dict[asyncio.Future[Ticket], Ticket] = {}

    def take(self, scope: StateScope, holder: str) -> Ticket | None:
        """Return the ticket if nobody has it."""
        with self._lock:
            if scope in self._lines:
                return None
            ticket = Ticket(scope, holder)
            self._lines[scope] = _Line(ticket, [])
            return ticket

    async def wait(
        self, scope: StateScope, holder: str, *, seconds: float, max_waiting: int, held: Sequence[Ticket]
    ) -> Ticket:
        """Return the ticket when it is this caller's.

        Args:
            scope: whose turn is wanted.
            holder: who wants it.
            seconds: how long to wait.
            max_waiting: how many may wait.
            held: the tickets of the turns this caller runs in.

        Raises:
            TurnTimeoutError: it took too long.
            TurnInProgressError: too many wait, or the holder waits for the caller's own turn.
        """
        future = self._join(scope, holder, max_waiting, held)
        if not isinstance(future, asyncio.Future):
            return future
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            self._abandon(scope, future)
            raise TurnTimeoutError(
                f"Waited {seconds:g} s for the turn of {scope}, held by {self.holder(scope)}.",
                scope=scope,
                remedy="Raise wait=, shorten the handler, or use turns='read' for calls that only look.",
            ) from None
        except asyncio.CancelledError:
            self._abandon(scope, future)
            raise
        finally:
            for one in held:
                one.waits_for = tuple(other for other in one.waits_for if other != scope)

    def _join(
        self, scope: StateScope, holder: str, max_waiting: int, held: Sequence[Ticket]
    ) -> asyncio.Future[Ticket] | Ticket:
        with self._lock:
            line = self._lines.get(scope)
            if line is None:
                ticket = Ticket(scope, holder)
                self._lines[scope] = _Line(ticket, [])
                return ticket
            if len(line.waiting) >= max_waiting:
                raise TurnInProgressError(
                    f"{len(line.waiting)} callers wait for the turn of {scope} already, held by {line.holder.holder}.",
                    scope=scope,
                    remedy="Try again later, or raise max_waiting=.",
                )
            self._refuse_deadlock(scope, held)
            for one in held:
                one.waits_for += (scope,)
            future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
            line.waiting.append((future, holder))
            return future

    def _refuse_deadlock(self, scope: StateScope, held: Sequence[Ticket]) -> None:
        wanted, seen = [scope], {scope}
        while held and wanted:
            line = self._lines.get(wanted.pop())
            if line is None:
                continue
            if line.holder in held:
                raise TurnInProgressError(
                    f"The turn of {scope} waits for the turn of {line.holder.scope}, which would wait for it: "
                    "a deadlock.",
                    scope=scope,
                    remedy="Take the turns of several scopes in one order, or call without waiting inside a turn.",
                )
            wanted += [one for one in line.holder.waits_for if one not in seen]
            seen.update(wanted)

    def _abandon(self, scope: StateScope, future: asyncio.Future[Ticket]) -> None:
        if future.done() and not future.cancelled() and future.exception() is None:
            self._pass_on(future.result())
            return
        with self._lock:
            served = self._served.pop(future, None)
            line = self._lines.get(scope)
            if line is not None:
                line.waiting = [pair for pair in line.waiting if pair[0] is not future]
        if served is not None:
            self._pass_on(served)

    def next_waits(self, ticket: Ticket) -> bool:
        """Whether the lease should be kept for the next in this process's line."""
        if ticket.handed >= HAND_OVERS:
            return False
        line = self._lines.get(ticket.scope)
        return line is not None and bool(line.waiting)

    def leave(self, ticket: Ticket, lease: Lease | None = None) -> Lease | None:
        """Give the ticket, with the lease if there is one, to the next in line.

        Returns the lease when there is nobody to give it to: then the storage gets it back.
        """
        with self._lock:
            line = self._lines.get(ticket.scope)
            if line is None or line.holder is not ticket:
                return lease
            while line.waiting:
                future, holder = line.waiting.pop(0)
                handed = ticket.handed + 1 if lease is not None else 0
                following = Ticket(ticket.scope, holder, lease, handed)
                # A closed loop has nobody left to serve.
                with suppress(RuntimeError):
                    future.get_loop().call_soon_threadsafe(self._serve, future)
                    self._served[future] = line.holder = following
                    return None
            del self._lines[ticket.scope]
            return lease

    def _serve(self, future: asyncio.Future[Ticket]) -> None:
        with self._lock:
            ticket = self._served.pop(future, None)
        if ticket is None:
            return
        if future.done():
            self._pass_on(ticket)
        else:
            future.set_result(ticket)

    def _pass_on(self, ticket: Ticket) -> None:
        orphan = self.leave(ticket, ticket.lease)
        if orphan is not None:
            self._give_back(orphan)

    def holder(self, scope: StateScope) -> str:
        """Say who has the turn in this process."""
        line = self._lines.get(scope)
        return line.holder.holder if line is not None else "another process"
