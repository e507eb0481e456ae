"""Taking a turn straight from a storage, as the core does, for tests and worker processes."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from agentstate.storage.protocol import LeaseRequest, Wants

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Snapshot, Storage

__all__ = ["EVERYTHING", "new_id", "take_turn"]

EVERYTHING = Wants(inline_bytes=2**40)


def new_id() -> int:
    """Return a random number that serves as commit id or nonce."""
    return secrets.randbits(62) + 1


async def take_turn(
    storage: Storage,
    scope: StateScope,
    holder: str,
    *,
    seconds: float = 30.0,
    patience: float = 30.0,
    wants: Wants = EVERYTHING,
) -> Snapshot:
    """Wait in line for the turn and return what was read with it; ``lease`` is set.

    Raises:
        TimeoutError: it couldn't be had in ``patience`` (real) seconds.
    """
    request = LeaseRequest(new_id(), seconds, holder)
    deadline = time.monotonic() + patience
    while True:
        snapshot = await storage.read(scope, wants, lease=request)
        if snapshot.lease is not None:
            return snapshot
        left = deadline - time.monotonic()
        if left <= 0:
            await storage.leave(scope, request.nonce)
            raise TimeoutError(f"{holder} waited {patience} s for the turn of {scope}, held by {snapshot.holder}.")
        await storage.wait_turn(scope, request.nonce, min(left, 1.0))
