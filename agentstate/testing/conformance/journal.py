"""The journal of a state, the feed of a partition, and what failed turns leave."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from agentstate.errors import ConflictError
from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    FAILURE_COUNT,
    FAILURE_SECONDS,
    Append,
    CutTail,
    EditItem,
    Increment,
    Part,
    Put,
    TrimHead,
)
from agentstate.testing.conformance.case import A, B, StorageCase, commit, need, put, read
from agentstate.testing.turns import new_id, take_turn

if TYPE_CHECKING:
    from agentstate.storage.protocol import FeedItem, Storage
    from agentstate.testing.clock import FakeClock


async def feed_of(storage: Storage, scope: StateScope = A, *, limit: int = 100) -> list[FeedItem]:
    """Return the feed of a scope's partition, page by page."""
    partition = scope.partition(storage.capabilities.partitions)
    items: list[FeedItem] = []
    while page := await storage.feed(partition, after=items[-1].cursor if items else None, limit=limit):
        assert len(page) <= limit
        items += page
    return items


class JournalTests(StorageCase):
    """`Part.record` and `Storage.journal`."""

    async def test_no_journal(self, storage: Storage) -> None:
        """An absent state has no journal; a commit without a record leaves none."""
        assert await storage.journal(A) == ()
        await put(storage, k=b"1")
        assert await storage.journal(A) == ()

    @pytest.mark.parametrize("record", [b"{}", b"", bytes(range(256)), b"x" * 100_000])
    async def test_record_comes_back(self, storage: Storage, clock: FakeClock, record: bytes) -> None:
        """A record comes back byte for byte, with the commit's stamp and time."""
        done = await commit(storage, puts=[Put("variables", "k", b"1")], record=record)
        (found,) = await storage.journal(A)
        assert (found.stamp, found.record) == (done.stamp, record)
        assert found.at == pytest.approx(clock(), abs=0.01)
        assert (dict(found.ranges), dict(found.removed)) == ({}, {})

    async def test_journal_pages(self, storage: Storage) -> None:
        """Records come oldest first, after a version, at most so many."""
        for n in range(1, 8):
            await commit(storage, puts=[Put("variables", "k", b"1")], record=b"%d" % n if n != 4 else None)
        assert [one.record for one in await storage.journal(A)] == [b"1", b"2", b"3", b"5", b"6", b"7"]
        assert [one.record for one in await storage.journal(A, after=2)] == [b"3", b"5", b"6", b"7"]
        assert [one.record for one in await storage.journal(A, after=2, limit=2)] == [b"3", b"5"]
        assert await storage.journal(A, after=7) == ()

    async def test_ranges(self, storage: Storage) -> None:
        """A record names the first and last sequence number it added to each log."""
        first = [Append("history", f"m{n}", b"x", unique=True) for n in range(3)]
        await commit(storage, appends=[*first, Append("events", "e", b"x")], record=b"1")
        again = [Append("history", "m0", b"again", unique=True), Append("history", "m3", b"x")]
        await commit(storage, appends=again, record=b"2")
        ranges = [dict(one.ranges) for one in await storage.journal(A)]
        assert ranges == [{"history": (1, 3), "events": (1, 1)}, {"history": (4, 4)}]

    async def test_removed_items(self, storage: Storage) -> None:
        """A record holds the items that its commit cut, trimmed or edited, as they were."""
        await commit(storage, appends=[Append("history", f"m{n}", b"%d" % n) for n in range(1, 7)], record=b"0")
        items = (await storage.read_log(A, "history")).items
        await commit(
            storage,
            cuts=[CutTail("history", 6)],
            trims=[TrimHead("history", 2)],
            edits=[EditItem("history", 3, 3, b"new")],
            record=b"1",
        )
        removed = dict((await storage.journal(A))[-1].removed)
        assert set(removed) == {"history"}
        assert sorted(removed["history"]) == [items[0], items[2], items[5]]

    async def test_contiguous(self, storage: Storage) -> None:
        """Twenty concurrent commits leave twenty records with the versions 1 to 20."""
        calls = [commit(storage, increments=[Increment("variables", "n", 1)], record=b"%d" % n) for n in range(20)]
        done = await asyncio.gather(*calls)
        records = await storage.journal(A)
        assert [one.stamp.version for one in records] == list(range(1, 21))
        assert {one.stamp: one.record for one in records} == {one.stamp: b"%d" % n for n, one in enumerate(done)}

    async def test_of_each_part(self, storage: Storage) -> None:
        """Each part of a commit has its own record in its own state."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        await storage.commit([Part(scope=A, record=b"a"), Part(scope=B, record=b"b")], commit_id=5)
        assert [one.record for one in await storage.journal(A)] == [b"a"]
        assert [one.record for one in await storage.journal(B)] == [b"b"]


class FeedTests(StorageCase):
    """`Storage.feed`."""

    async def test_every_commit(self, storage: Storage, clock: FakeClock) -> None:
        """Every commit is in the feed of its partition, with or without a record."""
        stamps = [(await commit(storage, record=record)).stamp for record in (None, b"r", None)]
        items = [item for item in await feed_of(storage) if item.scope == A]
        assert [item.stamp for item in items] == stamps
        assert items[0].at == pytest.approx(clock(), abs=0.01)

    async def test_after(self, storage: Storage) -> None:
        """A feed goes on after a cursor, once per commit, also for what came in between."""
        await put(storage, k=b"1")
        await put(storage, k=b"2")
        partition = A.partition(storage.capabilities.partitions)
        items = await storage.feed(partition, limit=1)
        await put(storage, k=b"3")
        while page := await storage.feed(partition, after=items[-1].cursor, limit=1):
            items += page
        assert [item.stamp.version for item in items if item.stamp is not None] == [1, 2, 3]
        assert len({item.cursor for item in items}) == 3
        assert await storage.feed(partition, after=items[-1].cursor) == ()

    async def test_commit_order(self, storage: Storage) -> None:
        """Concurrent commits to scopes of one partition: the feed has each state's versions in order."""
        count = storage.capabilities.partitions
        home = A.partition(count)
        ids = (f"f-{n}" for n in range(100_000))
        near = [one for one in map(StateScope.conversation, ids) if one.partition(count) == home][:4]
        await asyncio.gather(*(commit(storage, near[n % 4]) for n in range(40)))
        versions: dict[StateScope, list[int]] = defaultdict(list)
        for item in await feed_of(storage, limit=7):
            assert item.stamp is not None
            versions[item.scope].append(item.stamp.version)
        assert versions == {scope: list(range(1, 11)) for scope in near}

    async def test_followed_while_written(self, storage: Storage) -> None:
        """A follower that polls while others commit sees every commit once."""
        partition = A.partition(storage.capabilities.partitions)
        seen: list[FeedItem] = []

        async def follow() -> None:
            while len(seen) < 30:
                seen.extend(await storage.feed(partition, after=seen[-1].cursor if seen else None, limit=5))
                await asyncio.sleep(0)

        async def write() -> None:
            for _ in range(10):
                await commit(storage)

        async with asyncio.timeout(20):
            await asyncio.gather(follow(), write(), write(), write())
        assert [item.stamp.version for item in seen if item.stamp is not None] == list(range(1, 31))

    async def test_empty_feed(self, storage: Storage) -> None:
        """A partition that nobody committed to has an empty feed."""
        assert await storage.feed(0) == ()

    async def test_a_refused_commit_isnt_in_it(self, storage: Storage) -> None:
        """A refused commit leaves no trace."""
        await put(storage, k=b"1")
        with pytest.raises(ConflictError):
            await commit(storage, base=None, record=b"r")
        assert len(await feed_of(storage)) == 1
        assert await storage.journal(A) == ()


