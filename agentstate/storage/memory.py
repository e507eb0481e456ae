"""The memory backend: for tests, and for what may be forgotten.

It keeps bytes like every other backend, so a value behaves the same here as on a server.
One lock guards everything; nothing awaits while holding it, so a cancelled call has either
happened or not. Turns exclude each other within the process; a holder that doesn't renew
loses its turn as it would on a server.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel

from agentstate.errors import StorageClosedError, UnsupportedError
from agentstate.storage.image import Image
from agentstate.storage.index import ScopeIndex
from agentstate.storage.lease_table import LeaseTable
from agentstate.storage.protocol import (
    FAILURE_COUNT,
    FAILURE_SECONDS,
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

CAPABILITIES = Capabilities(
    durability="none", shared=False, leases="process", atomic_scopes=True, partitions=1, taskless=True
)
FEED_LIMIT = 100_000


class MemoryOptions(BaseModel, extra="forbid", frozen=True):
    """The memory backend has no options; ``memory://`` is its URL."""

    url: str = "memory://"


class MemoryStorage:
    """Keeps states in this process, until it ends."""

    Options: ClassVar[type[MemoryOptions]] = MemoryOptions
    name = "memory"
    location = "memory://"
    capabilities = CAPABILITIES

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Begin empty. ``clock`` returns seconds since the epoch."""
        self._clock = clock
        self._lock = threading.Lock()
        self._images: dict[StateScope, Image] = {}
        self._index = ScopeIndex()
        self._unlisted: dict[StateScope, Image] = {}
        self._failures: dict[StateScope, list[tuple[float, bytes]]] = defaultdict(list)
        self._feed: list[tuple[StateScope, Stamp | None, float]] = []
        self._feed_start = 0
        self._leases = LeaseTable(clock, self._lock)
        self._closed = False

    @classmethod
    def from_options(cls, options: MemoryOptions, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe."""
        del options
        return cls(clock=clock or time.time)

    async def open(self) -> None:
        """Do nothing: memory is always open, until it is closed."""
        self._check_open()

    async def close(self) -> None:
        """Forget everything."""
        self._closed = True
        with self._lock:
            self._images.clear()
            self._failures.clear()
            self._feed.clear()

    async def ping(self) -> None:
        """Return at once."""
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise self._was_closed()

    def _was_closed(self) -> StorageClosedError:
        return StorageClosedError("This memory storage was closed.", remedy="Make a new one.")

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
        """See `Storage.read`."""
        if self._closed:
            raise self._was_closed()
        now = self._clock()
        held: Lease | None = None
        with self._lock:
            if lease is not None:
                held, holder = self._leases.take(scope, lease, now)
                if held is None:
                    return Snapshot(scope=scope, now=now, holder=holder)
            image = self._images.get(scope)
            if image is None or not image.alive(now):
                return Snapshot(scope=scope, now=now, lease=held)
            if image.expires_at is not None:
                self._push_expiry(image, now, lease, touch)
            snapshot = image.snapshot(wants, now, once)
        snapshot.lease = held
        return snapshot

    def _push_expiry(self, image: Image, now: float, lease: LeaseRequest | None, touch: float | None) -> None:
        assert image.expires_at is not None
        before = image.expires_at
        if touch is not None and before - now < touch / 2:
            image.expires_at = now + touch
        if lease is not None:
            image.expires_at = max(image.expires_at, now + lease.seconds)
        if image.expires_at != before:
            self._unlisted[image.scope] = image

    async def wait_turn(self, scope: StateScope, nonce: int, seconds: float) -> None:
        """See `Storage.wait_turn`."""
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
        """See `Storage.commit`."""
        if self._closed:
            raise self._was_closed()
        if len(parts) > 1 and len({part.scope for part in parts}) != len(parts):
            raise UnsupportedError("A commit holds one part per scope.")
        now = self._clock()
        with self._lock:
            if lease is not None:
                self._leases.check(lease)
            checked: list[tuple[Part, Image, bool]] = []
            for part in parts:
                image, alive = self._image_of(part, now, lease)
                image.validate(part, now, alive=alive, once=None if checked else once)
                checked.append((part, image, alive))
            done: list[Committed] = []
            for part, image, alive in checked:
                if part.checks_only:
                    done.append(Committed(image.stamp, image.birth, {}, {}, image.expires_at))
                    continue
                one = image.apply(part, commit_id, now, alive=alive, once=None if done else once)
                self._note(image, one.stamp, now, alive=alive)
                done.append(one)
            if lease is not None and release:
                self._leases.leave(lease.scope, lease.nonce)
        return tuple(done)

    def _image_of(self, part: Part, now: float, lease: Lease | None) -> tuple[Image, bool]:
        """Return the state that a part is for, and whether it is alive: under its turn no state expires."""
        image = self._images.get(part.scope)
        if image is None:
            return Image(part.scope), False
        if image.alive(now):
            return image, True
        held = lease is not None and lease.scope == part.scope and part.birth == image.birth
        return image, held and image.stamp is not None

    def _note(self, image: Image, stamp: Stamp | None, now: float, *, alive: bool) -> None:
        """Note that a commit made or changed a state, or dropped it (``stamp`` is ``None``)."""
        scope = image.scope
        self._images[scope] = self._unlisted[scope] = image
        if stamp is None:
            self._failures.pop(scope, None)
        if stamp is not None or alive:
            self._add_to_feed(scope, stamp, now)

    def _add_to_feed(self, scope: StateScope, stamp: Stamp | None, now: float) -> None:
        feed = self._feed
        feed.append((scope, stamp, now))
        if len(feed) > FEED_LIMIT:
            self._feed_start += FEED_LIMIT // 2
            del feed[: FEED_LIMIT // 2]

    async def leave(self, scope: StateScope, nonce: int, *, failure: bytes | None = None) -> None:
        """See `Storage.leave`."""
        if failure is not None:
            now = self._clock()
            with self._lock:
                kept = [one for one in self._failures[scope] if one[0] > now - FAILURE_SECONDS]
                self._failures[scope] = [*kept, (now, failure)][-FAILURE_COUNT:]
        with self._lock:
            self._leases.leave(scope, nonce)

    def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        """See `Storage.renew`."""
        with self._lock:
            return [self._renew(lease, seconds) for lease in leases]

    def _renew(self, lease: Lease, seconds: float) -> bool:
        if not self._leases.renew(lease, seconds):
            return False
        image, until = self._images.get(lease.scope), self._clock() + seconds
        if image is not None and image.expires_at is not None and image.expires_at < until:
            image.expires_at = until
            self._unlisted[lease.scope] = image
        return True

    # -- looking up ------------------------------------------------------------------------

    def _live(self, scope: StateScope) -> Image | None:
        self._check_open()
        image = self._images.get(scope)
        return image if image is not None and image.alive(self._clock()) else None

    async def outcome(self, scope: StateScope, commit_id: int) -> Stamp | None:
        """See `Storage.outcome`."""
        self._check_open()
        with self._lock:
            image = self._images.get(scope)
            if image is None:
                return None
            journal = (record.stamp for record in image.journal)
            return next((stamp for stamp in (*image.commits, *journal) if stamp.commit_id == commit_id), None)

    async def read_log(
        self, scope: StateScope, log: str, *, start: int | None = None, end: int | None = None, limit: int | None = None
    ) -> LogPage:
        """See `Storage.read_log`."""
        with self._lock:
            image = self._live(scope)
            found = image.logs.get(log) if image is not None else None
            if found is None:
                return LogPage(None, ())
            low = found.first if start is None else start
            high = found.head + 1 if end is None else end
            if limit is not None and start is not None:
                high = min(high, max(low, found.first) + limit)
            elif limit is not None:
                low = max(low, min(high, found.head + 1) - limit)
            return LogPage(found.view(), tuple(found.slice(low, high)))

    async def find_item(self, scope: StateScope, log: str, id: str) -> LogItem | None:  # noqa: A002
        """See `Storage.find_item`."""
        with self._lock:
            image = self._live(scope)
            found = image.logs.get(log) if image is not None else None
            seq = found.ids.get(id) if found is not None else None
            if found is None or seq is None:
                return None
            return next(item for item in found.items if item.seq == seq)

    async def scan(
        self, scope: StateScope, section: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> EntryPage:
        """See `Storage.scan`."""
        now = self._clock()
        with self._lock:
            image = self._live(scope)
            keys = sorted(
                key
                for name, key in (image.entries if image is not None else ())
                if name == section and key.startswith(prefix) and (cursor is None or key > cursor)
            )
            found = [(key, image.entry(section, key, now)) for key in keys] if image is not None else []
            page = [(key, entry) for key, entry in found if entry is not None]
        more = len(page) > limit
        return EntryPage(tuple(page[:limit]), page[limit - 1][0] if more else None)

    async def scopes(self, query: ScopeQuery) -> ScopePage:
        """See `Storage.scopes`."""
        self._check_open()
        with self._lock:
            for scope, image in self._unlisted.items():
                if image.stamp is None:
                    self._index.discard(scope)
                else:
                    self._index.put(image.info())
            self._unlisted.clear()
            return self._index.page(query, self._clock())

    async def journal(self, scope: StateScope, *, after: int = 0, limit: int = 100) -> tuple[JournalRecord, ...]:
        """See `Storage.journal`."""
        with self._lock:
            image = self._live(scope)
            records = image.journal if image is not None else ()
            return tuple(record for record in records if record.stamp.version > after)[:limit]

    async def failures(self, scope: StateScope) -> tuple[bytes, ...]:
        """See `Storage.failures`."""
        self._check_open()
        with self._lock:
            now = self._clock()
            return tuple(data for at, data in self._failures.get(scope, ()) if at > now - FAILURE_SECONDS)

    async def feed(self, partition: int, *, after: str | None = None, limit: int = 100) -> tuple[FeedItem, ...]:
        """See `Storage.feed`."""
        self._check_open()
        del partition
        with self._lock:
            start = max(int(after) - self._feed_start, 0) if after is not None else 0
            found = enumerate(self._feed[start : start + limit], self._feed_start + start + 1)
            return tuple(FeedItem(str(number), *one) for number, one in found)

    # -- removing --------------------------------------------------------------------------

    async def drop(self, scope: StateScope, *, stamp: Stamp | None = None) -> bool:
        """See `Storage.drop`."""
        with self._lock:
            if self._leases.holder(scope) is not None:
                return False
            image = self._live(scope)
            if image is None or (stamp is not None and image.stamp != stamp):
                return False
            self._remove(image)
        return True

    def _remove(self, image: Image) -> None:
        image.apply(Part(scope=image.scope, clear=True), 0, self._clock(), alive=True, once=None)
        self._unlisted[image.scope] = image
        self._failures.pop(image.scope, None)
        self._add_to_feed(image.scope, None, self._clock())

    async def sweep(self, limit: int = 100) -> Swept:
        """See `Storage.sweep`."""
        self._check_open()
        now, entries, items = self._clock(), 0, 0
        gone: list[StateScope] = []
        with self._lock:
            for image in list(self._images.values()):
                left = limit - len(gone) - entries - items
                if left <= 0:
                    return Swept(tuple(gone), entries, items, done=False)
                if image.stamp is None or self._leases.holder(image.scope) is not None:
                    continue
                if not image.alive(now):
                    self._remove(image)
                    gone.append(image.scope)
                    continue
                swept = image.sweep(now, left)
                entries, items = entries + swept[0], items + swept[1]
        return Swept(tuple(gone), entries, items, done=len(gone) + entries + items < limit)
