"""Any byte store with get, set, delete and list_keys as a storage.

A state is a head document, which holds all of it but what long logs have sealed away in documents
of their own (`agentstate.storage.keyvalue.segments`). What is atomic: a commit of one state, since
it is one write of its head; commits of several states are refused. Who may run at once: with
``compare_and_swap`` any processes, and turns are leases in the heads; without it the tasks, threads
and loops of this process only. A forked child must make a storage of its own. On cancellation, what
was begun is carried through by a task of the storage's own. Waiting for a turn is polling, every 5
to 50 ms.

What it costs: a commit reads and writes the head once, notes what the feed is to tell (one write,
one removal) and adds to the newest document of the feed. So keep the entries of a state small: they
all lie in its head. Listing reads the heads of all states that the key can't rule out, and a sweep
reads all.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from agentstate.errors import ConflictError, StateError, UnsupportedError
from agentstate.storage.keyvalue import listing, turns
from agentstate.storage.keyvalue.lookups import Lookups
from agentstate.storage.keyvalue.store import Done
from agentstate.storage.protocol import (
    FAILURE_COUNT,
    FAILURE_SECONDS,
    Capabilities,
    Committed,
    Lease,
    LeaseRequest,
    OnceRecord,
    Part,
    Snapshot,
    Stamp,
    Swept,
    Wants,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.image import Image
    from agentstate.storage.keyvalue.bytestore import ByteStore
    from agentstate.storage.keyvalue.head import Head
    from agentstate.storage.keyvalue.segments import Segments

__all__ = ["KeyValueStorage"]

ASKED_AGAIN: Final = 0.3
POLL: Final = (0.005, 0.05)


class KeyValueStorage(Lookups):
    """Keeps states in a byte store of yours."""

    name = "keyvalue"

    def __init__(
        self,
        kv: ByteStore,
        *,
        prefix: str = "agentstate/",
        durability: Literal["none", "process", "power"] = "process",
        quick: bool = False,
        max_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use a byte store, which stays its maker's to close.

        Args:
            kv: has ``get``, ``set``, ``delete``, ``list_keys``, plain or async; ``compare_and_swap``
                makes it safe between processes.
            prefix: begins every key.
            durability: what a value survives that ``set`` has returned for.
            quick: plain methods return at once and are called on the event loop, not on threads.
            max_bytes: the largest value that ``kv`` takes, if it has a limit.
            clock: seconds since the epoch.
        """
        super().__init__(kv, prefix=prefix, quick=quick, max_bytes=max_bytes, clock=clock)
        self.location = f"keyvalue:{type(kv).__name__}/{prefix}"
        swaps = self._access.swaps
        self.capabilities = Capabilities(
            durability=durability,
            shared=swaps,
            leases="network" if swaps else "process",
            atomic_scopes=False,
            partitions=1,
        )
        self._held: dict[int, StateScope] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Do nothing: the byte store is open."""
        self._check_open()

    async def close(self) -> None:
        """Give back turns, and use the byte store no more."""
        if self._closed or os.getpid() != self._process:
            return
        for nonce, scope in list(self._held.items()):
            await self.leave(scope, nonce)
        self._closed = True
        self._access.close()

    async def ping(self) -> None:
        """Return when the byte store answers."""
        self._check_open()
        await self._access.get(f"{self._prefix}ping")

    # -- turns -----------------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`. One read of the head; taking the turn or renewing a lifetime writes it, too."""

        async def enter(head: Head, segments: Segments) -> Done:
            now, turn, held = self._clock(), head.turn, None
            changed = False
            if lease is not None:
                asked = turn.line.get(str(lease.nonce), 0.0)
                held, holder = turns.take(turn, scope, lease, now)
                if held is None:
                    return Done(Snapshot(scope=scope, now=now, holder=holder), changed=asked < now - ASKED_AGAIN)
                changed = True
            changed = _push_expiry(head.image, now, lease, touch) or changed
            found = await self._snapshot(head, segments, wants, now, once)
            found.lease = held
            return Done(found, changed=changed)

        async def look(head: Head, segments: Segments) -> Snapshot:
            return await self._snapshot(head, segments, wants, self._clock(), once)

        if lease is None and touch is None:
            return await self.look(scope, look)
        self._loop = asyncio.get_running_loop()
        if lease is not None:
            self._held[lease.nonce] = scope
        found: Snapshot = await self.change(scope, enter)
        return found

    async def _snapshot(self, head: Head, segments: Segments, wants: Wants, now: float, once: str | None) -> Snapshot:
        image = head.image
        if not image.alive(now):
            return Snapshot(scope=image.scope, now=now)
        for name, count in wants.tails:
            if name in image.logs and count > 0:
                log = image.logs[name]
                await segments.fill(name, log.head + 1 - count, log.head + 1)
        found = image.snapshot(wants, now, None)
        found.once = await segments.once(once, now) if once is not None else None
        return found

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`. It polls, and keeps its place in the line."""
        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + seconds, POLL[0]
        while True:
            head, _ = await self.load(scope)
            now = self._clock()
            if turns.is_next(head.turn, nonce, now) or loop.time() >= deadline:
                return
            if head.turn.line.get(str(nonce), now) < now - ASKED_AGAIN:
                await self.change(scope, partial(_ask_again, nonce=nonce, now=now))
            await asyncio.sleep(min(delay, max(deadline - loop.time(), 0)))
            delay = min(delay * 1.5, POLL[1])

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`. One scope only. Cancelled, it is carried through."""
        if len(parts) != 1:
            raise UnsupportedError(
                f"A key-value storage commits one state at a time, not {len(parts)}.",
                remedy="Use the sqlite backend for commits of several states.",
            )
        part = parts[0]

        async def apply(head: Head, segments: Segments) -> Done:
            now = self._clock()
            if lease is not None:
                turns.check(head.turn, lease)
            done = await self._apply(head, segments, part, commit_id, now, lease, once)
            if release and lease is not None:
                done = done._replace(changed=turns.leave(head.turn, lease.nonce) or done.changed)
            return done

        committed: Committed = await self.change(part.scope, apply, commit_id=commit_id)
        if release and lease is not None:
            self._held.pop(lease.nonce, None)
        return (committed,)

    async def _apply(
        self,
        head: Head,
        segments: Segments,
        part: Part,
        commit_id: int,
        now: float,
        lease: Lease | None,
        once: OnceRecord | None,
    ) -> Done:
        image = head.image
        own = lease is not None and lease.scope == part.scope and part.birth == image.birth
        alive = image.alive(now) or (own and image.stamp is not None)
        fresh = part.clear or not alive
        if not fresh:
            await segments.prepare(part)
        image.validate(part, now, alive=alive)
        if once is not None and alive and await segments.once(once.key, now) is not None:
            raise ConflictError(f"{once.key!r} is done already in {part.scope}.", scope=part.scope, what="once")
        if part.checks_only:
            return Done(Committed(image.stamp, image.birth, {}, {}, image.expires_at), changed=False)
        birth = image.birth
        done = image.apply(part, commit_id, now, alive=alive, once=once)
        head.once_count += once is not None
        await segments.settle(part, birth)
        head.gone_at = None if done.stamp is not None else now
        if done.stamp is None:
            head.failures.clear()
        return Done(done, told=(done.stamp, now) if done.stamp is not None or alive else None)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`. Cancelled, the turn is given back nevertheless."""

        async def go(head: Head, segments: Segments) -> Done:
            del segments
            now = self._clock()
            left = turns.leave(head.turn, nonce)
            if failure is not None:
                kept = [one for one in head.failures if one[0] > now - FAILURE_SECONDS]
                head.failures = [*kept, (now, failure)][-FAILURE_COUNT:]
            return Done(None, changed=left or failure is not None)

        if not self._closed:
            await self.change(scope, go)
        self._held.pop(nonce, None)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`. An async byte store is asked on the loop that took the turn, while that runs."""
        if self._closed:
            return [False] * len(leases)
        loop = self._loop
        if self._access.is_async and loop is not None and loop.is_running() and not _is_running_here(loop):
            return asyncio.run_coroutine_threadsafe(self._renew(leases, seconds), loop).result(seconds)
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.extend(asyncio.run(self._renew(leases, seconds))))
        thread.start()
        thread.join()
        return found or [False] * len(leases)

    async def _renew(self, leases: Sequence[Lease], seconds: float) -> list[bool]:
        return [
            await self.change(lease.scope, partial(self._lengthen, lease=lease, seconds=seconds)) for lease in leases
        ]

    async def _lengthen(self, head: Head, segments: Segments, *, lease: Lease, seconds: float) -> Done:
        del segments
        until, image = self._clock() + seconds, head.image
        held = turns.renew(head.turn, lease, until)
        if held and image.expires_at is not None:
            image.expires_at = max(image.expires_at, until)
        return Done(held, changed=held)

    # -- removing --------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""

        async def remove(head: Head, segments: Segments) -> Done:
            now, image = self._clock(), head.image
            if turns.holder_of(head.turn, now) is not None or not image.alive(now):
                return Done(result=False, changed=False)
            if stamp is not None and image.stamp != stamp:
                return Done(result=False, changed=False)
            await self._clear(head, segments, now)
            return Done(result=True, told=(None, now))

        dropped: bool = await self.change(scope, remove)
        return dropped

    async def _clear(self, head: Head, segments: Segments, now: float) -> None:
        birth = head.image.birth
        head.image.apply(Part(scope=head.image.scope, clear=True), 0, now, alive=True, once=None)
        head.failures.clear()
        head.gone_at = now
        await segments.settle(None, birth)

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`. It reads all heads. A removed state leaves its head, nearly empty."""
        self._check_open()
        gone: list[StateScope] = []
        entries = items = 0
        for scope, _ in await listing.all_scopes(self._access, self._prefix):
            left = limit - len(gone) - entries - items
            if left <= 0:
                return Swept(tuple(gone), entries, items, done=False)
            try:
                removed, some, more = await self.change(scope, partial(self._sweep, limit=left))
            except StateError:
                continue  # a damaged state stays as it is: whoever reads it is told
            gone, entries, items = [*gone, *([scope] if removed else [])], entries + some, items + more
        return Swept(tuple(gone), entries, items, done=len(gone) + entries + items < limit)

    async def _sweep(self, head: Head, segments: Segments, *, limit: int) -> Done:
        now, image = self._clock(), head.image
        if image.stamp is None or turns.holder_of(head.turn, now) is not None:
            return Done((False, 0, 0), changed=False)
        if not image.alive(now):
            await self._clear(head, segments, now)
            return Done((True, 0, 0), told=(None, now))
        for name in image.logs:
            for number, segment in enumerate(head.segments(name)):
                if (segment.due is not None and segment.due <= now) or (segment.spent and not number):
                    await segments.fill(name, segment.first, segment.last + 1)
        before = [log.first for log in image.logs.values()]
        entries, items = image.sweep(now, limit)
        if not entries and not items and before == [log.first for log in image.logs.values()]:
            return Done((False, 0, 0), changed=False)
        await segments.rewrite_due(now)
        await segments.settle(None, image.birth)
        return Done((False, entries, items))


async def _ask_again(head: Head, segments: Segments, *, nonce: int, now: float) -> Done:
    del segments
    waits = str(nonce) in head.turn.line
    if waits:
        head.turn.line[str(nonce)] = now
    return Done(None, changed=waits)


def _push_expiry(image: Image, now: float, lease: LeaseRequest | None, touch: float | None) -> bool:
    """Renew a sliding lifetime of which less than half is left; let no state expire under a turn."""
    before = image.expires_at
    if before is None or not image.alive(now):
        return False
    until = now + touch if touch is not None and before - now < touch / 2 else before
    image.expires_at = max(until, now + lease.seconds) if lease is not None else until
    return image.expires_at != before


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
