"""Connections that break, servers that die: every commit is done once, or known not to be done."""

import asyncio
import itertools
import os
import signal

import pytest

from agentstate.errors import CommitUnknownError, ConflictError, LeaseLostError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Increment, LeaseRequest, OnceRecord, Part, Put, Wants
from agentstate.storage.valkey import ValkeyStorage
from agentstate.storage.valkey import commit as commit_module
from agentstate.testing import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.servers import Proxy, ValkeyServer

C = StateScope.conversation("c-1")
ADD = Increment("variables", "n", 1)
ALL = Wants(tails=(("history", 1000),))


@pytest.fixture
def proxy(valkey_server):
    """Return a line to the server that can be cut."""
    with Proxy(valkey_server.port) as made:
        yield made


@pytest.fixture
async def storage(proxy, valkey_prefix):
    """Return an open storage behind the line."""
    made = ValkeyStorage(f"valkey://127.0.0.1:{proxy.port}", key_prefix=valkey_prefix, socket_timeout=2)
    await made.open()
    yield made
    await made.close()


async def add(storage, number, *, scope=C):
    """Commit one increment and one item."""
    append = Append("history", f"m-{number}", b"x")
    (done,) = await storage.commit([Part(scope=scope, increments=[ADD], appends=[append])], commit_id=new_id())
    return done


async def counted(storage):
    """Return the counter and the items' ids."""
    found = await storage.read(C, ALL)
    return found.entries["variables", "n"].value, [item.id for item in found.logs["history"].items]


