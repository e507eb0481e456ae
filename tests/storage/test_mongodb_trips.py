"""Round trips, what they carry, and states too large for one document."""

import asyncio

import pymongo
import pytest

from agentstate.errors import DamagedStateError, UnsupportedError, ValueTooLargeError
from agentstate.scope import StateScope
from agentstate.storage.mongodb import MongodbOptions, MongodbStorage, settle
from agentstate.storage.protocol import (
    Append,
    Check,
    CutTail,
    EditItem,
    Increment,
    LeaseRequest,
    OnceRecord,
    Part,
    Put,
    TrimHead,
    Wants,
)
from agentstate.testing.turns import EVERYTHING, new_id
from tests.mongodb import database, mongodb_or_skip

mongodb_or_skip()

C = StateScope.conversation("c-1")
TAIL = Wants(tails=(("history", 10),))
IDLE = {"hello", "ping", "endSessions", "isMaster", "ismaster"}


class Commands(pymongo.monitoring.CommandListener):
    """Notes what clients send to servers."""

    def __init__(self):
        self.sent = []

    def started(self, event):
        if event.command_name not in IDLE:
            self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event):
        pass

    def failed(self, event):
        pass


@pytest.fixture
def commands(monkeypatch):
    """Return what is sent from here on by storages that this test makes."""
    listener = Commands()
    plain = MongodbOptions.client_settings
    monkeypatch.setattr(MongodbOptions, "client_settings", lambda self: {**plain(self), "event_listeners": [listener]})
    return listener


@pytest.fixture
async def storage(commands, mongodb_url, mongodb_database, monkeypatch):
    """Return an open storage that carries nothing over unasked."""
    monkeypatch.setattr(settle, "SETTLE_AFTER", 3600.0)
    made = MongodbStorage(mongodb_url, database=mongodb_database)
    await made.open()
    # What is counted here are the requests to a server that has its indexes.
    (await made._here()).scans = False
    yield made
    await made.close()


@pytest.fixture
async def another(mongodb_url, mongodb_database):
    """Return a second process's storage, as it were."""
    made = MongodbStorage(mongodb_url, database=mongodb_database)
    await made.open()
    yield made
    await made.close()


async def turn(storage, scope=C, **more):
    """Take a turn, as the core does: load 10 messages, read 2 variables, append 2, set 1."""
    found = await storage.read(scope, TAIL, lease=LeaseRequest(new_id(), 30.0, "h"))
    old = found.entries.get(("variables", "a"))
    part = Part(
        scope=scope,
        birth=found.birth,
        checks=[Check("entry", "variables", old.stamp if old else None, "a")],
        puts=[Put("variables", "a", b"1")],
        appends=[Append("history", f"m{new_id()}", b"x" * 200) for _ in range(2)],
        record=b"record",
        ttl=3600.0,
        **more,
    )
    (done,) = await storage.commit([part], commit_id=new_id(), lease=found.lease, release=True)
    return done


class TestTrips:
    """How often the server is asked."""

    async def test_a_turn(self, storage, commands):
        """A turn is three round trips: look, take the turn, commit and give it back."""
        await turn(storage)
        commands.sent.clear()
        for _ in range(40):
            await turn(storage)
        assert [name for name, _ in commands.sent] == ["find", "insert", "insert"] * 40

    async def test_a_first_turn(self, storage, commands):
        """So is the first turn of a state."""
        await turn(storage)
        assert [name for name, _ in commands.sent][-3:] == ["find", "insert", "insert"]

    async def test_a_turn_after_anothers(self, storage, another, commands):
        """So is one on a state that other processes made, and one that they have changed since."""
        for between in (30, 1):
            for _ in range(between):
                await turn(another)
            commands.sent.clear()
            await turn(storage)
            assert [name for name, _ in commands.sent] == ["find", "insert", "insert"]

    async def test_a_commit(self, storage, another, commands):
        """A commit outside a turn is one round trip, and two more when somebody else was there before."""
        part = Part(scope=C, increments=[Increment("variables", "n", 1)])
        await storage.commit([part], commit_id=new_id())
        commands.sent.clear()
        await storage.commit([part], commit_id=new_id())
        assert [name for name, _ in commands.sent] == ["insert"]
        await another.commit([part], commit_id=new_id())
        commands.sent.clear()
        await storage.commit([part], commit_id=new_id())
        assert [name for name, _ in commands.sent] == ["insert", "find", "insert"]

    async def test_a_read(self, storage, another, commands):
        """A read without a turn is one look, whoever wrote what."""
        await turn(another)
        for _ in range(2):
            commands.sent.clear()
            await storage.read(C, TAIL)
            assert [name for name, _ in commands.sent] == ["find"]

    async def test_growth(self, storage, commands):
        """What a turn sends is the same after 10 messages and after 2,000."""
        sizes = []
        for more in (0, 20):
            for number in range(more):
                appends = [Append("history", f"{number}-{n}", b"x" * 200) for n in range(100)]
                await storage.commit([Part(scope=C, appends=appends)], commit_id=new_id())
            await turn(storage)
            commands.sent.clear()
            for _ in range(16):
                await turn(storage)
            sizes.append(sum(len(repr(command)) for _, command in commands.sent))
        assert sizes[1] < 1.1 * sizes[0]

    async def test_carrying_over(self, storage, commands):
        """What many commits wrote is carried over together: twenty turns of five states in ten requests."""
        scopes = [StateScope.custom(f"s{n}") for n in range(5)]
        for scope in scopes * 4:
            await turn(storage, scope)
        commands.sent.clear()
        here = await storage._here()
        await settle.settle_all(here)
        others = [name for name, command in commands.sent if "feed" not in command.values()]
        assert len(others) <= 10, others
        commands.sent.clear()
        await settle.settle_all(here)
        assert [name for name, _ in commands.sent] == ["find"]


