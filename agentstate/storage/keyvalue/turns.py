"""Who holds the turn of a state, as its head document says; one step of the document changes it.

First come, first served. A waiter that hasn't asked for a second has gone and is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentstate.errors import LeaseLostError
from agentstate.storage.protocol import Holder, Lease

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.keyvalue.head import Turn
    from agentstate.storage.protocol import LeaseRequest

__all__ = ["check", "holder_of", "is_next", "leave", "renew", "take"]

GONE_SECONDS: Final = 1.0


def holder_of(turn: Turn, now: float) -> Holder | None:
    """Return who holds the turn now."""
    return Holder(turn.holder, turn.since) if turn.nonce and turn.until > now else None


def is_next(turn: Turn, nonce: int, now: float) -> bool:
    """Return whether the turn is free, and nobody waits before this waiter."""
    if turn.nonce not in (0, nonce) and turn.until > now:
        return False
    for waiting, asked_at in turn.line.items():
        if waiting == str(nonce):
            return True
        if asked_at > now - GONE_SECONDS:
            return False
    return True


def take(turn: Turn, scope: StateScope, request: LeaseRequest, now: float) -> tuple[Lease | None, Holder | None]:
    """Take or renew the turn, or join the line and say who holds it."""
    nonce, seconds, holder = request
    if turn.nonce != nonce:
        if not is_next(turn, nonce, now):
            turn.line[str(nonce)] = now
            return None, Holder(turn.holder, turn.since)
        gone = [one for one, asked_at in turn.line.items() if one == str(nonce) or asked_at <= now - GONE_SECONDS]
        for one in gone:
            del turn.line[one]
        turn.nonce, turn.counter = nonce, turn.counter + 1
        turn.holder, turn.since = holder, now
    turn.until = now + seconds
    return Lease(scope, nonce, turn.counter, turn.until), None


def check(turn: Turn, lease: Lease) -> None:
    """Raise `LeaseLostError` unless this holder is still the last one."""
    if turn.nonce != lease.nonce:
        raise LeaseLostError(
            f"Another holder took the turn of {lease.scope}; nothing was stored.",
            scope=lease.scope,
            remedy="Run the handler again, and keep it shorter than its lease can be renewed.",
        )


def renew(turn: Turn, lease: Lease, until: float) -> bool:
    """Lengthen a lease, if it is still held."""
    if turn.nonce != lease.nonce:
        return False
    turn.until = until
    return True


def leave(turn: Turn, nonce: int) -> bool:
    """Give the turn back, or leave the line; return whether anything changed."""
    waited = turn.line.pop(str(nonce), None) is not None
    if turn.nonce != nonce:
        return waited
    turn.nonce, turn.until = 0, 0.0
    return True