class TestLostReplies:
    """The reply is cut off after the server has done its work."""

    @pytest.mark.parametrize("cuts", [1, 2, 3])
    async def test_done_once(self, storage, proxy, cuts):
        """A commit whose reply is lost, even several times, is done once and says what it made."""
        await add(storage, 0)
        proxy.cut_replies = cuts
        done = await add(storage, 1)
        assert proxy.cuts == cuts
        assert (done.stamp.version, done.counters["variables", "n"], done.logs["history"].head) == (2, 2, 2)
        assert await counted(storage) == (2, ["m-0", "m-1"])

    async def test_not_done(self, storage, proxy):
        """A commit that never reached the server is sent again and done."""
        await add(storage, 0)
        proxy.cut_requests = 2
        assert (await add(storage, 1)).counters["variables", "n"] == 2
        assert await counted(storage) == (2, ["m-0", "m-1"])

    async def test_a_birth_and_a_drop(self, storage, proxy):
        """The commit that makes a state and the one that drops it are done once, too."""
        await storage.commit([Part(scope=StateScope.user("warm"), puts=[Put("a", "b", b"1")])], commit_id=new_id())
        proxy.cut_replies = 1
        part = Part(scope=C, birth=0, puts=[Put("variables", "k", b"1")], ttl=60.0, owner="ada", record=b"r")
        (made,) = await storage.commit([part], commit_id=77)
        assert (made.stamp.version, made.birth) == (1, 77)
        assert made.expires_at is not None
        proxy.cut_replies = 1
        (dropped,) = await storage.commit([Part(scope=C, birth=77, clear=True)], commit_id=78)
        assert (dropped.stamp, (await storage.read(C, EVERYTHING)).stamp, proxy.cuts) == (None, None, 2)

    async def test_with_a_turn(self, storage, proxy, valkey_server, valkey_prefix):
        """A commit that gave its turn back and was sent again isn't taken for a late one."""
        await add(storage, 0)
        entered = await take_turn(storage, C, "first")
        check = [Part(scope=C, birth=entered.birth, base=entered.stamp, increments=[ADD])]
        proxy.cut_replies = 1
        (done,) = await storage.commit(check, commit_id=new_id(), lease=entered.lease, release=True)
        assert (done.stamp.version, proxy.cuts) == (2, 1)
        other = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix)
        assert (await take_turn(other, C, "second", patience=2)).stamp == done.stamp
        await other.close()

    async def test_with_once(self, storage, proxy):
        """An idempotency key isn't taken for a repeated delivery when only the commit was sent again."""
        await add(storage, 0)
        proxy.cut_replies = 1
        record = OnceRecord("key", "f", 5, b"result")
        await storage.commit([Part(scope=C, increments=[ADD])], commit_id=5, once=record)
        assert (await storage.read(C, EVERYTHING, once="key")).once.result == b"result"
        with pytest.raises(ConflictError):
            await storage.commit([Part(scope=C, increments=[ADD])], commit_id=6, once=record)

    async def test_a_refusal(self, storage, proxy):
        """A refused commit whose reply is lost is refused again."""
        await add(storage, 0)
        proxy.cut_replies = 1
        with pytest.raises(ConflictError):
            await storage.commit([Part(scope=C, base=None, increments=[ADD])], commit_id=new_id())
        assert await counted(storage) == (1, ["m-0"])

    async def test_other_calls(self, storage, proxy):
        """Looking, taking, leaving and failing survive a lost reply and happen once."""
        await add(storage, 0)
        proxy.cut_replies = 1
        assert (await storage.read(C, ALL)).stamp.version == 1
        proxy.cut_replies = 1
        assert (await take_turn(storage, C, "h")).lease is not None
        proxy.cut_replies = 1
        await storage.leave(C, 5, failure=b"failed")
        assert (await storage.failures(C), proxy.cuts) == ((b"failed",), 3)

    async def test_many_at_once(self, storage, proxy):
        """Of 200 commits to one state, with the line cut again and again, each is done exactly once."""
        await add(storage, "first")
        proxy.cut_replies = 4
        results = await asyncio.gather(*[add(storage, number) for number in range(200)])
        assert proxy.cuts == 4
        total, ids = await counted(storage)
        assert total == 201
        assert sorted(ids[1:]) == sorted(f"m-{number}" for number in range(200))
        assert sorted(done.counters["variables", "n"] for done in results) == list(range(2, 202))
        assert sorted(done.logs["history"].head for done in results) == list(range(2, 202))

    async def test_after_many_other_commits(self, storage, proxy, valkey_server, valkey_prefix):
        """A commit is still known after hundreds of others in its last seconds."""
        other = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix)
        commit_id = new_id()
        part = Part(scope=C, increments=[ADD])
        await storage.commit([part], commit_id=commit_id)
        for start in range(0, 300, 50):
            await asyncio.gather(*[add(other, start + number) for number in range(50)])
        assert (await storage.outcome(C, commit_id)).version == 1
        (again,) = await storage.commit([part], commit_id=commit_id)
        assert (again.stamp.version, again.counters["variables", "n"]) == (1, 1)
        assert (await counted(storage))[0] == 301
        await other.close()

    async def test_what_is_known_stays_little(self, valkey_server, valkey_prefix):
        """Commits are forgotten after 30 seconds when 32 newer ones are known, and not before."""
        clock = FakeClock()
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock)
        ids = [new_id() for _ in range(200)]
        for commit_id in ids:
            clock.advance(2)
            await storage.commit([Part(scope=C, increments=[ADD])], commit_id=commit_id)
        known = [await storage.outcome(C, commit_id) is not None for commit_id in ids]
        assert all(known[-32:])
        assert 32 <= sum(known) <= 66
        await storage.close()


class TestUndecided:
    """What can't be found out in time is said, never guessed."""

    async def test_server_gone(self, storage, proxy, monkeypatch):
        """A commit that was sent to a server that is gone is unknown, and names its id."""
        monkeypatch.setattr(commit_module, "DECIDED_WITHIN", 0.3)
        await add(storage, 0)
        proxy.marker = b"EVAL"
        proxy.cut_requests = 10**6
        with pytest.raises(CommitUnknownError) as caught:
            await storage.commit([Part(scope=C, increments=[ADD])], commit_id=77)
        assert caught.value.commit_id == 77
        proxy.cut_requests = 0
        assert await storage.outcome(C, 77) is None

    async def test_never_sent(self, proxy, valkey_prefix):
        """A commit that could not be sent at all is simply an error: nothing is stored."""
        storage = ValkeyStorage(f"valkey://127.0.0.1:{proxy.port}", key_prefix=valkey_prefix)
        await storage.open()
        proxy.close()
        await next(iter(storage._connections.found().route.nodes())).pipeline.closed
        with pytest.raises(StorageUnavailableError):
            await add(storage, 0)
        await storage.close()


