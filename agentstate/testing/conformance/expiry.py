"""Expiry of single entries and items, and of whole states: expired is absent, never half."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from agentstate.errors import ConflictError, DamagedStateError
from agentstate.storage.protocol import Append, Check, Increment, LeaseRequest, Part, Put, ScopeQuery
from agentstate.testing.conformance.case import (
    A,
    B,
    StorageCase,
    add,
    commit,
    live_items,
    need,
    put,
    read,
    value_of,
)
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock


class OwnExpiryTests(StorageCase):
    """Entries and items with a lifetime of their own."""

    async def test_entry(self, storage: Storage, clock: FakeClock) -> None:
        """An entry is there until its time, and absent from then on, its neighbour stays."""
        await commit(storage, puts=[Put("variables", "k", b"1", ttl=10.0), Put("variables", "kept", b"2")])
        entry = (await read(storage)).entries["variables", "k"]
        assert entry.expires_at == pytest.approx(clock() + 10, abs=0.01)
        clock.advance(9.9)
        assert await value_of(storage, "k") == b"1"
        clock.advance(0.2)
        assert set((await read(storage)).entries) == {("variables", "kept")}
        assert [key for key, _ in (await storage.scan(A, "variables")).entries] == ["kept"]

    async def test_expired_entries_fill_no_page(self, storage: Storage, clock: FakeClock) -> None:
        """A page of a scan holds live entries, also when expired ones lie between them."""
        puts = [Put("variables", f"k{n:02}", b"x", ttl=None if n % 5 == 0 else 10.0) for n in range(20)]
        await commit(storage, puts=puts)
        clock.advance(11)
        first = await storage.scan(A, "variables", limit=2)
        second = await storage.scan(A, "variables", limit=2, cursor=first.cursor)
        assert [key for key, _ in (*first.entries, *second.entries)] == ["k00", "k05", "k10", "k15"]

    async def test_expired_entry_is_absent_for_checks(self, storage: Storage, clock: FakeClock) -> None:
        """An expired entry conflicts with its old stamp and passes as absent."""
        done = await commit(storage, puts=[Put("variables", "k", b"1", ttl=10.0)])
        clock.advance(11)
        with pytest.raises(ConflictError):
            await commit(storage, checks=[Check("entry", "variables", done.stamp, "k")])
        await commit(storage, checks=[Check("entry", "variables", None, "k")], puts=[Put("variables", "k", b"2")])
        assert await value_of(storage, "k") == b"2"

    async def test_a_put_sets_the_lifetime_anew(self, storage: Storage, clock: FakeClock) -> None:
        """A put without a lifetime removes an earlier one; a put with one begins it now."""
        await commit(storage, puts=[Put("variables", "a", b"1", ttl=10.0), Put("variables", "b", b"1", ttl=10.0)])
        clock.advance(5)
        await commit(storage, puts=[Put("variables", "a", b"2"), Put("variables", "b", b"2", ttl=10.0)])
        clock.advance(9)
        assert await value_of(storage, "a") == await value_of(storage, "b") == b"2"
        clock.advance(2)
        assert set((await read(storage)).entries) == {("variables", "a")}

    async def test_expired_counter_starts_at_zero(self, storage: Storage, clock: FakeClock) -> None:
        """An expired entry is no obstacle to a counter, which starts at 0."""
        await commit(storage, puts=[Put("variables", "n", b"not a counter", ttl=10.0)])
        clock.advance(11)
        assert (await add(storage, by=2)).counters["variables", "n"] == 2

    async def test_item(self, storage: Storage, clock: FakeClock) -> None:
        """An expired item is absent; the others keep their positions and numbers."""
        appends = [Append("history", f"m-{n}", b"%d" % n, ttl=10.0 if n == 2 else None) for n in (1, 2, 3)]
        await commit(storage, appends=appends)
        page = await storage.read_log(A, "history")
        assert page.items[1].expires_at == pytest.approx(clock() + 10, abs=0.01)
        clock.advance(11)
        page = await storage.read_log(A, "history")
        assert [(i.position, i.seq, i.value) for i in live_items(page.items, clock())] == [(1, 1, b"1"), (3, 3, b"3")]

    async def test_item_found_by_id(self, storage: Storage, clock: FakeClock) -> None:
        """An expired item isn't found as a live one by its unique id."""
        await commit(storage, appends=[Append("history", "m-1", b"1", ttl=10.0, unique=True)])
        clock.advance(11)
        found = await storage.find_item(A, "history", "m-1")
        assert found is None or live_items((found,), clock()) == []

    async def test_positions_go_on(self, storage: Storage, clock: FakeClock) -> None:
        """An item appended after others expired takes the next position and number."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"x", ttl=10.0) for n in (1, 2)])
        clock.advance(11)
        done = await commit(storage, appends=[Append("history", "m-3", b"3")])
        assert (done.logs["history"].head, done.logs["history"].next_seq) == (3, 4)
        page = await storage.read_log(A, "history")
        assert [(item.position, item.value) for item in live_items(page.items, clock())] == [(3, b"3")]


class ScopeExpiryTests(StorageCase):
    """The lifetime of a state."""

    async def test_absent_when_expired(self, storage: Storage, clock: FakeClock) -> None:
        """An expired state is absent for every kind of read."""
        await commit(
            storage,
            puts=[Put("variables", "k", b"1")],
            appends=[Append("history", "m", b"1", unique=True)],
            owner="ada",
            ttl=10.0,
            record=b"r",
        )
        clock.advance(9.9)
        assert await value_of(storage, "k") == b"1"
        clock.advance(0.2)
        found = await read(storage)
        assert (found.stamp, found.birth, found.owner, found.entries, found.logs) == (None, 0, None, {}, {})
        assert await storage.read_log(A, "history") == (None, ())
        assert await storage.find_item(A, "history", "m") is None
        assert (await storage.scan(A, "variables")).entries == ()
        assert (await storage.scopes(ScopeQuery())).items == ()
        assert (await storage.scopes(ScopeQuery(owner="ada"))).items == ()

    async def test_sliding(self, storage: Storage, clock: FakeClock) -> None:
        """A sliding lifetime begins anew with each commit that sets it."""
        for _ in range(3):
            done = await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
            assert done.expires_at == pytest.approx(clock() + 10, abs=0.01)
            clock.advance(8)
        assert await value_of(storage, "k") == b"1"
        clock.advance(3)
        assert (await read(storage)).stamp is None

    async def test_fixed(self, storage: Storage, clock: FakeClock) -> None:
        """A fixed lifetime begins with the state, and later commits don't lengthen it."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0, sliding=False)
        end = clock() + 10
        clock.advance(8)
        done = await commit(storage, puts=[Put("variables", "k", b"2")], ttl=10.0, sliding=False)
        assert done.expires_at == pytest.approx(end, abs=0.01)
        clock.advance(3)
        assert (await read(storage)).stamp is None

    async def test_lifetime_kept(self, storage: Storage, clock: FakeClock) -> None:
        """A commit that says nothing leaves the lifetime; a new state then has none."""
        await put(storage, B, k=b"1")
        assert (await read(storage, B)).expires_at is None
        first = await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(5)
        done = await put(storage, k=b"2")
        assert done.expires_at == pytest.approx(first.expires_at, abs=0.01)

    async def test_lifetime_removed(self, storage: Storage, clock: FakeClock) -> None:
        """None removes the lifetime."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        done = await commit(storage, ttl=None)
        assert done.expires_at is None
        clock.advance(1000)
        assert await value_of(storage, "k") == b"1"

    async def test_touched_when_half_is_over(self, storage: Storage, clock: FakeClock) -> None:
        """A read renews a sliding lifetime when less than half is left, and leaves it otherwise."""
        first = await commit(storage, puts=[Put("variables", "k", b"1")], ttl=100.0)
        clock.advance(40)
        found = await storage.read(A, EVERYTHING, touch=100.0)
        assert found.expires_at == pytest.approx(first.expires_at, abs=0.01)
        clock.advance(20)
        found = await storage.read(A, EVERYTHING, touch=100.0)
        assert found.expires_at == pytest.approx(clock() + 100, abs=0.01)
        assert found.stamp == first.stamp
        clock.advance(90)
        assert await value_of(storage, "k") == b"1"

    async def test_touch_gives_no_lifetime(self, storage: Storage, clock: FakeClock) -> None:
        """A read that touches a state without a lifetime, or an absent one, changes nothing."""
        await put(storage, k=b"1")
        assert (await storage.read(A, EVERYTHING, touch=10.0)).expires_at is None
        assert (await storage.read(B, EVERYTHING, touch=10.0)).stamp is None
        clock.advance(11)
        assert await value_of(storage, "k") == b"1"

    async def test_a_commit_makes_a_new_state(self, storage: Storage, clock: FakeClock) -> None:
        """A commit to an expired state makes a new one, with nothing of the old."""
        first = await commit(
            storage,
            puts=[Put("variables", "old", b"1"), Put("metadata", "old", b"1")],
            appends=[Append("history", "m", b"1", unique=True)],
            owner="ada",
            labels={"status": "open"},
            ttl=10.0,
        )
        clock.advance(11)
        second = await put(storage, new=b"2")
        found = await read(storage)
        assert {at: entry.value for at, entry in found.entries.items()} == {("variables", "new"): b"2"}
        assert (found.logs, found.owner, dict(found.labels), found.expires_at) == ({}, None, {}, None)
        assert set(found.sections) == {"variables"}
        assert found.birth == second.birth != first.birth
        assert found.created_at == pytest.approx(clock(), abs=0.01)
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version > first.stamp.version

    @pytest.mark.parametrize("demand", ["birth", "base", "entry", "log"])
    async def test_a_turn_that_read_it_conflicts(self, storage: Storage, clock: FakeClock, demand: str) -> None:
        """A commit that relies on a state which has expired since conflicts and stores no half of it."""
        first = await commit(
            storage, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")], ttl=10.0
        )
        clock.advance(11)
        demands: dict[str, dict[str, Any]] = {
            "birth": {"birth": first.birth},
            "base": {"base": first.stamp},
            "entry": {"checks": [Check("entry", "variables", first.stamp, "k")]},
            "log": {"checks": [Check("log", "history", first.stamp)]},
        }
        with pytest.raises(ConflictError):
            await commit(storage, puts=[Put("variables", "new", b"2")], **demands[demand])
        assert (await read(storage)).stamp is None

    async def test_absent_again_for_a_birth_of_none(self, storage: Storage, clock: FakeClock) -> None:
        """A commit that demands an absent state is done when the state has expired."""
        await commit(storage, puts=[Put("variables", "k", b"1")], ttl=10.0)
        clock.advance(11)
        await commit(storage, birth=0, base=None, puts=[Put("variables", "new", b"2")])
        assert set((await read(storage)).entries) == {("variables", "new")}

    async def test_a_counter_of_an_expired_state(self, storage: Storage, clock: FakeClock) -> None:
        """Counters and logs of an expired state don't go on."""
        await commit(storage, increments=[Increment("variables", "n", 5)], ttl=10.0)
        clock.advance(11)
        assert (await add(storage)).counters["variables", "n"] == 1

    async def test_a_turn_outlives_the_expiry(self, storage: Storage, clock: FakeClock) -> None:
        """Entering a turn pushes the expiry to the end of the lease: its commit finds the state whole."""
        await commit(storage, puts=[Put("variables", "old", b"1")], appends=[Append("history", "m", b"1")], ttl=10.0)
        clock.advance(9)
        entered = await take_turn(storage, A, "turn", seconds=30.0)
        assert entered.stamp is not None
        clock.advance(20)
        await commit(
            storage,
            birth=entered.birth,
            base=entered.stamp,
            puts=[Put("variables", "new", b"2")],
            lease=entered.lease,
            release=True,
        )
        found = await read(storage)
        assert set(found.entries) == {("variables", "old"), ("variables", "new")}
        assert found.logs["history"].head == 1

    async def test_a_renewed_turn_outlives_the_expiry(self, storage: Storage, clock: FakeClock) -> None:
        """Renewing a lease pushes the expiry as entering does."""
        await commit(storage, puts=[Put("variables", "old", b"1")], ttl=10.0)
        clock.advance(5)
        entered = await take_turn(storage, A, "turn", seconds=8.0)
        assert entered.lease is not None
        clock.advance(6)
        assert await asyncio.to_thread(storage.renew, [entered.lease], 30.0) == [True]
        clock.advance(20)
        await commit(storage, birth=entered.birth, puts=[Put("variables", "new", b"2")], lease=entered.lease)
        assert set((await read(storage)).entries) == {("variables", "old"), ("variables", "new")}

    async def test_entering_shortens_nothing(self, storage: Storage) -> None:
        """Entering a turn never shortens a lifetime, nor gives one to a state without."""
        first = await commit(storage, puts=[Put("variables", "k", b"1")], ttl=500.0)
        await put(storage, B, k=b"1")
        one = await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "x"))
        other = await storage.read(B, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "x"))
        assert one.expires_at == pytest.approx(first.expires_at, abs=0.01)
        assert other.expires_at is None


class NativeExpiryTests(StorageCase):
    """The engine's own expiry, a backstop for states that nobody sweeps."""

    async def test_forgotten_whole(self, another: Callable[..., Awaitable[Storage]]) -> None:
        """The engine forgets an expired state by itself, all of it at once.

        The storage's own clock stands still, so that only the engine can make it absent.
        """
        started = time.time()
        storage = await another(lambda: started)
        need(storage.capabilities.native_expiry, "native_expiry")
        part = Part(
            scope=A,
            puts=[Put("variables", f"k{n}", b"x") for n in range(20)],
            appends=[Append("history", f"m{n}", b"x") for n in range(20)],
            ttl=0.2,
        )
        await storage.commit([part], commit_id=1)
        deadline = time.monotonic() + 20
        while True:
            try:
                found = await read(storage)
            except DamagedStateError:
                # Keys of one state may go one by one; what matters is that a reader is told.
                continue
            if found.stamp is None:
                break
            assert (len(found.entries), found.logs["history"].head) == (20, 20)
            assert time.monotonic() < deadline, "the engine has not forgotten an expired state after 20 s"
            await asyncio.sleep(0.05)
        assert (found.entries, found.logs) == ({}, {})
