"""Connections that break, servers that die: every commit is done once, or known not to be done."""

import asyncio
import os

import pytest
from pymongo.uri_parser import parse_uri

from agentstate.errors import (
    CommitUnknownError,
    ConflictError,
    LeaseLostError,
    StorageAccessError,
    StorageUnavailableError,
)
from agentstate.scope import StateScope
from agentstate.storage.mongodb import MongodbStorage, chain
from agentstate.storage.protocol import Append, Increment, LeaseRequest, OnceRecord, Part, Put, Wants
from agentstate.testing import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.mongodb import URL, FerretServer, database, mongodb_or_skip
from tests.servers import Proxy

mongodb_or_skip()

C = StateScope.conversation("c-1")
ADD = Increment("variables", "n", 1)
ALL = Wants(tails=(("history", 1000),))
# How an insert into the chains begins on the wire.
INSERT = b"\x02insert\0\x0c\0\0\0transitions\0"


@pytest.fixture
def proxy(mongodb_url):
    """Return a line to the server that can be cut where commits pass."""
    ((host, port),) = parse_uri(mongodb_url)["nodelist"]
    assert host in {"127.0.0.1", "localhost"}, "the line leads to a server on this machine"
    with Proxy(port, INSERT) as made:
        yield made


@pytest.fixture
async def storage(proxy, mongodb_database):
    """Return an open storage behind the line."""
    made = MongodbStorage(
        f"mongodb://127.0.0.1:{proxy.port}?directConnection=true", database=mongodb_database, socket_timeout=2
    )
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
    """The connection is cut in the middle of a commit."""

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
        proxy.cut_replies = 1
        part = Part(scope=C, birth=0, puts=[Put("variables", "k", b"1")], ttl=60.0, owner="ada", record=b"r")
        (made,) = await storage.commit([part], commit_id=77)
        assert (made.stamp.version, made.birth) == (1, 77)
        proxy.cut_replies = 1
        (dropped,) = await storage.commit([Part(scope=C, birth=77, clear=True)], commit_id=78)
        assert (dropped.stamp, (await storage.read(C, EVERYTHING)).stamp, proxy.cuts) == (None, None, 2)

    async def test_with_a_turn(self, storage, proxy, mongodb_url, mongodb_database):
        """A commit that gave its turn back and was sent again isn't taken for a late one."""
        await add(storage, 0)
        entered = await take_turn(storage, C, "first")
        check = [Part(scope=C, birth=entered.birth, base=entered.stamp, increments=[ADD])]
        proxy.cut_replies = 1
        (done,) = await storage.commit(check, commit_id=new_id(), lease=entered.lease, release=True)
        assert (done.stamp.version, proxy.cuts) == (2, 1)
        other = MongodbStorage(mongodb_url, database=mongodb_database)
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

    async def test_somebody_elses_number(self, storage, proxy, mongodb_url, mongodb_database):
        """A commit whose number another took while it was lost goes to the next number, once."""
        await add(storage, 0)
        other = MongodbStorage(mongodb_url, database=mongodb_database)
        proxy.cut_requests = 1
        mine = asyncio.create_task(add(storage, 1))
        while proxy.cut_requests:  # noqa: ASYNC110 - the line runs in a thread
            await asyncio.sleep(0)
        await add(other, 2)
        assert (await mine).stamp is not None
        number, ids = await counted(other)
        assert (number, sorted(ids)) == (3, ["m-0", "m-1", "m-2"])
        await other.close()

    async def test_a_taken_turn(self, storage, proxy):
        """A turn whose taking was answered to nobody is held by who asked, not by a stranger."""
        proxy.cut_replies = 1
        entered = await storage.read(C, EVERYTHING, lease=LeaseRequest(7, 60.0, "me"))
        assert entered.lease is not None
        assert (entered.lease.nonce, proxy.cuts) == (7, 1)
        await storage.leave(C, 7)

    async def test_undecided(self, storage, proxy, monkeypatch):
        """A commit that can't be settled in time says so; its outcome settles it later."""
        await add(storage, 0)
        monkeypatch.setattr(chain, "DECIDED_WITHIN", 0.3)
        proxy.cut_replies = 1000
        with pytest.raises(CommitUnknownError) as caught:
            await storage.commit([Part(scope=C, increments=[ADD])], commit_id=4711)
        proxy.cut_replies = 0
        assert caught.value.commit_id == 4711
        assert (await storage.outcome(C, 4711)).version == 2
        assert (await counted(storage))[0] == 2


