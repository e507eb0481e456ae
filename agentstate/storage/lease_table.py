"""Who holds which turn, within one process: what the memory backend has for a lock.

First come, first served. A waiter that neither waits nor asks for a second has gone and is
skipped. Waiters may sit in different event loops and threads; each is woken in its own.
The table has its owner's lock: `wait` takes it, the other calls are made while holding it, so
that a turn is taken together with what is read under it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentstate.errors import LeaseLostError
from agentstate.storage.protocol import Holder, Lease, LeaseRequest

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from agentstate.scope import StateScope

GONE_SECONDS = 1.0


@dataclass(slots=True)
class _Waiter:
    asked_at: float
    future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        future = self.future
        if future is not None:
            # A loop that was closed has nobody left to wake.
            with suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_resolve, future)


@dataclass(slots=True)
class _Turn:
    nonce: int
    counter: int
    holder: str
    since: float
    until: float
    line: dict[int, _Waiter]


class LeaseTable:
    """The turns of one process."""

    def __init__(self, clock: Callable[[], float], lock: threading.Lock) -> None:
        """Begin with nobody holding anything."""
        self._clock = clock
        self._lock = lock
        self._turns: dict[StateScope, _Turn] = {}

    def take(self, scope: StateScope, request: LeaseRequest, now: float) -> tuple[Lease | None, Holder | None]:
        """Take or renew the turn, or join the line and say who holds it."""
        nonce, seconds, holder = request
        turn = self._turns.get(scope)
        if turn is None:
            self._turns[scope] = _Turn(nonce, 1, holder, now, now + seconds, {})
            return Lease(scope, nonce, 1, now + seconds), None
        free = turn.nonce == 0 or (turn.until <= now and turn.nonce != nonce)
        if free and self._is_next(turn, nonce, now):
            turn.line.pop(nonce, None)
            turn.nonce, turn.counter = nonce, turn.counter + 1
            turn.holder, turn.since = holder, now
        elif turn.nonce != nonce:
            turn.line.setdefault(nonce, _Waiter(now)).asked_at = now
            return None, Holder(turn.holder, turn.since)
        turn.until = now + seconds
        return Lease(scope, nonce, turn.counter, turn.until), None

    def _is_next(self, turn: _Turn, nonce: int, now: float) -> bool:
        for waiting, waiter in list(turn.line.items()):
            if waiting == nonce:
                return True
            if waiter.future is not None or waiter.asked_at > now - GONE_SECONDS:
                return False
            del turn.line[waiting]
        return True

    async def wait(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """Return when the turn may be free for this waiter, after ``seconds`` at the latest."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            turn = self._turns.get(scope)
            if turn is None or turn.nonce in (0, nonce) or turn.until <= self._clock():
                return
            waiter = turn.line.setdefault(nonce, _Waiter(self._clock()))
            waiter.future = future
            seconds = min(seconds, max(turn.until - self._clock(), 0.001))
        try:
            await asyncio.wait((future,), timeout=seconds)
        finally:
            with self._lock:
                waiter.future, waiter.asked_at = None, self._clock()

    def check(self, lease: Lease) -> None:
        """Raise `LeaseLostError` unless this holder is still the last one."""
        turn = self._turns.get(lease.scope)
        if turn is None or turn.nonce != lease.nonce:
            raise LeaseLostError(
                f"Another holder took the turn of {lease.scope}; nothing was stored.",
                scope=lease.scope,
                remedy="Run the handler again, and keep it shorter than its lease can be renewed.",
            )

    def renew(self, lease: Lease, seconds: float) -> bool:
        """Lengthen a lease, if it is still held."""
        turn = self._turns.get(lease.scope)
        if turn is None or turn.nonce != lease.nonce:
            return False
        turn.until = self._clock() + seconds
        return True

    def leave(self, scope: StateScope, nonce: int) -> None:
        """Give the turn back, or leave the line."""
        turn = self._turns.get(scope)
        if turn is None:
            return
        if turn.line:
            turn.line.pop(nonce, None)
        if turn.nonce == nonce:
            turn.nonce = 0
        if turn.nonce == 0:
            if turn.line:
                next(iter(turn.line.values())).wake()
            else:
                del self._turns[scope]

    def holder(self, scope: StateScope) -> Holder | None:
        """Return who holds the turn now."""
        turn = self._turns.get(scope)
        if turn is None or turn.nonce == 0 or turn.until <= self._clock():
            return None
        return Holder(turn.holder, turn.since)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
