"""Removing: dropping a state on condition, and sweeping what has expired in bounded steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, LeaseRequest, Put, ScopeQuery, Stamp
from agentstate.testing.conformance.case import A, B, StorageCase, commit, live_items, log_of, put, read, value_of
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from agentstate.storage.protocol import FeedItem, Storage, Swept
    from agentstate.testing.clock import FakeClock


async def sweep_all(storage: Storage, limit: int = 100) -> list[Swept]:
    """Sweep until nothing expired is left; each step must be bounded."""
    steps: list[Swept] = []
    while not steps or not steps[-1].done:
        steps.append(await storage.sweep(limit))
        assert len(steps[-1].scopes) + steps[-1].entries + steps[-1].items <= limit
        assert len(steps) < 2000, "the sweep doesn't come to its end"
    return steps


async def whole_feed(storage: Storage) -> list[FeedItem]:
    """Return the feeds of all partitions, one after another."""
    items: list[FeedItem] = []
    for partition in range(storage.capabilities.partitions):
        after: str | None = None
        while page := await storage.feed(partition, after=after):
            items += page
            after = page[-1].cursor
    return items


class DropTests(StorageCase):
    """`Storage.drop`."""

    async def test_drop(self, storage: Storage) -> None:
        """A dropped state is absent, with its logs, keys, journal and failures; others stay."""
        appends = [Append("history", "m", b"1", unique=True)]
        await commit(storage, puts=[Put("variables", "k", b"1")], appends=appends, record=b"r", owner="ada")
        await commit(storage, B, puts=[Put("variables", "k", b"1")], appends=appends)
        await storage.leave(A, new_id(), failure=b"failed")
        assert await storage.drop(A) is True
        found = await read(storage)
        assert (found.stamp, found.entries, found.logs) == (None, {}, {})
        assert await storage.journal(A) == ()
        assert await storage.failures(A) == ()
        assert await storage.find_item(A, "history", "m") is None
        assert [info.scope for info in (await storage.scopes(ScopeQuery())).items] == [B]
        assert (await storage.scopes(ScopeQuery(owner="ada"))).items == ()

    async def test_drop_of_nothing(self, storage: Storage) -> None:
        """Dropping an absent, dropped or expired state says that nothing was removed."""
        assert await storage.drop(A) is False
        await put(storage, k=b"1")
        assert await storage.drop(A) is True
        assert await storage.drop(A) is False

    async def test_drop_on_condition(self, storage: Storage) -> None:
        """A drop with a stamp removes the state only while it has that stamp, whole."""
        first = await put(storage, k=b"1")
        second = await put(storage, k=b"2")
        assert second.stamp is not None
        assert await storage.drop(A, stamp=first.stamp) is False
        assert await storage.drop(A, stamp=Stamp(2, second.stamp.commit_id - 1)) is False
        assert await value_of(storage, "k") == b"2"
        assert await storage.drop(A, stamp=second.stamp) is True

    async def test_drop_against_a_held_turn(self, storage: Storage) -> None:
        """A drop loses against whoever holds the turn, and wins when it was given back."""
        done = await put(storage, k=b"1")
        entered = await take_turn(storage, A, "holder")
        assert await storage.drop(A) is False
        assert await storage.drop(A, stamp=done.stamp) is False
        assert await value_of(storage, "k") == b"1"
        assert entered.lease is not None
        await storage.leave(A, entered.lease.nonce)
        assert await storage.drop(A, stamp=done.stamp) is True

    async def test_the_version_goes_on(self, storage: Storage) -> None:
        """A state made again within a lease's lifetime doesn't repeat a version."""
        first = await put(storage, k=b"1")
        await storage.drop(A)
        second = await put(storage, k=b"1")
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version > first.stamp.version

    async def test_the_feed_tells(self, storage: Storage) -> None:
        """A drop is in the feed, without a stamp."""
        await put(storage, k=b"1")
        await storage.drop(A)
        assert [item.stamp is None for item in await whole_feed(storage) if item.scope == A] == [False, True]


class SweepTests(StorageCase):
    """`Storage.sweep`."""

    async def test_nothing_to_sweep(self, storage: Storage) -> None:
        """A sweep of what hasn't expired removes nothing and is done."""
        await commit(storage, puts=[Put("variables", "k", b"1", ttl=50.0)], ttl=100.0)
        assert await storage.sweep() == ((), 0, 0, True)
        assert await value_of(storage, "k") == b"1"

    async def test_expired_scopes(self, storage: Storage, clock: FakeClock) -> None:
        """Expired states are removed and named; others stay."""
        await commit(storage, A, puts=[Put("variables", "k", b"1")], ttl=10.0)
        await commit(storage, B, puts=[Put("variables", "k", b"1")], ttl=100.0)
        clock.advance(11)
        steps = await sweep_all(storage)
        assert [scope for step in steps for scope in step.scopes] == [A]
        assert await value_of(storage, "k", B) == b"1"

    async def test_through_the_feed(self, storage: Storage, clock: FakeClock) -> None:
        """An expired state that is swept is in the feed as a drop."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(11)
        await sweep_all(storage)
        assert [item.stamp is None for item in await whole_feed(storage) if item.scope == A] == [False, True]

    async def test_bounded(self, storage: Storage, clock: FakeClock) -> None:
        """A sweep removes no more than its limit at a time, and everything in the end."""
        for n in range(12):
            scope = StateScope.conversation(f"c-{n}")
            await commit(storage, scope, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(11)
        first = await storage.sweep(5)
        assert len(first.scopes) <= 5
        assert not first.done
        rest = [scope for step in await sweep_all(storage, 5) for scope in step.scopes]
        assert len({*first.scopes, *rest}) == 12

    async def test_entries_and_items(self, storage: Storage, clock: FakeClock) -> None:
        """Expired entries and items lose their bytes; the live ones keep everything."""
        puts = [Put("variables", f"k{n}", b"x" * 100, ttl=10.0 if n % 2 else None) for n in range(10)]
        appends = [Append("history", f"m{n}", b"x" * 100, ttl=10.0 if n % 2 else None) for n in range(10)]
        await commit(storage, puts=puts, appends=appends)
        clock.advance(11)
        steps = await sweep_all(storage)
        assert (sum(step.entries for step in steps), sum(step.items for step in steps)) == (5, 5)
        found = await read(storage)
        assert found.entry_bytes < 700
        assert found.logs["history"].size == 500
        page = await storage.read_log(A, "history")
        assert [item.position for item in live_items(page.items, clock())] == [1, 3, 5, 7, 9]
        assert all(item.value == b"" for item in page.items if item.expires_at is not None)

    async def test_entries_and_items_bounded(self, storage: Storage, clock: FakeClock) -> None:
        """Entries and items count towards the limit."""
        await commit(
            storage,
            puts=[Put("variables", f"k{n}", b"x", ttl=10.0) for n in range(7)] + [Put("variables", "kept", b"x")],
            appends=[Append("history", f"m{n}", b"x", ttl=10.0) for n in range(7)],
        )
        clock.advance(11)
        steps = await sweep_all(storage, 4)
        assert sum(step.entries + step.items for step in steps) == 14
        assert await value_of(storage, "kept") == b"x"

    async def test_a_swept_log_goes_on(self, storage: Storage, clock: FakeClock) -> None:
        """Items appended after a sweep go on in position and number, and tails are right."""
        await commit(storage, appends=[Append("history", f"m{n}", b"%d" % n, ttl=10.0) for n in range(1, 4)])
        clock.advance(11)
        await sweep_all(storage)
        done = await commit(storage, appends=[Append("history", "m4", b"4")])
        assert (done.logs["history"].head, done.logs["history"].next_seq) == (4, 5)
        assert await _live_values(storage, clock) == [b"4"]

    async def test_not_a_held_turn(self, storage: Storage, clock: FakeClock) -> None:
        """What belongs to a held turn isn't swept until the turn is given back."""
        await commit(storage, puts=[Put("variables", "k", b"1", ttl=10.0)], appends=[Append("history", "m", b"1")])
        entered = await take_turn(storage, A, "holder", seconds=60.0)
        clock.advance(11)
        assert (await storage.sweep()).entries == 0
        assert entered.lease is not None
        await storage.leave(A, entered.lease.nonce)
        assert sum(step.entries for step in await sweep_all(storage)) == 1
        assert await log_of(storage) == [b"1"]

    async def test_a_held_scope(self, storage: Storage, clock: FakeClock) -> None:
        """A state that expired while absent hands hold its turn isn't removed under them."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(9)
        held = await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "holder"))
        assert held.lease is not None
        clock.advance(5)
        assert A not in (await storage.sweep()).scopes
        await commit(storage, birth=held.birth, puts=[Put("variables", "new", b"1")], lease=held.lease, release=True)
        assert set((await read(storage)).entries) == {("variables", "k"), ("variables", "new")}

    async def test_a_state_made_anew_isnt_swept(self, storage: Storage, clock: FakeClock) -> None:
        """A state that expired and was made again without a lifetime stays."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(11)
        await commit(storage, puts=[Put("variables", "k", b"2")])
        await sweep_all(storage)
        assert await value_of(storage, "k") == b"2"

    async def test_a_prolonged_state_isnt_swept(self, storage: Storage, clock: FakeClock) -> None:
        """A state whose lifetime was pushed on isn't swept at its first date."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(8)
        await commit(storage, ttl=10.0)
        clock.advance(8)
        assert (await storage.sweep()).scopes == ()
        assert await value_of(storage, "k") == b"1"


async def _live_values(storage: Storage, clock: FakeClock) -> list[bytes]:
    page = await storage.read_log(A, "history")
    return [item.value for item in live_items(page.items, clock())]