class TestServers:
    """Servers that die or refuse."""

    async def test_a_wrong_password(self, mongodb_url, mongodb_database):
        """A login that is refused is a typed error."""
        ((host, port),) = parse_uri(mongodb_url)["nodelist"]
        storage = MongodbStorage(f"mongodb://nobody:secret@{host}:{port}", database=mongodb_database)
        with pytest.raises(StorageAccessError) as caught:
            await storage.open()
        assert "secret" not in str(caught.value)
        await storage.close()

    async def test_killed_and_restarted(self, monkeypatch):
        """What was acknowledged before the server was killed is there after; in between is a typed error."""
        if URL is not None:
            pytest.skip("a server that was named isn't ours to kill")
        monkeypatch.setattr(chain, "DECIDED_WITHIN", 0.5)
        with FerretServer() as server:
            storage = MongodbStorage(server.url, database="own", connect_timeout=0.3)
            await add(storage, 0)
            server.kill()
            with pytest.raises((StorageUnavailableError, CommitUnknownError)):
                await add(storage, 1)
            await asyncio.to_thread(server.restart)
            await add(storage, 2)
            number, ids = await counted(storage)
            assert (number, ids) in [(2, ["m-0", "m-2"]), (3, ["m-0", "m-1", "m-2"])]
            await storage.close()


class TestFencing:
    """A holder that comes too late."""

    async def test_taken_over_in_between(self, mongodb_url, mongodb_database):
        """A commit decided on a view from before the turn was taken over gets no number."""
        clock = FakeClock()
        late, other = (MongodbStorage(mongodb_url, database=mongodb_database, clock=clock) for _ in range(2))
        await add(late, 0)
        held = (await late.read(C, EVERYTHING, lease=LeaseRequest(new_id(), 5.0, "late"))).lease
        clock.advance(6)
        taken = (await other.read(C, EVERYTHING, lease=LeaseRequest(new_id(), 5.0, "other"))).lease
        assert taken is not None
        with pytest.raises(LeaseLostError):
            await late.commit([Part(scope=C, increments=[ADD])], commit_id=new_id(), lease=held, release=True)
        await other.commit([Part(scope=C, increments=[ADD])], commit_id=new_id(), lease=taken, release=True)
        assert (await counted(late))[0] == 2
        await late.close()
        await other.close()

    async def test_a_number_that_was_deleted(self, storage, mongodb_url, mongodb_database, monkeypatch):
        """An insert into a part of the chain that was deleted meanwhile is taken back and decided anew."""
        await add(storage, 0)
        other = MongodbStorage(mongodb_url, database=mongodb_database)
        for number in range(1, 40):
            await add(other, number)
        found = database(mongodb_url, mongodb_database)
        with found.client:
            found.transitions.delete_many({"_id": {"$lt": f"{C.text}/{20:016}"}})
        here = await storage._here()
        here.views[C].confirmed -= 2 * chain.FRESH_SECONDS
        # As if this process had been stopped between looking at its watch and inserting.
        monkeypatch.setattr(chain, "known", lambda here, scope: here.views.get(scope))
        monkeypatch.setattr("agentstate.storage.mongodb.work.known", lambda here, scope: here.views.get(scope))
        done = await add(storage, 40)
        assert (done.stamp.version, done.counters["variables", "n"]) == (41, 41)
        assert (await counted(other))[0] == 41
        await other.close()


async def test_a_forked_child(mongodb_url, mongodb_database):
    """A forked child leaves its parent's connections alone and makes its own."""
    storage = MongodbStorage(mongodb_url, database=mongodb_database)
    await add(storage, 0)
    child = os.fork()
    if child == 0:
        os._exit(0 if _adds_in_a_child(storage) else 1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await add(storage, 2)
    assert (await counted(storage))[0] == 3
    await storage.close()


def _adds_in_a_child(storage):
    try:
        asyncio.run(add(storage, 1))
    except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's stack
        return False
    return True