class TestLarge:
    """States of which a document holds only a part."""

    async def test_many_entries(self, storage, another):
        """A state of 5 MB is read by key, changed by key and listed, and each change writes only itself."""
        for start in range(0, 50, 10):
            puts = [Put("variables", f"k{n:02}", b"%d" % n * 50_000) for n in range(start, start + 10)]
            await storage.commit([Part(scope=C, puts=puts)], commit_id=new_id())
        wants = Wants(keys=(("variables", "k07"), ("variables", "none")))
        for one in (storage, another):
            found = await one.read(C, wants)
            assert not found.complete
            assert {at: len(entry.value) for at, entry in found.entries.items()} == {("variables", "k07"): 50_000}
        old = found.entries["variables", "k07"].stamp
        part = Part(scope=C, checks=[Check("entry", "variables", old, "k07")], puts=[Put("variables", "k07", b"7")])
        await another.commit([part], commit_id=new_id())
        assert (await storage.read(C, wants)).entries["variables", "k07"].value == b"7"
        page = await storage.scan(C, "variables", prefix="k0", limit=8)
        assert ([key for key, _ in page.entries], page.cursor) == ([f"k{n:02}" for n in range(8)], "k07")
        whole = await another.read(C, EVERYTHING)
        assert len(whole.entries) == 50
        assert whole.entry_bytes == sum(len(at[1]) + len(entry.value) for at, entry in whole.entries.items())

    async def test_a_change_writes_itself(self, storage, commands):
        """In a state of 5 MB a small change sends some kilobytes at most."""
        puts = [Put("variables", f"k{n:02}", b"x" * 100_000) for n in range(50)]
        await storage.commit([Part(scope=C, puts=puts)], commit_id=new_id())
        await settle.settle_all(await storage._here())
        commands.sent.clear()
        await storage.commit([Part(scope=C, puts=[Put("variables", "k01", b"1")])], commit_id=new_id())
        await settle.settle_all(await storage._here())
        assert sum(len(repr(command)) for _, command in commands.sent) < 20_000

    async def test_a_long_log(self, storage, another):
        """Any part of a long log is read, cut, trimmed and edited, from another process too."""
        for start in range(0, 300, 100):
            appends = [Append("history", f"m{n}", b"%d" % n, unique=True) for n in range(start, start + 100)]
            await storage.commit([Part(scope=C, appends=appends)], commit_id=new_id())
        page = await another.read_log(C, "history", start=50, limit=3)
        assert [item.value for item in page.items] == [b"49", b"50", b"51"]
        change = Part(
            scope=C,
            cuts=[CutTail("history", 251)],
            trims=[TrimHead("history", 101)],
            edits=[EditItem("history", 150, 150, b"edited")],
            appends=[
                Append("history", "m120", b"again", unique=True),
                Append("history", "m280", b"anew", unique=True),
            ],
        )
        (done,) = await another.commit([change], commit_id=new_id())
        assert (done.logs["history"].first, done.logs["history"].head) == (101, 251)
        for one in (storage, another):
            items = (await one.read_log(C, "history")).items
            assert [item.position for item in items] == list(range(101, 252))
            assert (items[49].value, items[-1].value, items[-1].seq) == (b"edited", b"anew", 301)
            assert (await one.find_item(C, "history", "m280")).position == 251
            assert await one.find_item(C, "history", "m90") is None

    async def test_too_large(self, storage):
        """A commit that no document can hold is refused before it is sent, and stores nothing."""
        await turn(storage)
        before = await storage.read(C, TAIL)
        puts = [Put("variables", f"k{n}", b"x" * 2**20) for n in range(16)]
        with pytest.raises(ValueTooLargeError, match="16 MiB"):
            await storage.commit([Part(scope=C, puts=puts)], commit_id=new_id())
        found = await storage.read(C, TAIL)
        assert (found.stamp, found.entries, found.logs) == (before.stamp, before.entries, before.logs)

    async def test_a_key_from_long_ago(self, storage, another):
        """An idempotency key is known to a process that comes much later, and conflicts."""
        record = OnceRecord("key", "f", 5, b"result")
        await storage.commit([Part(scope=C, puts=[Put("a", "b", b"c")])], commit_id=5, once=record)
        for _ in range(30):
            await turn(storage)
        assert (await another.read(C, TAIL, once="key")).once.result == b"result"

    async def test_taken_away(self, storage, another, mongodb_url, mongodb_database):
        """An item that somebody deleted from its collection is missed, not left out."""
        appends = [Append("history", f"m{n}", b"%d" % n) for n in range(100)]
        await storage.commit([Part(scope=C, appends=appends)], commit_id=new_id())
        await settle.settle_all(await storage._here())
        for _ in range(20):
            await storage.commit([Part(scope=C, increments=[Increment("a", "n", 1)])], commit_id=new_id())
        found = database(mongodb_url, mongodb_database)
        with found.client:
            assert found.history.delete_one({"position": 10}).deleted_count == 1
        with pytest.raises(DamagedStateError):
            await another.read_log(C, "history")
        assert len((await another.read_log(C, "history", start=50)).items) == 51


