"""From one storage to another, state by state, while both are in use.

A state is copied as it is at one version, and appears in one commit unless it is larger than
`COMMIT_BYTES`. A copy keeps its original's version, times, positions, owner, parent, labels and
what is left of its lifetimes. Its journal begins anew; idempotency keys and failed turns stay
behind. What was stored is read back, and compared by digest.

Running it again copies what has changed since, and nothing twice. A copy that nobody has changed
is replaced; any other state that is in the way is the caller's to decide on.

Cancelling it leaves whole states, but for a large one: that is begun anew by the next run.
"""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from agentstate.errors import ConflictError, DamagedStateError
from agentstate.randomness import random_bits
from agentstate.state.record import Origin, decode_record, encode_record
from agentstate.storage.protocol import KEEP, Append, Increment, Kept, Part, Put, ScopeQuery, Wants

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Entry, LogItem, ScopeInfo, Snapshot, Storage

T = TypeVar("T")

__all__ = ["Copied", "copy_states"]

OnExisting = Literal["error", "skip", "replace"]
Outcome = Literal["copied", "same", "skipped", "gone"]

COMMIT_BYTES: Final = 4 * 1024 * 1024
"""How much of a state one commit takes; a larger one is stored in several."""
PAGE: Final = 500
AT_ONCE: Final = 16
TRIES: Final = 5
UNFINISHED: Final = 1.0
"""The time of a copy that is still being made."""
SOON: Final = 0.001
EVERYTHING: Final = Wants()
NOTHING: Final = Wants((), (), (), 0)
OPERATION: Final = "copy"


class Copied(NamedTuple):
    """What a copy did.

    Attributes:
        copied: states that were stored.
        same: states that were there already, as they are in the source.
        skipped: states that were there, and other ones.
        items: log items that were stored, such as messages.
    """

    copied: int = 0
    same: int = 0
    skipped: int = 0
    items: int = 0


async def copy_states(
    source: Storage,
    target: Storage,
    query: ScopeQuery | None = None,
    *,
    on_existing: OnExisting = "error",
    progress: Callable[[int], None] | None = None,
) -> Copied:
    """Copy the states that a query selects, all of a tenant without one.

    Args:
        source: where they are.
        target: where they go.
        query: which; its ``order``, ``limit`` and ``cursor`` don't count.
        on_existing: what to do with a state that is in the way: ``error`` stops at it, ``skip``
            leaves it, ``replace`` puts the copy in its place.
        progress: called with the number of states that are done, again and again.

    Raises:
        ConflictError: a state is in the way, or keeps changing while it is read.
        DamagedStateError: what was stored isn't what was read.
    """
    selected = (query or ScopeQuery())._replace(order="id", reverse=False, limit=PAGE, cursor=None)
    total = Copied()
    gate = asyncio.Semaphore(AT_ONCE)
    copier = _Copier(source, target, on_existing)

    async def one(info: ScopeInfo) -> tuple[Outcome, int]:
        async with gate:
            done = await copier.copy(info.scope)
            if progress is not None:
                progress(1)
            return done

    while True:
        page = await source.scopes(selected)
        for outcome, items in await _all_or_none_more([one(info) for info in page.items]):
            total = total._replace(
                copied=total.copied + (outcome == "copied"),
                same=total.same + (outcome == "same"),
                skipped=total.skipped + (outcome == "skipped"),
                items=total.items + items,
            )
        if page.cursor is None:
            return total
        selected = selected._replace(cursor=page.cursor)


