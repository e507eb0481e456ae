"""What can be done to one scope: each a step on its image, and what belongs before and after.

A write's `make` checks and applies its step and returns the operation to log, or raises and has
changed nothing. `finish` runs once the operation is durable.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import orjson

from agentstate.errors import LeaseLostError
from agentstate.storage.file.codec import dump, encode_once, encode_part
from agentstate.storage.protocol import Committed, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.scope import StateScope
    from agentstate.storage.file.held import Held
    from agentstate.storage.file.lines import Json
    from agentstate.storage.image import Image
    from agentstate.storage.oslock import MachineLocks
    from agentstate.storage.protocol import Lease, LeaseRequest, OnceRecord, Part, Stamp

__all__ = ["Commit", "Drop", "Fail", "Prolong", "Push", "Sweep", "SweptScope", "Write", "pushed_expiry"]

QUICK_CHANGES: Final = 32
QUICK_BYTES: Final = 64 * 1024

T = TypeVar("T")


class Write(Generic[T]):
    """One change of one scope. ``commit_id`` is what to ask for when its outcome is unknown; 0 for no commit."""

    commit_id: int = 0

    @property
    def frees(self) -> bool:
        """Whether it makes room, so that on a full disk the reserve may be spent on it."""
        return False

    @property
    def quick(self) -> bool:
        """Whether `make` takes microseconds, so that it may be called on an event loop."""
        return True

    def make(self, held: Held, now: float) -> tuple[Json | None, T]:
        """Check and apply; return the operation to log (``None``: nothing to store) and the result."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what comes after the change is durable."""

    def fail(self) -> None:
        """Do what comes after the change was refused."""


@dataclass(slots=True, kw_only=True)
class Commit(Write[Committed]):
    """One part of a commit, which is all of it: scopes here are atomic one by one.

    Attributes:
        address: of the turn that ``lease`` is for.
    """

    part: Part
    address: str
    commit_id: int
    locks: MachineLocks
    lease: Lease | None
    release: bool
    once: OnceRecord | None

    @property
    def frees(self) -> bool:
        """See `Write.frees`."""
        part = self.part
        return not (part.puts or part.appends or part.edits or part.increments)

    @property
    def quick(self) -> bool:
        """See `Write.quick`."""
        part = self.part
        sizes = [len(one.value) for one in part.puts] + [len(one.value) for one in part.appends]
        return len(sizes) <= QUICK_CHANGES and sum(sizes) <= QUICK_BYTES and not (part.edits or part.cuts or part.trims)

    def make(self, held: Held, now: float) -> tuple[Json | None, Committed]:
        """See `Write.make`."""
        part, image, lease, once = self.part, held.image, self.lease, self.once
        if lease is not None and not self.locks.holds(self.address, lease.nonce):
            raise LeaseLostError(
                f"The turn of {lease.scope} was given up or taken over; nothing was stored.",
                scope=lease.scope,
                remedy="Run the handler again.",
            )
        alive = image.alive(now) or (image.stamp is not None and self._keeps_alive(image))
        change = orjson.Fragment(dump(encode_part(part), "The change", part.scope))
        op: Json = {"op": "commit", "at": now, "commit": f"{self.commit_id:016x}", "alive": alive, "part": change}
        if once is not None:
            op["once"] = orjson.Fragment(dump(encode_once(once), "The key", part.scope))
        if part.clear or not alive:
            op["lineage"] = secrets.token_hex(16)
        image.validate(part, now, alive=alive, once=once)
        if image.stamp is None and part.clear and not (part.puts or part.increments or part.appends):
            return None, Committed(None, 0, {}, {})
        return op, held.commit(part, op, commit_id=self.commit_id, at=now, alive=alive, once=once)

    def _keeps_alive(self, image: Image) -> bool:
        """Whether this is a commit of the turn in which the state expired."""
        return self.lease is not None and self.lease.scope == self.part.scope and self.part.birth == image.birth

    def finish(self) -> None:
        """Give the turn back."""
        if self.lease is not None and self.release:
            self.locks.leave(self.address, self.lease.nonce)


@dataclass(slots=True)
class Push(Write[Snapshot]):
    """Moves a state's expiry and reads it."""

    touch: float | None
    lease: LeaseRequest | None
    view: Callable[[Held, float], Snapshot]

    def make(self, held: Held, now: float) -> tuple[Json | None, Snapshot]:
        """See `Write.make`."""
        to = pushed_expiry(held, now, self.lease, self.touch)
        op = None if to is None else held.expire(to)
        return op, self.view(held, now)


@dataclass(slots=True)
class Prolong(Write[None]):
    """Lets a state live until ``now + seconds`` at least, for the one who holds its turn."""

    seconds: float

    def make(self, held: Held, now: float) -> tuple[Json | None, None]:
        """See `Write.make`."""
        return (held.expire(now + self.seconds) if self.needed(held, now) else None), None

    def needed(self, held: Held, now: float) -> bool:
        """Return whether it would expire before."""
        image = held.image
        return image.stamp is not None and image.expires_at is not None and image.expires_at < now + self.seconds


@dataclass(slots=True)
class Fail(Write[None]):
    """Keeps what a failed turn left."""

    data: bytes

    def make(self, held: Held, now: float) -> tuple[Json | None, None]:
        """See `Write.make`."""
        return held.fail(self.data, now), None


@dataclass(slots=True)
class Drop(Write[bool]):
    """Removes a state that nobody holds the turn of."""

    scope: StateScope
    stamp: Stamp | None
    locks: MachineLocks
    nonce: int = field(default_factory=lambda: secrets.randbits(62) + 1)

    @property
    def frees(self) -> bool:
        """See `Write.frees`."""
        return True

    def make(self, held: Held, now: float) -> tuple[Json | None, bool]:
        """See `Write.make`."""
        image = held.image
        if not image.alive(now) or (self.stamp is not None and image.stamp != self.stamp):
            return None, False
        if not self.locks.try_take(self.scope.text, self.nonce, "drop"):
            return None, False
        return held.drop(now), True

    def finish(self) -> None:
        """Give the turn back."""
        self.locks.leave(self.scope.text, self.nonce)

    fail = finish


@dataclass(slots=True)
class SweptScope:
    """What a sweep removed of one scope."""

    dropped: bool = False
    entries: int = 0
    items: int = 0


@dataclass(slots=True)
class Sweep(Write[SweptScope]):
    """Removes what has expired of a state. The caller holds its turn."""

    limit: int

    @property
    def frees(self) -> bool:
        """See `Write.frees`."""
        return True

    def make(self, held: Held, now: float) -> tuple[Json | None, SweptScope]:
        """See `Write.make`."""
        image = held.image
        if image.stamp is None:
            return None, SweptScope()
        if not image.alive(now):
            return held.drop(now), SweptScope(dropped=True)
        op, entries, items = held.sweep(now, self.limit)
        return op, SweptScope(entries=entries, items=items)


def pushed_expiry(held: Held, now: float, lease: LeaseRequest | None, touch: float | None) -> float | None:
    """Return to when a read moves the expiry, ``None`` when it doesn't."""
    before = held.image.expires_at
    if before is None or not held.image.alive(now):
        return None
    to = now + touch if touch is not None and before - now < touch / 2 else before
    if lease is not None:
        to = max(to, now + lease.seconds)
    return to if to != before else None
