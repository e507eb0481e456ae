"""The Valkey backend: the storage protocol, one script per trip.

Atomic: each read, commit and every other change of one state is one script, and the server
runs scripts one after the other. A commit of several states is refused. Any number of
processes on any number of machines may use a store at once.

Cancellation: a call that was not yet written to the connection hasn't happened; a written
one is carried out by the server, whatever becomes of its caller. Calls of one event loop
reach the server in the order in which they were made.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Self

from agentstate.errors import UnsupportedError
from agentstate.storage.protocol import (
    FAILURE_SECONDS,
    ONCE_SECONDS,
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
from agentstate.storage.valkey import decode, decode_pages, legacy, listing, turns
from agentstate.storage.valkey.admission import Admission, admit
from agentstate.storage.valkey.commit import commit_part
from agentstate.storage.valkey.connections import Connections, LoopConnections
from agentstate.storage.valkey.encode import commit_call, field, hexed, item_id, name, number_text, wants_arguments
from agentstate.storage.valkey.faults import LostError, unreachable
from agentstate.storage.valkey.keys import PARTITIONS, Keys
from agentstate.storage.valkey.options import ValkeyOptions, options_from
from agentstate.storage.valkey.scripts import script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope

__all__ = ["ValkeyStorage"]


class ValkeyStorage:
    """Keeps states on a Valkey server, or one that speaks its protocol.

    The settings are those of `ValkeyOptions`. Nothing is connected before the first use.
    """

    Options: ClassVar[type[ValkeyOptions]] = ValkeyOptions
    name = "valkey"

    def __init__(
        self,
        url: str | ValkeyOptions = "valkey://localhost:6379",
        *,
        clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        """Describe a storage.

        Args:
            url: see `ValkeyOptions`; or all the settings.
            clock: seconds since the epoch, for tests; the server's own clock otherwise.
            settings: see `ValkeyOptions`; they win over the url's query.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        options = url if isinstance(url, ValkeyOptions) else options_from(url, settings)
        self.options = options
        self._clock = clock
        self._connections = Connections(options)
        self._admission: Admission | None = None
        self._keys = Keys(options.key_prefix, PARTITIONS)
        self._held = self._connections.held

    @classmethod
    def from_options(cls, options: ValkeyOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        return cls(options, clock=clock)

    # -- life --------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """The URL without its password."""
        return self.options.location

    @property
    def capabilities(self) -> Capabilities:
        """What the storage promises. ``power`` once the server was seen to sync every commit."""
        synced = self._admission.survives_power_loss if self._admission else self.options.durability == "full"
        return Capabilities(
            durability="power" if synced else "process",
            shared=True,
            leases="network",
            atomic_scopes=False,
            partitions=self._keys.partitions,
            native_expiry=True,
            taskless=True,
            push=self.options.max_connections > 1,
        )

    async def open(self) -> None:
        """See `Storage.open`.

        Raises:
            StorageError: the server can't be reached, refuses us, or a newer release wrote the store.
            ConfigError: the server may forget what it acknowledged, and that wasn't allowed.
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
                admission = await admit(here, self.options)
                self._keys = Keys(self.options.key_prefix, admission.partitions)
                self._admission = admission
        return here

    async def close(self) -> None:
        """See `Storage.close`. Connections of other loops close when these run next."""
        here = self._connections.found()
        if here is not None and self._held:
            await turns.give_back(here, self._keys, self._held, self._now())
        elif self._held:
            await turns.give_back_elsewhere(self._connections.link, self._keys, self._held, self._now())
        self._held.clear()
        await self._connections.close()

    async def ping(self) -> None:
        """See `Storage.ping`."""
        here = await self._here()
        await here.ask_all([("PING",)])

    def _now(self) -> str:
        return "" if self._clock is None else number_text(self._clock())

    async def _time(self, here: LoopConnections) -> float:
        if self._clock is not None:
            return self._clock()
        ((seconds, microseconds),) = await here.ask_all([("TIME",)])
        return int(seconds) + int(microseconds) / 1e6

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
        inline, rest = wants_arguments(wants)
        asked = ("", "", "", "") if lease is None else turns.lease_arguments(lease, here)
        reply = await here.ask(
            script("read"),
            self._keys.state(scope),
            self._now(),
            inline,
            *asked,
            number_text(touch),
            "" if once is None else f"={once}",
            *rest,
        )
        snapshot = decode.snapshot_of(scope, reply, wants, lease, once, ONCE_SECONDS)
        if snapshot.lease is not None:
            self._held[snapshot.lease.nonce] = scope
        return snapshot

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
        here = await self._here()
        await turns.wait_turn(here, self._keys.state(scope), nonce, seconds, self._now)

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
        (part, *others) = parts
        if others or (lease is not None and lease.scope != part.scope):
            raise UnsupportedError(
                "Valkey commits one scope at a time.",
                scope=part.scope,
                remedy="Commit each scope on its own, or keep what belongs together in one scope.",
            )
        nonce = 0 if lease is None else lease.nonce
        call = commit_call(part, commit_id, self._now(), nonce=nonce, release=release, once=once)
        done = await commit_part(here, self._keys.state(part.scope), part, commit_id, call)
        if lease is not None and release:
            self._held.pop(lease.nonce, None)
        return (done,)

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`."""
        here = self._ready() or await self._here()
        said = () if failure is None else (secrets.token_hex(8), failure)
        await here.ask(script("leave"), self._keys.state(scope), self._now(), nonce, *said)
        self._held.pop(nonce, None)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`."""
        now = self._now()
        calls = [(self._keys.state(one.scope), (now, one.nonce, seconds)) for one in leases]
        return [bool(reply) for reply in self._connections.link.run_all(script("renew"), calls)] if calls else []

    # -- looking up --------------------------------------------------------------------------

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`. All commits of the last 30 seconds are known, too."""
        here = await self._here()
        version = await here.ask(script("outcome"), self._keys.state(scope), "", hexed(commit_id))
        return None if version is None or version == b"-" else Stamp(int(version), commit_id)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        here = await self._here()
        bounds = ["" if one is None else one for one in (start, end, limit)]
        reply = await here.ask(script("log"), self._keys.state(scope), self._now(), name(log), *bounds)
        return decode_pages.log_page_of(scope, reply)

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        here = await self._here()
        reply = await here.ask(script("find"), self._keys.state(scope), self._now(), name(log), item_id(id))
        return decode_pages.found_item_of(scope, reply)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        here = await self._here()
        first, now = field(section, prefix).encode()[1:], await self._time(here)
        after = b"" if cursor is None else field(section, cursor).encode()[1:]
        low = b"(" + after if after >= first else b"[" + first
        reply = await here.ask(
            script("scan"), self._keys.state(scope), number_text(now), low, b"(" + first + b"\xff", limit
        )
        return decode_pages.entry_page_of(scope, reply, now)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        here = await self._here()
        return await listing.page(here, self._keys, query, await self._time(here))

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        here = await self._here()
        reply = await here.ask(script("journal"), self._keys.state(scope), self._now(), after, limit)
        return decode_pages.journal_of(scope, reply)

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        here = await self._here()
        now, found = await here.ask(script("failures"), self._keys.state(scope), self._now())
        parts = (raw.split(b" ", 2) for raw in found)
        return tuple(data for at, _, data in parts if float(at) > float(now) - FAILURE_SECONDS)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`. The last 2,000 or so commits of a partition are kept."""
        here = await self._here()
        start = "-" if after is None else f"({after}"
        (reply,) = await here.ask_all([("XRANGE", self._keys.partition(partition, "feed"), start, "+", "COUNT", limit)])
        return decode_pages.feed_of(reply)

    # -- removing ----------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        here = await self._here()
        wanted = "*" if stamp is None else str(stamp)
        try:
            return bool(await here.run(script("drop"), self._keys.state(scope), self._now(), wanted))
        except LostError as lost:
            raise unreachable(self.location, f"{lost}; {scope} may have been dropped") from lost

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        here = await self._here()
        now = number_text(await self._time(here))
        queues = self._keys.views("expiry")
        due = await here.ask_all(("ZRANGEBYSCORE", queue, "-inf", now, "LIMIT", 0, 1) for queue in queues)
        swept = Swept((), 0, 0, done=True)
        for number in [number for number, found in enumerate(due) if found]:
            left = limit - len(swept.scopes) - swept.entries - swept.items
            reply = await here.ask(script("sweep"), self._keys.partition(number, "state:"), now, left)
            swept = decode_pages.swept_of(swept, reply)
            if not swept.done:
                break
        return swept

    # -- what others wrote -------------------------------------------------------------------

    @property
    def legacy_url(self) -> str | None:
        """The URL of this place if AgentUp may have written there, too: not under our own default prefix."""
        return legacy.url_of(self.options)

    async def legacy_keys(self, limit: int = 100) -> tuple[str, ...]:
        """Return the context ids of records that AgentUp itself wrote under this prefix."""
        return await legacy.keys(await self._here(), self.options, limit)

    async def legacy_record(self, context_id: str) -> bytes | None:
        """Return a record that AgentUp itself wrote, as it is."""
        return await legacy.record(await self._here(), self.options, context_id)