async def _all_or_none_more(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Do work at once; when one part fails, stop the others before its error goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Copier:
    """Copies single states."""

    def __init__(self, source: Storage, target: Storage, on_existing: OnExisting) -> None:
        self._source = source
        self._target = target
        self._on_existing: OnExisting = on_existing

    async def copy(self, scope: StateScope) -> tuple[Outcome, int]:
        """Copy one state; return what became of it, and how many items that took."""
        for _ in range(TRIES):
            original = await self._source.read(scope, EVERYTHING)
            if not original.birth:
                return "gone", 0
            there = await self._target.read(scope, NOTHING)
            if _is_same(original, there):
                await self._compare(original, there)
                return "same", 0
            if there.birth and not await self._may_replace(there):
                return "skipped", 0
            try:
                items = await self._store(original, there)
            except ConflictError:
                continue  # one of the two changed meanwhile: look again
            if items is not None:
                return "copied", items
        raise ConflictError(
            f"{scope} changed {TRIES} times while it was being copied.",
            scope=scope,
            what="the state",
            remedy="Copy it when less is going on.",
        )

    async def _may_replace(self, there: Snapshot) -> bool:
        assert there.stamp is not None
        if there.updated_at == UNFINISHED or self._on_existing == "replace":
            return True
        last = await self._target.journal(there.scope, after=there.stamp.version - 1, limit=1)
        if last and decode_record(last[0].record).get("operation") == OPERATION:
            return True  # it is a copy, and nobody has changed it
        if self._on_existing == "skip":
            return False
        raise ConflictError(
            f"{there.scope} is in {self._target.location} already, and is no copy.",
            scope=there.scope,
            found=there.stamp,
            what="the state",
            remedy="Say on_existing= (--on-existing): 'skip' leaves what is there, 'replace' replaces it.",
        )

    async def _store(self, original: Snapshot, there: Snapshot) -> int | None:
        """Store one state; return how many items it has, or ``None`` if what was read is no one version of it."""
        assert original.stamp is not None
        firsts = {name: view.first for name, view in original.logs.items()}
        batch = _Batch(original)
        seen = blake2b(digest_size=16)
        async for one in _contents(self._source, original):
            if batch.size >= COMMIT_BYTES:
                await self._commit(batch, there, Kept(0, original.created_at, UNFINISHED, firsts))
            batch.add(one)
            seen.update(one.told())
        after = await self._source.read(original.scope, NOTHING)
        if after.stamp != original.stamp:
            return None
        kept = Kept(original.stamp.version, original.created_at, original.updated_at, firsts)
        await self._commit(batch, there, kept, whole=original)
        await self._compare(original, there, seen.digest())
        return batch.items

    async def _commit(self, batch: _Batch, there: Snapshot, kept: Kept, whole: Snapshot | None = None) -> None:
        """Commit what was gathered, and note what is there then; ``whole`` says that nothing comes after it."""
        part = batch.part(there)
        part.kept = kept
        part.record = encode_record(part, Origin(OPERATION, reason=f"from {self._source.location}"), time.time())
        if whole is not None:
            part.owner, part.parent, part.labels = whole.owner, whole.parent, whole.labels
            part.ttl = KEEP if whole.expires_at is None else max(whole.expires_at - whole.now, SOON)
        (done,) = await self._target.commit([part], commit_id=random_bits(63) or 1)
        there.stamp, there.birth = done.stamp, done.birth

    async def _compare(self, original: Snapshot, copy: Snapshot, seen: bytes | None = None) -> None:
        """Read a copy back and compare it with what was read of its original."""
        if seen is None:
            seen = await _digest(self._source, original)
        found = await self._target.read(original.scope, EVERYTHING)
        if await _digest(self._target, found) == seen:
            return
        now = await self._target.read(original.scope, NOTHING)
        here = await self._source.read(original.scope, NOTHING)
        if now.stamp == copy.stamp and here.stamp == original.stamp:
            raise DamagedStateError(
                f"{original.scope} in {self._target.location} isn't what is in {self._source.location}.",
                remedy="Copy it again with on_existing='replace'; if that says the same, look at the target's disk.",
            )


class _Piece(NamedTuple):
    """An entry (``log`` is ``None``) or an item of a log."""

    section: str
    key: str
    value: bytes | int
    ttl: float | None
    log: str | None = None
    position: int = 0

    def told(self) -> bytes:
        """Return what is compared: of a lifetime only whether there is one, since every storage has its own clock."""
        return repr((self[:3], self.ttl is None, self[4:])).encode()


class _Batch:
    """What goes into the next commit of one state.

    Attributes:
        size: how many bytes that are, about.
        items: how many log items there were so far.
    """

    def __init__(self, original: Snapshot) -> None:
        self.size = self.items = 0
        self._scope = original.scope
        self._begun = False
        self._known: set[tuple[str, str]] = set()
        self._puts: list[Put] = []
        self._increments: list[Increment] = []
        self._appends: list[Append] = []

    def add(self, one: _Piece) -> None:
        """Take an entry or an item."""
        value = one.value
        if one.log is not None and isinstance(value, bytes):
            self.items += 1
            # An id that stands twice was not unique where it comes from.
            unique = (one.log, one.key) not in self._known
            self._known.add((one.log, one.key))
            self._appends.append(Append(one.log, one.key, value, one.ttl, unique))
        elif isinstance(value, bytes):
            self._puts.append(Put(one.section, one.key, value, one.ttl))
        else:
            self._increments.append(Increment(one.section, one.key, value))
        self.size += len(one.key) + (len(value) if isinstance(value, bytes) else 8)

    def part(self, there: Snapshot) -> Part:
        """Return it as a part over what is there, which the first one replaces; and begin the next."""
        part = Part(
            scope=self._scope,
            birth=there.birth,
            base=there.stamp,
            clear=bool(there.birth) and not self._begun,
            puts=self._puts,
            increments=self._increments,
            appends=self._appends,
        )
        self._begun, self.size = True, 0
        self._puts, self._increments, self._appends = [], [], []
        return part


def _entry(section: str, key: str, entry: Entry, now: float) -> _Piece:
    return _Piece(section, key, entry.value, _left(entry.expires_at, now))


def _item(log: str, item: LogItem, now: float) -> _Piece:
    over = item.expires_at is not None and item.expires_at <= now
    return _Piece("", item.id, b"" if over else item.value, _left(item.expires_at, now), log, item.position)


def _left(expires_at: float | None, now: float) -> float | None:
    return None if expires_at is None else max(expires_at - now, SOON)


def _is_same(original: Snapshot, there: Snapshot) -> bool:
    """Whether a copy was finished, and neither has changed since, as far as their heads tell."""
    assert original.stamp is not None
    return (
        there.stamp is not None
        and there.stamp.version >= original.stamp.version
        and there.updated_at == original.updated_at
        and there.created_at == original.created_at
        and (there.owner, there.parent, dict(there.labels)) == (original.owner, original.parent, dict(original.labels))
        and {n: (v.first, v.head) for n, v in there.logs.items()}
        == {n: (v.first, v.head) for n, v in original.logs.items()}
    )


async def _contents(storage: Storage, snapshot: Snapshot) -> AsyncGenerator[_Piece]:
    """Read all of a state, in one order on every engine."""
    if snapshot.complete:
        for (section, key), entry in sorted(snapshot.entries.items()):
            yield _entry(section, key, entry, snapshot.now)
    else:
        for section in sorted(snapshot.sections):
            cursor: str | None = None
            while True:
                page = await storage.scan(snapshot.scope, section, cursor=cursor, limit=PAGE)
                for key, entry in page.entries:
                    yield _entry(section, key, entry, snapshot.now)
                cursor = page.cursor
                if cursor is None:
                    break
    for log, view in sorted(snapshot.logs.items()):
        for start in range(view.first, view.head + 1, PAGE):
            end = min(start + PAGE, view.head + 1)
            for item in (await storage.read_log(snapshot.scope, log, start=start, end=end)).items:
                yield _item(log, item, snapshot.now)


async def _digest(storage: Storage, snapshot: Snapshot) -> bytes:
    seen = blake2b(digest_size=16)
    async for one in _contents(storage, snapshot):
        seen.update(one.told())
    return seen.digest()
