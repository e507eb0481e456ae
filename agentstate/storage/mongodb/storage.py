"""The MongoDB backend: the storage protocol over chains of insert-only documents.

Atomic: each commit, and each change of who holds a turn, is the insert of one document (see
`agentstate.storage.mongodb.chain`), which every server that speaks the protocol does whole or not
at all. A commit of several states is refused: no transaction of the server is ever used. Any number
of processes on any number of machines may use a store at once.

Cancellation: every call runs in a task of the storage's own. A cancelled caller goes at once; what
was sent is followed to its end, and the next call for that state waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self

from agentstate.errors import StorageError, UnsupportedError
from agentstate.storage.mongodb import listing, pages, sweep, turns
from agentstate.storage.mongodb.admission import Admission, admit
from agentstate.storage.mongodb.chain import changed_document, still_there
from agentstate.storage.mongodb.change import commit_to, packed_record
from agentstate.storage.mongodb.connections import Connections
from agentstate.storage.mongodb.faults import typed
from agentstate.storage.mongodb.feeding import read_feed
from agentstate.storage.mongodb.keys import PARTITIONS, scope_key
from agentstate.storage.mongodb.loading import load_for_part, load_for_wants
from agentstate.storage.mongodb.options import MongodbOptions, options_from
from agentstate.storage.mongodb.settle import settle_all
from agentstate.storage.mongodb.work import change, look
from agentstate.storage.protocol import (
    Capabilities,
    Committed,
    EntryPage,
    FeedItem,
    JournalRecord,
    Lease,
    LeaseRequest,
    LogItem,
    LogPage,
    OnceRecord,
    Part,
    ScopePage,
    ScopeQuery,
    Snapshot,
    Stamp,
    Swept,
    Wants,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View

__all__ = ["MongodbStorage"]

_log = logging.getLogger("agentstate.mongodb")


class MongodbStorage:
    """Keeps states on a MongoDB server, or one that speaks its protocol.

    The settings are those of `MongodbOptions`. Nothing is connected before the first use.
    """

    Options: ClassVar[type[MongodbOptions]] = MongodbOptions
    name = "mongodb"

    def __init__(
        self,
        url: str | MongodbOptions = "mongodb://localhost:27017",
        *,
        clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        """Describe a storage.

        Args:
            url: see `MongodbOptions`; or all the settings.
            clock: seconds since the epoch, for tests; else this machine's, set right by the server's.
            settings: they win over the url's query.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        self.options = url if isinstance(url, MongodbOptions) else options_from(url, settings)
        self._clock = clock
        self._connections = Connections(self.options)
        self._held = self._connections.held
        self._admission: Admission | None = None

    @classmethod
    def from_options(cls, options: MongodbOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(options, clock=clock)

    # -- life --------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """The URL without its password."""
        return self.options.location

    @property
    def capabilities(self) -> Capabilities:
        """What the storage promises. ``power`` with ``durability="full"``, on a server that heeds it."""
        full = self.options.durability == "full" and (self._admission is None or self._admission.journals)
        return Capabilities(
            durability="power" if full else "process",
            shared=True,
            leases="network",
            atomic_scopes=False,
            partitions=PARTITIONS,
        )

    async def open(self) -> None:
        """See `Storage.open`.

        Raises:
            StorageError: the server can't be reached, refuses us, or a newer release wrote the store.
        """
        await self._here()

    async def _here(self) -> LoopConnections:
        here = await self._connections.here()
        if not here.opened:
            async with here.opening:
                if not here.opened:
                    self._admission = await here.own(admit(here, self.options))
                    here.opened = True
        return here

    async def close(self) -> None:
        """See `Storage.close`. Connections of other loops close when these run next."""
        if self._held and not self._connections.is_closed:
            here = await self._connections.here()
            leaving = [here.own(self._leave(here, scope, nonce, None)) for nonce, scope in self._held.items()]
            for result in await asyncio.gather(*leaving, return_exceptions=True):
                if isinstance(result, StorageError):
                    _log.warning("a turn couldn't be given back while closing: %s", result)
                elif isinstance(result, BaseException):
                    raise result
        self._held.clear()
        await self._connections.close()

    async def ping(self) -> None:
        """See `Storage.ping`."""
        here = await self._here()
        await here.own(here.client[self.options.database].command("ping"))

    def _clock_of(self, here: LoopConnections) -> Callable[[], float]:
        return self._clock or (lambda: time.time() + here.skew)

    # -- turns -------------------------------------------------------------------------------

    async def read(
        self,
        scope: StateScope,
        wants: Wants,
        *,
        lease: LeaseRequest | None = None,
        once: str | None = None,
        touch: float | None = None,
    ) -> Snapshot:
        """See `Storage.read`."""
        here = await self._here()
        snapshot = await here.own(self._read(here, scope, wants, lease, once, touch))
        if snapshot.lease is not None:
            self._held[snapshot.lease.nonce] = scope
        return snapshot

    async def _read(
        self,
        here: LoopConnections,
        scope: StateScope,
        wants: Wants,
        lease: LeaseRequest | None,
        once: str | None,
        touch: float | None,
    ) -> Snapshot:
        clock = self._clock_of(here)

        async def see(view: View) -> tuple[Snapshot, bool]:
            due = _due_expiry(view, clock(), None, touch) is not None
            if view.image.alive(clock()) and await load_for_wants(here, view, wants, once):
                await still_there(here, view)
            return _snapshot(view, wants, clock(), once), due

        async def decide(view: View) -> tuple[Snapshot, Document | None]:
            now = clock()
            held, holder, changed = (None, None, False) if lease is None else await turns.take(here, view, lease, now)
            if holder is not None:
                waits = changed_document(view, "wait", None, at=now) if changed else None
                return Snapshot(scope=scope, now=now, holder=holder), waits
            if view.image.alive(now):
                await load_for_wants(here, view, wants, once)
            if (pushed := _due_expiry(view, now, lease, touch)) is not None:
                view.image.expires_at = pushed
            snapshot = _snapshot(view, wants, now, once)
            snapshot.lease = held
            if held is None and pushed is None:
                return snapshot, None
            return snapshot, changed_document(view, "turn", None, at=now, pending=pushed is not None)

        if lease is None:
            snapshot, due = await look(here, scope, see)
            if not due:
                return snapshot
        return await change(here, scope, decide, looks=True)

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        here = await self._here()
        await here.own(turns.wait_turn(here, scope, nonce, seconds, self._clock_of(here)))

    async def commit(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        lease: Lease | None = None,
        release: bool = False,
        once: OnceRecord | None = None,
    ) -> tuple[Committed, ...]:
        """See `Storage.commit`."""
        here = await self._here()
        if not parts:
            if lease is not None and release:
                await self.leave(lease.scope, lease.nonce)
            return ()
        (part, *others) = parts
        if others or (lease is not None and lease.scope != part.scope):
            raise UnsupportedError(
                "MongoDB commits one scope at a time.",
                scope=part.scope,
                remedy="Commit each scope on its own, or keep what belongs together in one scope.",
            )
        done = await here.own(self._commit(here, part, commit_id, lease, once, release=release))
        if lease is not None and release:
            self._held.pop(lease.nonce, None)
        return (done,)

    async def _commit(
        self,
        here: LoopConnections,
        part: Part,
        commit_id: int,
        lease: Lease | None,
        once: OnceRecord | None,
        *,
        release: bool,
    ) -> Committed:
        clock = self._clock_of(here)

        def alive_at(view: View, now: float) -> bool:
            held = lease is not None and view.image.stamp is not None and part.birth == view.image.birth
            return held or view.image.alive(now)  # Under its turn no state expires.

        async def load(view: View) -> None:
            if alive_at(view, clock()):
                await load_for_part(here, view, part, once)

        async def decide(view: View) -> tuple[Committed, Document | None]:
            now, image = clock(), view.image
            turns.check_lease(view, lease)
            was_there = alive = alive_at(view, now)
            await load(view)
            image.validate(part, now, alive=alive, once=once)
            done, made, record = commit_to(view, part, commit_id, now, alive=alive, once=once)
            if lease is not None and release:
                turns.leave(view, lease.nonce)
            said: dict[str, Any] = {"at": now, "pending": True, "fed": done.stamp is not None or was_there}
            said |= {"commit": f"{view.key}/{commit_id:016x}", "version": image.version}
            if record is not None:
                said |= {"journal": record.stamp.version, "record": packed_record(record)}
            return done, changed_document(view, "drop" if done.stamp is None else "commit", made, **said)

        return await change(here, part.scope, decide, commit_id=commit_id, load=load)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`."""
        here = await self._here()
        await here.own(self._leave(here, scope, nonce, failure))
        self._held.pop(nonce, None)

    async def _leave(self, here: LoopConnections, scope: StateScope, nonce: int, failure: bytes | None) -> None:
        clock = self._clock_of(here)

        async def decide(view: View) -> tuple[None, Document | None]:
            left = turns.leave(view, nonce)
            if failure is not None:
                return None, changed_document(view, "failed", {"failure": failure}, at=clock(), pending=True)
            return None, changed_document(view, "leave", None, at=clock()) if left else None

        await change(here, scope, decide)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`."""
        from pymongo.errors import PyMongoError

        if not leases:
            return []
        chains = self._connections.blocking()
        skew = self._admission.skew if self._admission is not None else 0.0
        now = self._clock() if self._clock is not None else time.time() + skew
        try:
            return [turns.renew(chains, one, seconds, now) for one in leases]
        except PyMongoError as error:
            raise typed(error, self.location) from error

    # -- looking up --------------------------------------------------------------------------

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""
        here = await self._here()
        wanted = {"commit": f"{scope_key(scope)}/{commit_id:016x}"}
        found = await here.own(here.transitions.find_one(wanted, {"version": 1, "kind": 1}))
        return None if found is None or found["kind"] == "drop" else Stamp(found["version"], commit_id)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        here = await self._here()
        return await here.own(pages.read_log(here, scope, log, start, end, limit, self._clock_of(here)))

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        here = await self._here()
        return await here.own(pages.find_item(here, scope, log, id, self._clock_of(here)))

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        here = await self._here()
        return await here.own(pages.scan(here, scope, section, prefix, cursor, limit, self._clock_of(here)))

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        here = await self._here()

        async def listed() -> ScopePage:
            await settle_all(here)
            return await listing.page(here, query, self._clock_of(here)())

        return await here.own(listed())

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        here = await self._here()
        return await here.own(pages.journal(here, scope, after, limit, self._clock_of(here)))

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        here = await self._here()
        return await here.own(pages.failures(here, scope, self._clock_of(here)()))

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`. The last 10,000 or so commits of a partition are kept."""
        here = await self._here()

        async def fed() -> tuple[FeedItem, ...]:
            await settle_all(here)
            return await read_feed(here, partition, after, limit)

        return await here.own(fed())

    # -- removing ----------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        here = await self._here()
        return await here.own(sweep.drop(here, scope, stamp, self._clock_of(here)))

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        here = await self._here()
        return await here.own(sweep.sweep(here, limit, self._clock_of(here)))


def _due_expiry(view: View, now: float, lease: LeaseRequest | None, touch: float | None) -> float | None:
    """Return the expiry that a read pushes a living state's to, ``None`` where it stays."""
    before = view.image.expires_at
    if before is None or not view.image.alive(now):
        return None
    after = now + touch if touch is not None and before - now < touch / 2 else before
    if lease is not None:
        after = max(after, now + lease.seconds)
    return after if after != before else None


def _snapshot(view: View, wants: Wants, now: float, once: str | None) -> Snapshot:
    if not view.image.alive(now):
        return Snapshot(scope=view.scope, now=now)
    return view.image.snapshot(wants, now, once)
