"""Turns on Valkey: the line, waking, polling, renewing, and expiry under a turn."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Increment, LeaseRequest, OnceRecord, Part, Put
from agentstate.storage.valkey import ValkeyStorage, turns
from agentstate.testing import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.servers import ValkeyServer

C = StateScope.conversation("c-1")
ADD = [Part(scope=C, increments=[Increment("variables", "n", 1)])]


@pytest.fixture
async def make(valkey_server, valkey_prefix):
    """Return a maker of storages on this test's data, each as if it were another process."""
    made = []

    def make(clock=None, **settings):
        made.append(ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def ask(storage, nonce, scope=C):
    """Ask for the turn."""
    return await storage.read(scope, EVERYTHING, lease=LeaseRequest(nonce, 30.0, f"holder-{nonce}"))


class TestLine:
    """Who comes next."""

    async def test_first_come_first_served(self, make):
        """The turn goes down the line in its order; who gives back goes to its end."""
        clock = FakeClock()
        storage = make(clock)
        assert (await ask(storage, 1)).lease is not None
        for nonce in (2, 3):
            assert (await ask(storage, nonce)).holder.holder == "holder-1"
        await storage.leave(C, 1)
        assert (await ask(storage, 1)).lease is None
        assert (await ask(storage, 3)).holder.holder == "holder-2"
        assert (await ask(storage, 2)).lease is not None
        await storage.leave(C, 2)
        assert (await ask(storage, 3)).lease is not None
        await storage.leave(C, 3)
        assert (await ask(storage, 1)).lease is not None

    async def test_the_dead_are_passed_over(self, make):
        """Who hasn't been seen for a second is passed over, in line and when it doesn't claim its turn."""
        clock = FakeClock()
        storage = make(clock)
        for nonce in (1, 2, 3):
            await ask(storage, nonce)
            clock.advance(0.4)
        await ask(storage, 3)
        clock.advance(0.4)
        await storage.leave(C, 1)
        # 2 was last seen 1.2 s ago, 3 just now: it's the turn of 3, who doesn't claim it.
        assert (await ask(storage, 4)).holder.holder == "holder-3"
        clock.advance(1.1)
        assert (await ask(storage, 4)).lease is not None

    async def test_waiting_keeps_the_place(self, make):
        """A waiter keeps its place by waiting, however long the holder takes."""
        clock = FakeClock()
        storage = make(clock)
        held = await ask(storage, 1)
        await ask(storage, 2)
        for _ in range(5):
            clock.advance(0.9)
            await storage.wait_turn(C, 2, 0.001)
        await ask(storage, 3)
        await storage.commit(ADD, commit_id=new_id(), lease=held.lease, release=True)
        assert (await ask(storage, 3)).lease is None
        assert (await ask(storage, 2)).lease is not None

    async def test_holders_text(self, make):
        """Whatever a holder calls itself comes back, and can't break the line."""
        storage = make()
        await storage.read(C, EVERYTHING, lease=LeaseRequest(1, 30.0, "a 1 2\nü 😀"))
        await ask(storage, 2)
        await ask(storage, 3)
        assert (await ask(storage, 4)).holder.holder == "a 1 2 ü 😀"
        await storage.leave(C, 1)
        assert (await ask(storage, 3)).holder.holder == "holder-2"

    async def test_counter(self, make):
        """The lease's counter rises with each change of holder and not with renewals."""
        storage = make()
        first = (await ask(storage, 1)).lease.counter
        assert (await ask(storage, 1)).lease.counter == first
        await storage.leave(C, 1)
        await storage.commit(ADD, commit_id=new_id())
        second = (await ask(storage, 2)).lease.counter
        await storage.leave(C, 2)
        assert (await ask(storage, 3)).lease.counter == second + 1

    async def test_nothing_is_left_behind(self, make, valkey_server, valkey_prefix):
        """A turn on a state that never came to be leaves no key."""
        storage = make()
        await ask(storage, 1)
        (key,) = valkey_server.ask("KEYS", f"{valkey_prefix}*state:*")
        assert valkey_server.ask("TTL", key) > 3000
        await storage.leave(C, 1)
        assert valkey_server.ask("KEYS", f"{valkey_prefix}*state:*") == []


class TestWaking:
    """Waiters are woken, and poll where they can't be."""

    async def waited(self, server, first, second, scope=C):
        """Return how long the second storage waits after the first has given the turn back."""
        held = await ask(first, 1, scope)
        await ask(second, 2, scope)
        asked = server.calls()["evalsha"]
        waiting = asyncio.create_task(second.wait_turn(scope, 2, 20.0))
        for _ in range(2000):
            if server.calls()["evalsha"] > asked:
                break
            await asyncio.sleep(0.005)
        started = time.monotonic()
        part = Part(scope=scope, puts=[Put("variables", "k", b"1")])
        await first.commit([part], commit_id=new_id(), lease=held.lease, release=True)
        await waiting
        waited = time.monotonic() - started
        assert (await ask(second, 2, scope)).lease is not None
        await second.leave(scope, 2)
        return waited

    async def test_woken(self, make, valkey_server, monkeypatch):
        """A waiter is woken by the commit that gives the turn back, long before it would poll."""
        monkeypatch.setattr(turns, "WOKEN_POLL", 15.0)
        assert await self.waited(valkey_server, make(), make()) < 10

    async def test_polling(self, make, valkey_server):
        """With one connection a waiter can't be woken, and gets its turn by polling."""
        assert await self.waited(valkey_server, make(), make(max_connections=1)) < 10

    async def test_without_the_right_to_publish(self, valkey_prefix):
        """Where publishing is forbidden commits succeed all the same, and waiters poll."""
        with ValkeyServer() as server:
            server.ask("ACL", "SETUSER", "default", "resetchannels")
            first, second = (ValkeyStorage(server.url, key_prefix=valkey_prefix) for _ in "12")
            assert await self.waited(server, first, second) < 10
            await first.close()
            await second.close()

    async def test_a_lost_subscription(self, make, valkey_server):
        """A subscription that broke is made anew by the next waiter."""
        first, second = make(), make(client_name="subscriber")
        await self.waited(valkey_server, first, second)
        for line in valkey_server.ask("CLIENT", "LIST").decode().splitlines():
            if "name=subscriber" in line and "cmd=subscribe" in line:
                valkey_server.ask("CLIENT", "KILL", "ID", line.split(" ")[0].removeprefix("id="))
        assert await self.waited(valkey_server, first, second, StateScope.user("u")) < 10

    async def test_a_lapsed_lease(self, make):
        """A waiter returns when the holder's lease has run out, with nobody to wake it."""
        storage = make()
        await storage.read(C, EVERYTHING, lease=LeaseRequest(1, 0.3, "dead"))
        await ask(storage, 2)
        started = time.monotonic()
        await storage.wait_turn(C, 2, 20.0)
        assert 0.1 < time.monotonic() - started < 10
        assert (await ask(storage, 2)).lease is not None

    async def test_fairness(self, make):
        """Four that queue for one state, as four processes would, each get their share."""
        shares = [0, 0, 0, 0]

        async def queue(number):
            storage = make()
            while sum(shares) < 400:
                entered = await take_turn(storage, C, f"process {number}")
                shares[number] += 1
                await storage.commit(ADD, commit_id=new_id(), lease=entered.lease, release=True)

        await asyncio.gather(*map(queue, range(4)))
        assert min(shares) >= 50


class TestRenewal:
    """Keeping a turn, and its state, alive."""

    async def test_a_thread_renews(self, make):
        """Renewing needs no event loop: it works from a thread while the loop is blocked."""
        storage = make()
        held = [(await ask(storage, nonce, StateScope.user(str(nonce)))).lease for nonce in (1, 2)]
        await storage.leave(StateScope.user("2"), 2)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(storage.renew, held, 60.0).result() == [True, False]
        assert storage.renew([], 60.0) == []

    async def test_a_broken_connection(self, make, valkey_server):
        """The blocking connection is made anew when it has broken."""
        storage = make(client_name="renewing")
        lease = (await ask(storage, 1)).lease
        for _ in range(3):
            assert storage.renew([lease], 60.0) == [True]
            for line in valkey_server.ask("CLIENT", "LIST").decode().splitlines():
                if "name=renewing" in line:
                    valkey_server.ask("CLIENT", "KILL", "ID", line.split(" ")[0].removeprefix("id="))

    async def test_a_renewed_turn_keeps_its_state(self, make):
        """A state doesn't expire under a turn that is renewed, on either clock."""
        clock = FakeClock()
        storage = make(clock)
        part = Part(scope=C, puts=[Put("variables", "k", b"1")], ttl=10.0)
        await storage.commit([part], commit_id=new_id())
        held = await ask(storage, 1)
        for _ in range(10):
            clock.advance(20)
            assert storage.renew([held.lease], 30.0) == [True]
        await storage.commit(ADD, commit_id=new_id(), lease=held.lease, release=True)
        found = await storage.read(C, EVERYTHING)
        assert set(found.entries) == {("variables", "k"), ("variables", "n")}

    async def test_an_expired_state_under_a_turn(self, make, valkey_server, valkey_prefix):
        """A turn taken on an expired state keeps its record alive for the turn's length."""
        clock = FakeClock()
        storage = make(clock)
        await storage.commit([Part(scope=C, puts=[Put("variables", "k", b"1")], ttl=1.0)], commit_id=new_id())
        clock.advance(1.5)
        held = await ask(storage, 1)
        (key,) = valkey_server.ask("KEYS", f"{valkey_prefix}*state:*")
        assert valkey_server.ask("PTTL", key) >= 60_000
        (made,) = await storage.commit(ADD, commit_id=new_id(), lease=held.lease, release=True)
        assert set((await storage.read(C, EVERYTHING)).entries) == {("variables", "n")}
        assert (made.stamp.version, valkey_server.ask("PTTL", key)) == (2, -1)


class TestNativeExpiry:
    """The engine's own expiry: a backstop, on every key of a state or on none."""

    async def ttls(self, server, prefix):
        """Return the time left, in ms, of each key of a state."""
        keys = [key for key in server.ask("KEYS", f"{prefix}*conversation:c-1") if b"failures" not in key]
        return {key.decode().rpartition("}")[2].split(":")[0]: server.ask("PTTL", key) for key in keys}

    async def test_twice_the_time_on_all_keys(self, make, valkey_server, valkey_prefix):
        """All keys have it, with twice the lifetime; it goes when the lifetime goes."""
        storage = make(FakeClock())
        append = [Append("history", "m", b"1", unique=True)]
        part = Part(scope=C, puts=[Put("variables", "k", b"1")], appends=append, record=b"r", ttl=100.0)
        await storage.commit([part], commit_id=1, once=OnceRecord("key", "f", 1, b"r"))
        found = await self.ttls(valkey_server, valkey_prefix)
        assert {"state", "entries", "keys", "log", "unique", "known", "journal", "once", "once-times"} == set(found)
        assert all(190_000 < left <= 200_000 for left in found.values())
        await storage.commit([Part(scope=C, appends=[Append("events", "e", b"1")])], commit_id=2)
        assert min((await self.ttls(valkey_server, valkey_prefix)).values()) > 190_000
        await storage.commit([Part(scope=C, ttl=None)], commit_id=3)
        assert set((await self.ttls(valkey_server, valkey_prefix)).values()) == {-1}

    async def test_renewed_rarely(self, make, valkey_server):
        """Sliding expiry renews the engine's only when much of it is used up."""
        clock = FakeClock()
        storage = make(clock)
        part = Part(scope=C, puts=[Put("variables", "k", b"1")], ttl=100.0)
        await storage.commit([part], commit_id=new_id())
        before = valkey_server.calls().get("pexpire", 0)
        for _ in range(10):
            clock.advance(4)
            await storage.commit([part], commit_id=new_id())
        assert valkey_server.calls().get("pexpire", 0) == before
        clock.advance(20)
        await storage.commit([part], commit_id=new_id())
        assert valkey_server.calls().get("pexpire", 0) > before
        assert (await storage.read(C, EVERYTHING)).expires_at == clock() + 100

    async def test_huge_lifetimes(self, make):
        """No lifetime is so long that it breaks a commit."""
        storage = make()
        for ttl in (1e9, 1e15, 1e300):
            await storage.commit([Part(scope=C, puts=[Put("variables", "k", b"1")], ttl=ttl)], commit_id=new_id())
            assert (await storage.read(C, EVERYTHING)).stamp is not None