class FailureTests(StorageCase):
    """What `Storage.leave` keeps of a failed turn."""

    async def test_failures_kept(self, storage: Storage) -> None:
        """The records of failed turns come back byte for byte, oldest first; the state stays as it was."""
        done = await put(storage, k=b"1")
        for record in (b"first", bytes(range(256))):
            entered = await take_turn(storage, A, "turn")
            assert entered.lease is not None
            await storage.leave(A, entered.lease.nonce, failure=record)
        assert await storage.failures(A) == (b"first", bytes(range(256)))
        assert (await read(storage)).stamp == done.stamp

    async def test_failure_of_an_absent_state(self, storage: Storage) -> None:
        """A first turn that failed leaves its record, and no state."""
        await storage.leave(A, new_id(), failure=b"failed")
        assert await storage.failures(A) == (b"failed",)
        assert await storage.failures(B) == ()
        assert (await read(storage)).stamp is None

    async def test_the_last_twenty(self, storage: Storage) -> None:
        """Only so many are kept, the newest."""
        for n in range(FAILURE_COUNT + 5):
            await storage.leave(A, new_id(), failure=b"%d" % n)
        assert await storage.failures(A) == tuple(b"%d" % n for n in range(5, FAILURE_COUNT + 5))

    async def test_for_a_week(self, storage: Storage, clock: FakeClock) -> None:
        """They are kept for a week."""
        await put(storage, k=b"1")
        await storage.leave(A, new_id(), failure=b"old")
        clock.advance(FAILURE_SECONDS - 60)
        await storage.leave(A, new_id(), failure=b"new")
        assert await storage.failures(A) == (b"old", b"new")
        clock.advance(120)
        assert await storage.failures(A) == (b"new",)
