"""The PostgreSQL backend: the storage protocol, one call of a stored function per trip.

Atomic: each read, commit and every other change is one transaction, of one state or of several.
A function locks the rows of its states first, in the order of their addresses, and only then
reads or checks: what another commit wrote while it waited is seen. Any number of processes on
any number of machines may use a store at once.

Cancellation: a call that was not yet sent hasn't happened; of one that was sent the server
does all or nothing, whatever becomes of its caller.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from agentstate.errors import StorageError
from agentstate.storage.postgresql import decode, listing, turns
from agentstate.storage.postgresql.calls import Calls
from agentstate.storage.postgresql.commit import send
from agentstate.storage.postgresql.connections import Connections, LoopConnections
from agentstate.storage.postgresql.encode import CommitCall, place_of
from agentstate.storage.postgresql.faults import LostError, unreachable
from agentstate.storage.postgresql.layout import PARTITIONS, Admission, admit, quoted
from agentstate.storage.postgresql.options import PostgresqlOptions, options_from
from agentstate.storage.postgresql.seals import damaged, item_crc
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

__all__ = ["PostgresqlStorage"]

# How long a page of the feed waits for transactions that still run: an unrelated one may take for ever.
FEED_WAITS: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
BEFORE_ALL: Final = -(2**63)


class PostgresqlStorage:
    """Keeps states in a schema of a PostgreSQL database, version 13 or later.

    The settings are those of `PostgresqlOptions`. Nothing is connected before the first use.
    """

    Options: ClassVar[type[PostgresqlOptions]] = PostgresqlOptions
    name = "postgresql"

    def __init__(
        self,
        url: str | PostgresqlOptions = "postgresql://localhost:5432",
        *,
        clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        """Describe a storage.

        Args:
            url: see `PostgresqlOptions`; or all the settings.
            clock: seconds since the epoch, for tests; the server's own clock otherwise.
            settings: see `PostgresqlOptions`; they win over the url's query.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        options = url if isinstance(url, PostgresqlOptions) else options_from(url, settings)
        self.options = options
        self._clock = clock
        self._calls = Calls(options.schema_name)
        self._connections = Connections(options)
        self._admission: Admission | None = None
        self._durable = options.durability == "full"
        self._held = self._connections.held

    @classmethod
    def from_options(cls, options: PostgresqlOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(options, clock=clock)

    # -- life --------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """The URL without its password."""
        return self.options.location

    @property
    def capabilities(self) -> Capabilities:
        """What the storage promises. ``power`` unless the server was seen not to sync."""
        synced = self._admission.survives_power_loss if self._admission else self._durable
        return Capabilities(
            durability="power" if synced else "process",
            shared=True,
            leases="network",
            atomic_scopes=True,
            partitions=PARTITIONS,
            taskless=True,
            push=not self.options.pooler,
        )

    async def open(self) -> None:
        """See `Storage.open`.

        Raises:
            StorageError: the server can't be reached, refuses us, or a newer release wrote the store.
            ConfigError: there is no such database, or it doesn't hold Unicode.
        """
        await self._here()

    def _ready(self) -> LoopConnections | None:
        return self._connections.found() if self._admission is not None else None

    async def _here(self) -> LoopConnections:
        here = self._ready()
        if here is not None:
            return here
        here = await self._connections.here()
        async with here.opening:
            if self._admission is None:
                # The layout is made whole or not at all, whatever becomes of who asked first.
                self._admission = await asyncio.shield(here.loop.create_task(self._admit(here)))
        return here

    async def _admit(self, here: LoopConnections) -> Admission:
        return await here.lend(lambda connection: admit(connection, self.options))

    async def close(self) -> None:
        """See `Storage.close`. Connections of other loops close when these run next."""
        here = self._connections.found()
        if here is not None and self._held:
            await turns.give_back(here, self._calls.leave, self._held, self._now())
        self._held.clear()
        await self._connections.close()

    async def ping(self) -> None:
        """See `Storage.ping`."""
        here = await self._here()
        await here.ask("SELECT 1")

    def _now(self) -> float | None:
        return None if self._clock is None else self._clock()

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
        here = self._ready() or await self._here()
        sections, keys, tails, inline_bytes = wants
        asked = (
            *(self._now(), *place_of(scope), inline_bytes, None if sections is None else list(sections)),
            *([section for section, _ in keys], [key for _, key in keys]),
            *([log for log, _ in tails], [count for _, count in tails], once),
        )
        if lease is None:
            (row,) = await here.ask(self._calls.look, *asked)
            snapshot = decode.snapshot_of(scope, row, wants, None, once)
            if touch is not None and snapshot.expires_at is not None:
                await self._touch(here, snapshot, touch)
            return snapshot
        # One after the other: calls on different connections could overtake one another on their way into the line.
        while (before := here.entering.get(scope)) is not None:
            await asyncio.shield(before)
        mine = here.entering[scope] = here.loop.create_future()
        try:
            (row,) = await here.ask(
                self._calls.enter, *asked, scope.partition(PARTITIONS), *lease, here.waker.channel, touch
            )
        finally:
            del here.entering[scope]
            mine.set_result(None)
        if row["wake_nonce"] is not None:
            here.waker.tell(row["wake_channel"], row["wake_nonce"])
        snapshot = decode.snapshot_of(scope, row, wants, lease, once)
        if snapshot.lease is not None:
            self._held[lease.nonce] = scope
        return snapshot

    async def _touch(self, here: LoopConnections, snapshot: Snapshot, seconds: float) -> None:
        """Renew a sliding lifetime of which less than half is left: a trip of its own, as rare as that is."""
        now = snapshot.now
        if snapshot.expires_at is not None and snapshot.expires_at - now < seconds / 2:
            place = place_of(snapshot.scope)
            for (expires,) in await here.ask(self._calls.touch, *place, snapshot.birth, now, seconds):
                snapshot.expires_at = expires

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        here = await self._here()
        await turns.wait_turn(here, self._calls.wait, scope, nonce, seconds, self._now)

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
        here = self._ready() or await self._here()
        if not parts:
            if lease is not None and release:
                await self.leave(lease.scope, lease.nonce)
            return ()
        call = CommitCall(
            parts, commit_id=commit_id, now=self._now(), durable=self._durable, lease=lease, release=release, once=once
        )
        row = await send(here, self._calls.commit, call, commit_id)
        if lease is not None and release:
            self._held.pop(lease.nonce, None)
            here.waker.tell(row["wake_channel"], row["wake_nonce"])
        done = decode.committed_of(call, row)
        return tuple(done[part.scope] for part in parts)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`."""
        here = self._ready() or await self._here()
        said = (None,) * 3 if failure is None else (secrets.randbits(62), failure, item_crc(failure))
        await turns.leave(here, self._calls.leave, scope, nonce, self._now(), said)
        self._held.pop(nonce, None)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`."""
        if not leases:
            return []
        order = sorted(range(len(leases)), key=lambda number: place_of(leases[number].scope))
        places = map(list, zip(*(place_of(leases[number].scope) for number in order), strict=True))
        nonces = [leases[number].nonce for number in order]
        ((held,),) = self._connections.link.ask(self._calls.renew, self._now(), *places, nonces, seconds)
        found = dict(zip(order, held, strict=True))
        return [found[number] for number in range(len(leases))]

    # -- looking up --------------------------------------------------------------------------

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""
        here = await self._here()
        rows = await here.ask(self._calls.outcome, *place_of(scope), commit_id)
        return Stamp(rows[0][0], commit_id) if rows else None

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        here = await self._here()
        rows = await here.ask(self._calls.log, self._now(), *place_of(scope), log, start, end, limit)
        if not rows or rows[0]["head"] is None:
            return LogPage(None, ())
        head, *columns, low, high = rows[0]
        view = decode.views_of(scope, f'{{"": {head}}}')[""]
        items = zip(*columns, strict=True) if columns[0] is not None else ()
        return LogPage(view, decode.items_of(scope, log, items, low, high - 1))

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        here = await self._here()
        rows = await here.ask(self._calls.find, self._now(), *place_of(scope), log, id)
        items = (decode.items_of(scope, log, [row], row["position"], row["position"])[0] for row in rows)
        return next(items, None)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        here = await self._here()
        bounds = (prefix, listing.text_after(prefix) if prefix else None, cursor)
        rows = await here.ask(self._calls.scan, self._now(), *place_of(scope), section, *bounds, limit + 1)
        if not rows:
            return EntryPage((), None)
        now, *columns = zip(*rows, strict=True)
        found, _ = decode.entries_of(scope, columns, now[0])
        page = [(key, entry) for (_, key), entry in found.items()]
        return EntryPage(tuple(page[:limit]), page[limit - 1][0] if len(page) > limit else None)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        here = await self._here()
        rows = await here.ask(self._calls.page, *listing.page_arguments(query, self._now()))
        return listing.page_of(query, rows)

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        here = await self._here()
        rows = await here.ask(self._calls.journal, self._now(), *place_of(scope), after, limit)
        return decode.journal_of(scope, rows)

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        here = await self._here()
        rows = await here.ask(self._calls.failures, self._now(), *place_of(scope))
        if any(item_crc(record) != crc for record, crc in rows):
            raise damaged(scope, "the record of a failed turn")
        return tuple(record for record, _ in rows)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`. A commit is in it when no older transaction of the server runs any more."""
        here = await self._here()
        xid, scope = (BEFORE_ALL, 0) if after is None else _feed_position(after)
        waits = iter(FEED_WAITS)
        while True:
            ((*columns, more),) = await here.ask(self._calls.feed, partition, xid, scope, limit)
            pause = next(waits, None) if more and len(columns[0] or ()) < limit else None
            if pause is None:
                return decode.feed_of(columns)
            await asyncio.sleep(pause)

    # -- removing ----------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        here = await self._here()
        wanted = (None, None) if stamp is None else stamp
        while True:
            try:
                ((dropped,),) = await here.run(self._calls.drop, self._now(), *place_of(scope), *wanted)
            except LostError as lost:
                raise unreachable(self.location, f"{lost}; {scope} may have been dropped") from lost
            if dropped is not None:
                return bool(dropped)

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        here = await self._here()
        ((tenants, kinds, ids, entries, items),) = await here.ask(self._calls.sweep, self._now(), limit)
        scopes = tuple(decode.scope_of(*place) for place in zip(tenants, kinds, ids, strict=True))
        return Swept(scopes, entries, items, done=len(scopes) + entries + items < limit)

    async def drop_schema(self) -> None:
        """Remove the whole store: the schema and all that lies in it. Meant for tests; there is no way back."""
        here = await self._here()
        await here.ask(f"DROP SCHEMA {quoted(self.options.schema_name)} CASCADE")


def _feed_position(cursor: str) -> tuple[int, int]:
    try:
        xid, scope = cursor.split(".")
        return int(xid), int(scope)
    except ValueError:
        raise StorageError(
            f"{cursor!r} is no cursor of a feed.", remedy="Pass the cursor of the item before."
        ) from None