class TestTogether:
    """Several who carry over, and several who look, at once."""

    async def test_carrying_over_at_once(self, storage, another):
        """Two processes that carry over the same commits at once put each into the feed once, in order."""
        for number in range(40):
            await storage.commit([Part(scope=C, increments=[Increment("a", "n", 1)])], commit_id=number + 1)
        both = [settle.settle_all(await one._here()) for one in (storage, another)]
        await asyncio.gather(*both)
        feed = await another.feed(C.partition(16), limit=1000)
        assert [item.stamp.commit_id for item in feed] == list(range(1, 41))

    async def test_carried_over_again(self, storage, another, mongodb_url, mongodb_database):
        """Commits that were carried over but not marked so, as by a process that died, change nothing again."""
        for _ in range(5):
            await turn(storage)
        found = database(mongodb_url, mongodb_database)
        with found.client:
            kept = list(found.transitions.find({"pending": {"$gt": ""}}))
            await settle.settle_all(await storage._here())
            counts = [found[name].count_documents({}) for name in ("states", "history", "metadata", "feed")]
            for one in kept:
                found.transitions.update_one({"_id": one["_id"]}, {"$set": {"pending": one["pending"]}})
            await settle.settle_all(await another._here())
            assert [found[name].count_documents({}) for name in ("states", "history", "metadata", "feed")] == counts

    async def test_several_states(self, storage):
        """A commit of two states is refused: no transaction of the server is trusted."""
        assert not storage.capabilities.atomic_scopes
        parts = [Part(scope=one, puts=[Put("a", "b", b"c")]) for one in (C, StateScope.user("u"))]
        with pytest.raises(UnsupportedError):
            await storage.commit(parts, commit_id=new_id())


class TestGone:
    """What is dropped leaves nothing behind."""

    async def test_no_bytes_stay(self, storage, another, mongodb_url, mongodb_database, monkeypatch):
        """After a drop no document of any collection holds what the state held, and the chain goes on."""
        secret = b"a secret of the state's own"
        part = Part(scope=C, puts=[Put("variables", "k", secret)], appends=[Append("history", "m", secret)])
        record = OnceRecord("key", "f", 5, secret)
        (first,) = await storage.commit([part], commit_id=5, once=record)
        (_,) = await storage.commit([Part(scope=C, record=secret)], commit_id=6)
        await storage.leave(C, new_id(), failure=secret)
        assert (await another.read(C, TAIL)).stamp is not None
        assert await storage.drop(C)
        await settle.settle_all(await storage._here())
        found = database(mongodb_url, mongodb_database)
        with found.client:
            for name in found.list_collection_names():
                for document in found[name].find():
                    assert secret not in repr(document).encode(), f"{name}: {document['_id']}"
                    assert not any(secret in one for one in document.values() if isinstance(one, bytes))
            assert found.transitions.count_documents({}) == 4
            monkeypatch.setattr("agentstate.storage.mongodb.sweep.KEPT_SECONDS", -60.0)
            assert (await storage.sweep()).done
            assert found.transitions.count_documents({}) == 1
        assert (await another.read(C, TAIL)).stamp is None
        (again,) = await another.commit([part], commit_id=7)
        assert again.stamp.version > first.stamp.version
        assert (await storage.read(C, TAIL)).stamp == again.stamp
