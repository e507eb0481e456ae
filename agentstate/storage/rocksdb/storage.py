"""The RocksDB backend: one directory, one process, and the quickest commits that last.

Which thread does what. A read takes 4 to 20 µs out of the engine's caches, and a write that isn't
synced 7 to 10, while a hop to a thread and back costs 65; and the driver keeps the interpreter's
lock while it reads and writes, so that a thread would not even free the event loop. Both are made
where they are asked for, under one lock that nobody holds while waiting. What takes long leaves the loop:

* the fsync of ``durability="full"``: a commit is written, and then a thread syncs the log, which
  the driver does without the interpreter's lock. One sync serves all who wait. (A write that syncs
  by itself would keep that lock for the whole fsync, in whichever thread.)
* a write that the engine would hold up, because its compactions are behind: it is refused instead
  (``no_slowdown``), and the commit is checked and made anew every 5 ms until it is taken;
* pages of states, long tails and long pages of a log: on a thread and over the rows of one moment,
  so that others come to their turn in between.

What is left on the loop is a block that is in no cache: one read of the disk.

What is atomic: a commit is one batch, whatever scopes it holds, with its journal record, indexes
and feed. A read sees the end of one commit; with ``durability="full"`` it returns what is synced,
and waits for the sync when it isn't yet. Pushing an expiry on is written, but not waited for.

Who may run at once: any tasks, threads and event loops of one process. The engine locks its
directory: a second process, or a second storage, gets `StoreInUseError`. A forked child must make
a storage of its own, in another directory, and end through ``os._exit``, as those of multiprocessing
do: the engine's own exit handlers look for threads that a fork doesn't have. On cancellation, a
commit that was written stays, with its turn given back; a read gives back the turn that it had just taken.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, Self

from agentstate.errors import CommitUnknownError, StorageError, UnsupportedError
from agentstate.storage.protocol import (
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
from agentstate.storage.rocksdb import heads, reading
from agentstate.storage.rocksdb.commit import Change
from agentstate.storage.rocksdb.errors import StalledError
from agentstate.storage.rocksdb.keys import EXPIRY
from agentstate.storage.rocksdb.lookups import Lookups
from agentstate.storage.rocksdb.options import RocksdbOptions
from agentstate.storage.rocksdb.store import INLINE_ROWS, STALL_SECONDS
from agentstate.storage.rocksdb.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.engine import Engine
    from agentstate.storage.rocksdb.rows import State

__all__ = ["RocksdbOptions", "RocksdbStorage"]

SWEPT_AT_ONCE: Final = 16


class RocksdbStorage(Lookups):
    """Keeps states in a RocksDB directory, for one process."""

    Options: ClassVar[type[RocksdbOptions]] = RocksdbOptions
    name = "rocksdb"

    @classmethod
    def from_options(cls, options: RocksdbOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(options, clock=clock or time.time)

    @property
    def capabilities(self) -> Capabilities:
        """For one process; durable as configured."""
        return Capabilities(
            durability="power" if self._durable else "process",
            shared=False,
            leases="process",
            atomic_scopes=True,
            partitions=1,
            taskless=True,
        )

    # -- turns ---------------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`. Cancelled after it took the turn, it gives it back."""
        engine = self._engine
        if engine is None or engine.forked or self._closed:
            engine = await self._open()
        took = False
        try:
            while True:
                try:
                    with engine.lock:
                        took = took or (lease is not None and self._is_free(scope))
                        snapshot, later = self._read(engine, scope, wants, lease, once, touch)
                        unsynced = scope in engine.unsynced
                    break
                except StalledError:
                    await asyncio.sleep(STALL_SECONDS)
            if later is not None:
                await self._workers.run(later)
            if unsynced:
                await engine.synced()
        except BaseException:
            if took and lease is not None:
                with engine.lock:
                    self._leases.leave(scope, lease.nonce)
            raise
        return snapshot

    def _read(
        self,
        engine: Engine,
        scope: StateScope,
        wants: Wants,
        lease: LeaseRequest | None,
        once: str | None,
        touch: float | None,
    ) -> tuple[Snapshot, Callable[[], None] | None]:
        """Return the snapshot, and what still adds to it on a thread, if anything does."""
        now, held = self._clock(), None
        if lease is not None:
            held, holder = self._leases.take(scope, lease, now)
            if held is None:
                return Snapshot(scope=scope, now=now, holder=holder), None
        state = engine.head(scope)
        if state is None or not state.alive(now):
            return Snapshot(scope=scope, now=now, lease=held), None
        if state.expires is not None and (lease is not None or touch is not None):
            state = self._push_expiry(engine, state, now, lease, touch)
        snapshot = reading.snapshot(engine, state, wants, now, once)
        snapshot.lease = held
        return snapshot, self._add_tails(engine, state, wants, snapshot)

    def _push_expiry(
        self, engine: Engine, state: State, now: float, lease: LeaseRequest | None, touch: float | None
    ) -> State:
        """Renew a sliding lifetime of which less than half is left; let no state expire under a turn."""
        before = state.expires
        assert before is not None
        until = now + touch if touch is not None and before - now < touch / 2 else before
        if lease is not None:
            until = max(until, now + lease.seconds)
        return state if until == before else _prolong(engine, state, until)

    def _add_tails(self, engine: Engine, state: State, wants: Wants, snapshot: Snapshot) -> Callable[[], None] | None:
        """Add the wanted items of the logs; when they are many, return what adds them on a thread."""
        wanted = reading.tails_of(state, wants)
        if not wanted:
            return None
        if sum(end - start for start, end in wanted.values()) <= INLINE_ROWS:
            for name, (start, end) in wanted.items():
                log = state.logs[name]
                snapshot.logs[name] = log.view(reading.few_items(engine, state, log, start, end))
            return None
        rows = {name: reading.items_between(engine, state, state.logs[name], *at) for name, at in wanted.items()}

        def add() -> None:
            for name, items in rows.items():
                snapshot.logs[name] = state.logs[name].view(tuple([item for _, item, _ in items]))

        return add

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        await self._open()
        await self._leases.wait(scope, nonce, seconds)

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`. The turn is given back with the write: who takes it next waits for the sync."""
        if len(parts) > 1 and len({part.scope for part in parts}) != len(parts):
            raise UnsupportedError("A commit holds one part per scope.")
        engine = self._engine
        if engine is None or engine.forked or self._closed:
            engine = await self._open()
        while True:
            try:
                with engine.lock:
                    done = self._commit(engine, parts, commit_id, lease, once)
                    if release and lease is not None:
                        self._leases.leave(lease.scope, lease.nonce)
                break
            except StalledError:
                await asyncio.sleep(STALL_SECONDS)
        if self._durable:
            try:
                await engine.synced()
            except StorageError as error:
                raise CommitUnknownError(
                    f"A commit of {parts[0].scope} was written, but the disk failed before it was synced.",
                    commit_id=commit_id,
                    scope=parts[0].scope,
                    remedy="Check the disk, open the store again, and ask for the outcome.",
                ) from error
        return done

    def _commit(
        self, engine: Engine, parts: Sequence[Part], commit_id: int, lease: Lease | None, once: OnceRecord | None
    ) -> tuple[Committed, ...]:
        if lease is not None:
            self._leases.check(lease)
        now, batch = self._clock(), engine.batch()
        changes = [Change(engine, part, now=now, lease=lease) for part in parts]
        for number, change in enumerate(changes):
            change.check(None if number else once)
        done = [change.write(batch, commit_id, None if number else once) for number, change in enumerate(changes)]
        known = {change.scope: change.head for change in changes if change.changes}
        if known:
            engine.write(batch, known, awaited=self._durable)
        return tuple(done)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`. Without a failure to keep it never waits."""

        def keep(engine: Engine) -> None:
            if failure is not None:
                batch = engine.batch()
                heads.add_failure(engine, batch, scope, failure, self._clock())
                engine.write(batch, {}, awaited=False)
            self._leases.leave(scope, nonce)

        engine = self._engine
        if failure is None and (engine is None or engine.forked):
            return
        await self._write(keep)
        if failure is not None and self._durable:
            await (await self._open()).synced()

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`. It blocks where the engine does."""
        engine = self._engine
        if engine is None or engine.forked:
            return [False] * len(leases)
        return [self._renew(engine, lease, seconds) for lease in leases]

    def _renew(self, engine: Engine, lease: Lease, seconds: float) -> bool:
        while True:
            try:
                with engine.lock:
                    held = self._leases.renew(lease, seconds)
                    state, until = engine.head(lease.scope) if held else None, self._clock() + seconds
                    if state is not None and state.expires is not None and state.expires < until:
                        _prolong(engine, state, until)
            except StalledError:
                time.sleep(STALL_SECONDS)
            else:
                return held

    # -- removing --------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""

        def remove(engine: Engine) -> bool:
            now, state = self._clock(), engine.head(scope)
            if state is None or not state.alive(now) or (stamp is not None and state.stamp != stamp):
                return False
            if self._leases.holder(scope) is not None:
                return False
            batch = engine.batch()
            heads.bury(engine, batch, state, now, dropped=True)
            engine.write(batch, {scope: None}, awaited=self._durable)
            return True

        dropped = await self._write(remove)
        if dropped and self._durable:
            await (await self._open()).synced()
        return dropped

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`. In small batches, between which others come to their turn."""
        now, cursor, left = self._clock(), EXPIRY, limit
        gone: list[StateScope] = []
        entries = items = 0

        def step(engine: Engine, start: bytes, most: int) -> Sweep:
            batch = engine.batch()
            part = Sweep(engine, batch, now, self._is_free)
            part.run(start, most)
            engine.write(batch, part.heads, awaited=False)
            return part

        while left > 0:
            part = await self._write(partial(step, start=cursor, most=min(left, SWEPT_AT_ONCE)))
            gone, entries, items = [*gone, *part.scopes], entries + part.entries, items + part.items
            left -= part.removed
            if part.cursor is None:
                return Swept(tuple(gone), entries, items, done=left > 0)
            cursor = part.cursor
            await asyncio.sleep(0)
        return Swept(tuple(gone), entries, items, done=False)

    def _is_free(self, scope: StateScope) -> bool:
        return self._leases.holder(scope) is None


def _prolong(engine: Engine, state: State, until: float) -> State:
    """Push the expiry of a state on, and return it as it is then."""
    later = state.copy()
    later.expires = until
    batch = engine.batch()
    heads.save(batch, state, later)
    engine.write(batch, {state.scope: later}, awaited=False)
    return later