class TestServerLoss:
    """The server forgets its scripts, its connections, its life."""

    async def test_script_flush(self, storage, valkey_server):
        """A server that forgot the scripts is told again, in one more trip."""
        await add(storage, 0)
        valkey_server.ask("SCRIPT", "FLUSH")
        assert (await add(storage, 1)).counters["variables", "n"] == 2
        entered = await take_turn(storage, C, "h")
        valkey_server.ask("SCRIPT", "FLUSH")
        assert storage.renew([entered.lease], 30.0) == [True]
        await storage.leave(C, entered.lease.nonce)

    async def test_killed_connections(self, valkey_server, valkey_prefix):
        """While the server kills connections at any moment, commits are done once each."""
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, client_name="to-be-killed")
        await storage.open()
        done = asyncio.Event()

        async def kill():
            while not done.is_set():
                lines = valkey_server.ask("CLIENT", "LIST").decode().splitlines()
                for line in lines:
                    if "name=to-be-killed" in line:
                        valkey_server.ask("CLIENT", "KILL", "ID", line.split(" ")[0].removeprefix("id="))
                await asyncio.sleep(0.002)

        async def work(worker):
            for number in range(25):
                await add(storage, f"{worker}-{number}")

        killer = asyncio.create_task(kill())
        await asyncio.gather(*map(work, range(8)))
        done.set()
        await killer
        total, ids = await counted(storage)
        assert (total, len(ids), len(set(ids))) == (200, 200, 200)
        await storage.close()

    async def test_a_stopped_server(self):
        """A server that stops answering for a while gets commits several times, and does them once."""
        with ValkeyServer() as server:
            storage = ValkeyStorage(server.url, socket_timeout=0.1, socket_connect_timeout=0.1)
            await add(storage, "first")
            os.kill(server.pid, signal.SIGSTOP)
            try:
                commits = [asyncio.create_task(add(storage, number)) for number in range(20)]
                await asyncio.wait(commits, timeout=0.6)
                assert not any(commit.done() for commit in commits)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            done = await asyncio.gather(*commits)
            assert sorted(one.counters["variables", "n"] for one in done) == list(range(2, 22))
            total, ids = await counted(storage)
            assert (total, len(set(ids)), len(ids)) == (21, 21, 21)
            await storage.close()

    @pytest.mark.crash
    async def test_kill_nine(self):
        """A server with ``appendfsync always`` that is killed -9 loses no acknowledged commit and doubles none."""
        with ValkeyServer(appendonly=True, appendfsync="always") as server:
            storage = ValkeyStorage(server.url, durability="full")
            await storage.open()
            acknowledged = []

            async def work(cycle, worker, enough, until):
                for number in itertools.count():
                    await add(storage, f"{cycle}-{worker}-{number}")
                    acknowledged.append(f"m-{cycle}-{worker}-{number}")
                    if number == 5:
                        enough.set()
                    if until.is_set():
                        return

            for cycle in range(4):
                enough, until = asyncio.Event(), asyncio.Event()
                workers = [asyncio.create_task(work(cycle, worker, enough, until)) for worker in range(8)]
                await enough.wait()
                server.kill()
                await asyncio.to_thread(server.restart)
                until.set()
                await asyncio.gather(*workers)
            found = await storage.read(C, Wants(tails=(("history", 10**6),)))
            ids = [item.id for item in found.logs["history"].items]
            assert len(ids) == len(set(ids)) == found.entries["variables", "n"].value
            assert set(ids) == set(acknowledged)
            await storage.close()

    async def test_a_late_holder(self, valkey_server, valkey_prefix):
        """Whoever was passed over can't commit, though its own connection never noticed anything."""
        clock = FakeClock()
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock)
        late = await take_turn(storage, C, "late")
        clock.advance(31)
        (kept,) = await storage.commit([Part(scope=C, increments=[ADD])], commit_id=new_id(), lease=late.lease)
        assert kept.stamp.version == 1
        taken = await storage.read(C, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "next"))
        assert taken.lease is not None
        with pytest.raises(LeaseLostError):
            await storage.commit([Part(scope=C, increments=[ADD])], commit_id=new_id(), lease=late.lease)
        assert storage.renew([late.lease, taken.lease], 30.0) == [False, True]
        await storage.close()
