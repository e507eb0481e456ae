"""Turns: one holder at a time, named, in line, and refused when it comes too late."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from agentstate.errors import ConflictError, LeaseLostError
from agentstate.storage.protocol import Lease, LeaseRequest, Part, Put
from agentstate.testing.conformance.case import A, B, StorageCase, commit, need, picture, put, read, value_of
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Snapshot, Storage
    from agentstate.testing.clock import FakeClock


async def ask(
    storage: Storage, nonce: int, scope: StateScope = A, *, seconds: float = 30.0, holder: str = "x"
) -> Snapshot:
    """Ask for the turn once."""
    return await storage.read(scope, EVERYTHING, lease=LeaseRequest(nonce, seconds, holder))


async def held(storage: Storage, scope: StateScope = A, *, seconds: float = 30.0, holder: str = "holder") -> Lease:
    """Take the turn."""
    lease = (await take_turn(storage, scope, holder, seconds=seconds)).lease
    assert lease is not None
    return lease


class LeaseTests(StorageCase):
    """Taking, refusing, renewing, giving back."""

    async def test_taken_with_the_read(self, storage: Storage, clock: FakeClock) -> None:
        """A free turn is taken by the read that asks, which brings the state too."""
        await put(storage, k=b"1")
        found = await ask(storage, 7)
        assert found.lease is not None
        assert (found.lease.scope, found.lease.nonce) == (A, 7)
        assert found.lease.expires_at >= clock() + 29
        assert found.holder is None
        assert found.entries["variables", "k"].value == b"1"

    async def test_turn_of_an_absent_state(self, storage: Storage) -> None:
        """The turn of a state that isn't there can be held, which makes no state."""
        lease = await held(storage)
        assert (await ask(storage, new_id())).lease is None
        assert (await read(storage)).stamp is None
        await commit(storage, puts=[Put("variables", "k", b"1")], birth=0, lease=lease, release=True)
        assert await value_of(storage, "k") == b"1"

    async def test_refused_with_the_holder_named(self, storage: Storage, clock: FakeClock) -> None:
        """Who asks for a held turn gets the holder's name and since when, and nothing of the state."""
        await put(storage, k=b"1")
        since = clock()
        await held(storage, holder="worker 7 é")
        clock.advance(3)
        found = await ask(storage, new_id())
        assert found.lease is None
        assert found.holder is not None
        assert found.holder.holder == "worker 7 é"
        assert found.holder.since == pytest.approx(since, abs=0.01)
        assert (found.stamp, found.entries, found.logs) == (None, {}, {})

    async def test_outsiders_read_and_commit(self, storage: Storage) -> None:
        """Who holds no lease reads and commits while another holds the turn, which then conflicts."""
        first = await put(storage, k=b"1")
        lease = await held(storage)
        await put(storage, k=b"2")
        assert await value_of(storage, "k") == b"2"
        with pytest.raises(ConflictError):
            await commit(storage, base=first.stamp, puts=[Put("variables", "k", b"3")], lease=lease)
        assert await value_of(storage, "k") == b"2"

    async def test_the_same_nonce_renews(self, storage: Storage, clock: FakeClock) -> None:
        """Asking again with the same nonce lengthens the lease and changes no holder."""
        first = (await ask(storage, 7, seconds=10.0)).lease
        clock.advance(8)
        second = (await ask(storage, 7, seconds=10.0)).lease
        assert first is not None
        assert second is not None
        assert second.counter == first.counter
        assert second.expires_at > first.expires_at

    async def test_released_with_the_commit(self, storage: Storage) -> None:
        """A commit that releases gives the turn back in the same step; one that doesn't keeps it."""
        lease = await held(storage)
        await commit(storage, puts=[Put("variables", "k", b"1")], lease=lease)
        assert (await ask(storage, 5)).lease is None
        await storage.leave(A, 5)
        await commit(storage, puts=[Put("variables", "k", b"2")], lease=lease, release=True)
        assert (await ask(storage, new_id())).lease is not None

    async def test_a_conflict_stores_nothing_and_the_turn_can_be_left(self, storage: Storage) -> None:
        """A commit that conflicts writes nothing; leaving afterwards frees the turn."""
        lease = await held(storage)
        with pytest.raises(ConflictError):
            await commit(storage, birth=99, puts=[Put("variables", "k", b"1")], lease=lease, release=True)
        await storage.leave(A, lease.nonce)
        assert (await ask(storage, new_id())).lease is not None
        assert (await read(storage)).stamp is None

    async def test_left(self, storage: Storage) -> None:
        """A turn that was left is free, and nothing was committed."""
        lease = await held(storage)
        await storage.leave(A, lease.nonce)
        assert (await ask(storage, new_id())).lease is not None
        assert (await read(storage)).stamp is None

    async def test_leaving_nothing(self, storage: Storage) -> None:
        """Leaving with a nonce that holds nothing is no error and frees nobody's turn."""
        await storage.leave(A, new_id())
        await held(storage)
        await storage.leave(A, new_id())
        assert (await ask(storage, new_id())).lease is None

    async def test_turns_are_apart(self, storage: Storage) -> None:
        """Turns of two states have nothing to do with one another."""
        lease = await held(storage, A)
        other = await held(storage, B)
        await storage.leave(B, other.nonce)
        assert (await ask(storage, new_id(), A)).lease is None
        await storage.leave(A, lease.nonce)

    async def test_renewed_by_call(self, storage: Storage, clock: FakeClock) -> None:
        """`renew` lengthens many leases at once and says which are still held."""
        mine = await held(storage, A, seconds=10.0)
        other = await held(storage, B, seconds=10.0)
        await storage.leave(B, other.nonce)
        await held(storage, B, seconds=10.0)
        clock.advance(8)
        assert list(await asyncio.to_thread(storage.renew, [mine, other], 10.0)) == [True, False]
        clock.advance(8)
        assert (await ask(storage, new_id(), A)).lease is None

    async def test_in_a_commit_of_several_scopes(self, storage: Storage) -> None:
        """The lease of one scope may carry parts of others."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        lease = await held(storage, A)
        parts = [Part(scope=one, puts=[Put("variables", "k", b"1")]) for one in (B, A)]
        await storage.commit(parts, commit_id=5, lease=lease, release=True)
        assert await value_of(storage, "k", B) == b"1"
        assert (await ask(storage, new_id(), A)).lease is not None


class LateHolderTests(StorageCase):
    """A holder whose lease has run out."""

    async def test_untaken(self, storage: Storage, clock: FakeClock) -> None:
        """A holder whose lease lapsed but was taken by nobody may still commit."""
        lease = await held(storage, seconds=5.0)
        clock.advance(60)
        await commit(storage, puts=[Put("variables", "k", b"1")], lease=lease, release=True)
        assert await value_of(storage, "k") == b"1"

    async def test_taken_over(self, storage: Storage, clock: FakeClock) -> None:
        """A lapsed turn that another took refuses its former holder; one that can't lapse excludes others."""
        await put(storage, k=b"1")
        late = await held(storage, seconds=5.0)
        clock.advance(6)
        other = (await ask(storage, new_id())).lease
        if other is None:
            assert storage.capabilities.leases != "network", "leases across machines must run out"
            await commit(storage, puts=[Put("variables", "k", b"2")], lease=late, release=True)
            return
        assert other.counter > late.counter
        await _refused(storage, late)
        await commit(storage, puts=[Put("variables", "k", b"3")], lease=other, release=True)
        await _refused(storage, late)
        assert await value_of(storage, "k") == b"3"

    async def test_a_late_release_frees_nobody(self, storage: Storage, clock: FakeClock) -> None:
        """The former holder's leave, renewal and commit change nothing for the one who holds."""
        late = await held(storage, seconds=5.0)
        clock.advance(6)
        if (await ask(storage, new_id(), seconds=30.0)).lease is None:
            pytest.skip(f"not declared: leases that run out (leases={storage.capabilities.leases})")
        assert list(await asyncio.to_thread(storage.renew, [late], 30.0)) == [False]
        await storage.leave(A, late.nonce)
        assert (await ask(storage, new_id())).lease is None

    async def test_a_made_up_lease(self, storage: Storage, clock: FakeClock) -> None:
        """A lease that was never given is refused while another holds the turn."""
        mine = await held(storage)
        await _refused(storage, Lease(A, mine.nonce + 1, mine.counter, clock() + 60))
        await _refused(storage, Lease(A, mine.nonce + 1, mine.counter + 1, clock() + 60))

    async def test_all_parts_refused(self, storage: Storage, clock: FakeClock) -> None:
        """A late commit writes none of its parts, in whichever scope."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        mine = await held(storage)
        late = Lease(A, mine.nonce + 1, mine.counter, clock() + 60)
        parts = [Part(scope=one, puts=[Put("variables", "k", b"1")]) for one in (B, A)]
        with pytest.raises(LeaseLostError):
            await storage.commit(parts, commit_id=5, lease=late, release=True)
        assert (await read(storage, B)).stamp is None


async def _refused(storage: Storage, late: Lease) -> None:
    before = await picture(storage)
    with pytest.raises(LeaseLostError):
        await commit(storage, puts=[Put("variables", "k", b"late")], lease=late, release=True)
    assert await picture(storage) == before


class QueueTests(StorageCase):
    """Waiting in line."""

    async def test_first_come_first_served(self, storage: Storage) -> None:
        """Who asked first gets the turn first, also when another asks in between."""
        lease = await held(storage)
        first, second = new_id(), new_id()
        assert (await ask(storage, first)).lease is None
        assert (await ask(storage, second)).lease is None
        await storage.leave(A, lease.nonce)
        assert (await ask(storage, second)).lease is None
        assert await _soon(storage, first)
        assert (await ask(storage, second)).lease is None
        await storage.leave(A, first)
        assert await _soon(storage, second)

    async def test_leaving_the_line(self, storage: Storage) -> None:
        """Who left the line is passed over."""
        lease = await held(storage)
        first, second = new_id(), new_id()
        await ask(storage, first)
        await ask(storage, second)
        await storage.leave(A, first)
        await storage.leave(A, lease.nonce)
        assert await _soon(storage, second)

    async def test_a_dead_waiter_is_skipped(self, storage: Storage, clock: FakeClock) -> None:
        """A waiter that neither waits nor asks any more doesn't keep the others waiting."""
        lease = await held(storage, seconds=60.0)
        await ask(storage, new_id())
        second = new_id()
        await ask(storage, second)
        clock.advance(5)
        await ask(storage, second)
        await storage.leave(A, lease.nonce)
        clock.advance(5)
        assert await _soon(storage, second)

    async def test_waiters_are_served_in_turn(self, live: Storage) -> None:
        """Ten waiting tasks all get the turn, one at a time, in the order they came."""
        served: list[int] = []
        inside = 0

        async def turn(number: int) -> None:
            nonlocal inside
            entered = await take_turn(live, A, f"task {number}")
            inside += 1
            assert inside == 1
            served.append(number)
            await asyncio.sleep(0)
            inside -= 1
            await commit(live, puts=[Put("variables", "k", b"x")], lease=entered.lease, release=True)

        lease = await held(live)
        tasks: list[asyncio.Task[None]] = []
        for number in range(10):
            tasks.append(asyncio.create_task(turn(number)))
            # Each stands in line before the next comes: its first read was refused.
            await asyncio.sleep(0.02)
        await live.leave(A, lease.nonce)
        await asyncio.gather(*tasks)
        assert served == list(range(10))

    async def test_wait_turn_returns(self, storage: Storage) -> None:
        """`wait_turn` returns at once when the turn is free, else after its seconds at the latest."""
        started = time.monotonic()
        await storage.wait_turn(A, new_id(), 20.0)
        lease = await held(storage)
        nonce = new_id()
        await ask(storage, nonce)
        await storage.wait_turn(A, nonce, 0.05)
        assert time.monotonic() - started < 15
        await storage.leave(A, lease.nonce)

    async def test_woken(self, live: Storage) -> None:
        """Who waits for a turn is woken long before its patience ends."""
        lease = await held(live)
        nonce = new_id()
        await ask(live, nonce)
        waiting = asyncio.create_task(live.wait_turn(A, nonce, 60.0))
        await asyncio.sleep(0.05)
        await live.leave(A, lease.nonce)
        started = time.monotonic()
        while (await ask(live, nonce)).lease is None:
            await asyncio.wait({waiting}, timeout=0.05)
            assert time.monotonic() - started < 20
        await asyncio.wait_for(waiting, 20)


class SharedTurnTests(StorageCase):
    """Turns between two instances that are open on the same data."""

    async def test_excluded(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """A turn taken by one instance is held for the other, until it is given back."""
        need(storage.capabilities.shared, "shared")
        other = await another(clock)
        lease = await held(storage)
        nonce = new_id()
        found = await ask(other, nonce)
        assert found.lease is None
        assert found.holder is not None
        await storage.leave(A, lease.nonce)
        assert await _soon(other, nonce)
        assert (await ask(storage, new_id())).lease is None

    async def test_closing_gives_back(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """An instance that closes gives its turns back."""
        need(storage.capabilities.shared, "shared")
        other = await another(clock)
        await held(other)
        await other.close()
        assert await _soon(storage, new_id())


async def _soon(storage: Storage, nonce: int) -> bool:
    deadline = time.monotonic() + 15
    while (await ask(storage, nonce)).lease is None:
        if time.monotonic() > deadline:
            return False
        await storage.wait_turn(A, nonce, 0.2)
    return True
