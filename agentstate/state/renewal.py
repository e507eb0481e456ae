"""Keeps leases alive while handlers run.

One daemon thread per process renews the leases of all stores, each through its storage's
own blocking connection, so that a handler that blocks its event loop doesn't lose its turn.
Where a turn is a lock of the machine, renewing keeps a state of a short life alive meanwhile.
A turn past its ``turn_timeout`` is not renewed. The thread starts with the first lease and
sleeps while there are none; a forked child starts its own.

It also notices loops that don't answer, and names the handler that blocks one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentstate.observability import warning

if TYPE_CHECKING:
    import asyncio

    from agentstate.storage.protocol import Lease, Storage

LEASE_SECONDS = 30.0
RENEW_SECONDS = 10.0
BLOCKED_SECONDS = 5.0
TICK_SECONDS = 2.5


@dataclass(slots=True, eq=False)
class Renewed:
    """One lease under renewal. ``lost`` is set when the storage says so."""

    storage: Storage
    lease: Lease
    handler: str
    loop: asyncio.AbstractEventLoop
    deadline: float
    due: float
    asked_at: float = 0.0
    answered: bool = True
    warned: bool = False
    lost: bool = False

    def answer(self) -> None:
        """Note, on the loop, that it still runs."""
        self.answered = True


class Renewer:
    """The leases of this process, and the thread that renews them."""

    def __init__(self) -> None:
        """Begin without a thread."""
        self._lock = threading.Lock()
        self._held: set[Renewed] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(
        self, storage: Storage, lease: Lease, handler: str, loop: asyncio.AbstractEventLoop, deadline: float
    ) -> Renewed:
        """Renew a lease until `discard`, or until ``deadline`` (`time.monotonic`)."""
        held = Renewed(storage, lease, handler, loop, deadline, time.monotonic() + RENEW_SECONDS)
        with self._lock:
            self._held.add(held)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentstate-renewal", daemon=True)
                self._thread.start()
        if len(self._held) == 1 and not self._wake.is_set():
            self._wake.set()
        return held

    def discard(self, held: Renewed) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._held.discard(held)

    def _run(self) -> None:
        while True:
            if not self._held:
                self._wake.clear()
                if not self._held:
                    self._wake.wait()
            time.sleep(TICK_SECONDS)
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """Renew what is due, and look for loops that are blocked."""
        with self._lock:
            held = list(self._held)
        due: dict[Storage, list[Renewed]] = defaultdict(list)
        for one in held:
            self._watch_loop(one, now)
            if one.due <= now < one.deadline and not one.lost:
                due[one.storage].append(one)
        for storage, leases in due.items():
            self._renew(storage, leases, now)

    def _renew(self, storage: Storage, leases: list[Renewed], now: float) -> None:
        try:
            kept = storage.renew([one.lease for one in leases], LEASE_SECONDS)
        except Exception:  # noqa: BLE001 - the thread outlives a server that is down; the next tick tries again
            warning("renewing leases failed", leases=len(leases), storage=storage.location, exc_info=True)
            return
        for one, still_held in zip(leases, kept, strict=True):
            one.due, one.lost = now + RENEW_SECONDS, not still_held
            if one.lost:
                warning("a turn was lost: another holder took it", handler=one.handler, scope=str(one.lease.scope))

    def _watch_loop(self, one: Renewed, now: float) -> None:
        if not one.answered:
            if now - one.asked_at > BLOCKED_SECONDS and not one.warned:
                one.warned = True
                warning("a handler blocks its event loop", handler=one.handler, seconds=BLOCKED_SECONDS)
            return
        one.asked_at, one.answered = now, False
        try:
            one.loop.call_soon_threadsafe(one.answer)
        except RuntimeError:  # the loop was closed: nobody will end this turn
            self.discard(one)


renewer = Renewer()


def _forget_in_child() -> None:
    renewer.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget_in_child)
