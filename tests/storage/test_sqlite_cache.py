"""The read cache of the SQLite backend: nothing stale, nothing without a bound."""

import asyncio
import random
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    Append,
    Check,
    CutTail,
    EditItem,
    Increment,
    LeaseRequest,
    Part,
    Put,
    TrimHead,
    Wants,
)
from agentstate.storage.sqlite import SqliteStorage, walindex
from agentstate.testing import FakeClock
from tests.storage.sqlitecase import TURN, A, B, ask, put, run, start, turn, value

SECTION = Wants(sections=("other",), keys=(("variables", "k"),))
ALL = Wants(tails=(("history", 100),))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
async def storage(path):
    made = SqliteStorage(path)
    yield made
    await made.close()


@pytest.fixture
async def other(path):
    """Another storage on the same file: to the first, another process."""
    made = SqliteStorage(path)
    yield made
    await made.close()


class TestHits:
    """What is known and unchanged costs nothing."""

    async def test_own_commits_are_known(self, storage):
        """A state that this storage wrote is read without a hop, one that it read once, too."""
        await put(storage, key="k")
        assert await value(storage) == b"1"
        assert storage.cache_info()[:3] == (1, 0, 0)

    async def test_a_state_read_once_is_known(self, storage, other):
        """What another wrote is decoded once."""
        await put(other)
        for _ in range(3):
            assert await value(storage) == b"1"
        assert storage.cache_info()[:3] == (2, 0, 1)

    async def test_a_read_that_hits_has_no_hop(self, storage, monkeypatch):
        """Not even the event loop is woken."""
        await turn(storage, 0)
        monkeypatch.setattr(storage._engine.reader, "submit", None)
        assert len((await storage.read(A, TURN, lease=LeaseRequest(9, 30.0, "x"))).logs["history"].items) == 2

    async def test_longer_tails_are_read(self, storage):
        """A tail that is longer than what is known is read once, and then known."""
        appends = [Append("history", f"m{n}", b"%d" % n) for n in range(200)]
        await storage.commit([Part(scope=A, appends=appends)], commit_id=1)
        for count in (60, 150, 150, 20):
            found = (await storage.read(A, Wants(tails=(("history", count),)))).logs["history"]
            assert [item.value for item in found.items] == [b"%d" % n for n in range(200 - count, 200)]
        assert storage.cache_info()[:3] == (2, 2, 0)

    async def test_what_a_caller_does_with_a_snapshot_is_its_own(self, storage):
        """Changing the containers of a snapshot changes nobody else's."""
        await turn(storage, 0)
        found = await storage.read(A, TURN)
        for container in (found.entries, found.sections, found.logs):
            container.clear()
        again = await storage.read(A, TURN)
        assert all((again.entries, again.sections, again.logs))

    async def test_an_idempotency_key_is_looked_up(self, storage):
        """A read with an idempotency key asks the file."""
        await put(storage)
        await storage.read(A, TURN, once="key")
        assert storage.cache_info().hits == 0

    async def test_off(self, path):
        """With a size of 0 nothing is known."""
        storage = SqliteStorage(path, cache_size=0)
        await put(storage)
        await value(storage)
        assert await value(storage) == b"1"
        assert storage.cache_info() == (0, 0, 2, 0, 0)
        await storage.close()


class TestNeverStale:
    """Whatever changes a state is seen by the next read."""

    async def test_others_commits(self, storage, other):
        """Another's commit is seen at once; states that it didn't concern aren't decoded again."""
        await put(storage, A)
        await put(storage, B)
        for number in range(5):
            await put(other, A, value=b"%d" % number)
            assert await value(storage, A) == b"%d" % number
            assert await value(storage, B) == b"1"
        assert storage.cache_info().misses == 5
        assert storage.cache_info().unchanged == 5

    async def test_others_drops_and_new_beginnings(self, storage, other):
        """A state that was dropped and made again elsewhere is the new one, whatever its version."""
        await put(storage, commit_id=1)
        assert await value(storage) == b"1"
        await other.drop(A)
        assert await value(storage) is None
        await put(other, value=b"2", commit_id=2)
        assert (await storage.read(A, TURN)).birth == 2

    async def test_own_drops_sweeps_and_failures(self, path):
        """Removing by this storage is seen; keeping a failed turn changes nothing."""
        clock = FakeClock()
        storage = SqliteStorage(path, clock=clock)
        await put(storage, A, ttl=10.0)
        await storage.commit(
            [Part(scope=B, puts=[Put("variables", "k", b"1", ttl=5.0), Put("variables", "l", b"2")])], commit_id=2
        )
        await storage.leave(B, 1, failure=b"failed")
        assert len((await storage.read(B, TURN)).entries) == 2
        assert storage.cache_info().hits == 1
        clock.advance(6.0)
        assert list((await storage.read(B, TURN)).entries) == [("variables", "l")]
        assert (await storage.sweep()).entries == 1
        assert (await storage.read(B, TURN)).entry_bytes == 2
        clock.advance(6.0)
        assert (await storage.read(A, TURN)).stamp is None
        assert await storage.drop(B)
        assert (await storage.read(B, TURN)).stamp is None
        await storage.close()

    async def test_lifetimes_pushed_by_others(self, path):
        """A lifetime that another process lengthened counts here, too."""
        clock = FakeClock()
        storage, other = SqliteStorage(path, clock=clock), SqliteStorage(path, clock=clock)
        await put(storage, ttl=10.0)
        await storage.read(A, TURN)
        clock.advance(9.0)
        await other.read(A, TURN, touch=100.0)
        clock.advance(9.0)
        assert await value(storage) == b"1"
        await storage.close()
        await other.close()

    async def test_a_foreign_program(self, storage, path):
        """A change that another program made behind our back is no longer what was known."""
        await put(storage)
        script = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("DELETE FROM scopes")
        """
        assert run(script, path).returncode == 0
        assert await value(storage) is None

    async def test_between_a_commit_and_its_being_known(self, storage, monkeypatch):
        """While the writing thread has committed and not said so yet, its states are read from the file, others not."""
        await put(storage, A)
        await put(storage, B)
        known, committed, go_on = storage._engine.known, threading.Event(), threading.Event()
        end = known.end

        def end_late(*, kept):
            committed.set()
            go_on.wait(10)
            end(kept=kept)

        monkeypatch.setattr(known, "end", end_late)
        task = asyncio.create_task(put(storage, A, value=b"2"))
        await asyncio.to_thread(committed.wait, 10)
        try:
            assert await value(storage, A) == b"2"
            assert storage.cache_info().hits == 0
            assert await value(storage, B) == b"1"
            assert storage.cache_info().hits == 1
        finally:
            go_on.set()
        await task
        assert await value(storage, A) == b"2"
        assert storage.cache_info().hits == 2

    async def test_an_undone_group_leaves_no_trace(self, storage):
        """What the engine undid was never known."""
        await put(storage)
        with pytest.raises(TypeError):
            await put(storage, key="new", value=object())
        assert set((await storage.read(A, TURN)).entries) == {("variables", "k")}

    async def test_what_another_process_acknowledged_is_seen(self, storage, path):
        """As soon as another process says that it has committed, this one reads it."""
        await put(storage, value=b"0")
        script = """
        import asyncio, sys
        from agentstate.storage.sqlite import SqliteStorage
        from tests.storage.sqlitecase import put

        async def main():
            storage = SqliteStorage(sys.argv[1])
            for line in sys.stdin:
                await put(storage, value=line.strip().encode())
                print("stored", flush=True)
            await storage.close()

        asyncio.run(main())
        """
        with start(script, path) as process:
            for number in range(100):
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                assert process.stdout.readline() == "stored\n"
                assert await value(storage) == b"%d" % number
            process.communicate()

    async def test_readers_beside_a_busy_writer(self, storage):
        """While a loop commits, every read sees at least what was acknowledged before it."""
        done, scopes = [0] * 8, [StateScope.user(f"u{n}") for n in range(8)]

        async def write(number):
            for at in range(1, 40):
                await put(storage, scopes[number], value=b"%d" % at)
                done[number] = at

        async def read(number):
            while done[number] < 39:
                before = done[number]
                assert int(await value(storage, scopes[number]) or b"0") >= before
                await asyncio.sleep(0)

        await asyncio.gather(*(write(n) for n in range(8)), *(read(n) for n in range(8)))

    @pytest.mark.parametrize("seed", range(6))
    async def test_random_changes_read_as_from_the_file(self, path, seed):
        """After any commit by any of three, what the cache gives is what the file holds."""
        dice, clock = random.Random(seed), FakeClock()
        storages = [SqliteStorage(path, clock=clock, cache_size=size) for size in (2**20, 20_000, 0)]
        for number in range(1, 120):
            scope = dice.choice([A, B])
            found = await dice.choice(storages).read(scope, ALL)
            part = changed(dice, scope, found)
            await dice.choice(storages).commit([part], commit_id=number)
            clock.advance(dice.random())
            if number % 10 == 0:
                await dice.choice(storages).sweep()
            for wants in (TURN, SECTION, Wants(keys=(("variables", "k"),), inline_bytes=3), ALL):
                expected = await storages[2].read(scope, wants)
                assert [await one.read(scope, wants) for one in storages] == [expected] * 3
        assert storages[0].cache_info().hits > 100
        for one in storages:
            await one.close()


def changed(dice, scope, found):
    """Return a part of any kind that fits what was found."""
    log = found.logs.get("history")
    number = dice.randrange(1000)
    change = {
        "puts": [Put("variables", dice.choice("klm"), b"%d" % number, dice.choice([None, None, 2.0]))],
        "deletes": [("variables", dice.choice("klm"))],
        "increments": [Increment("other", dice.choice("no"), number)],
        "appends": [
            Append("history", f"m{dice.randrange(50)}", b"%d" % n, dice.choice([None, None, 3.0]), unique=n % 2 == 0)
            for n in range(dice.randrange(4))
        ],
        "cuts": [CutTail("history", log.head - dice.randrange(3))] if log else [],
        "trims": [TrimHead("history", log.first + dice.randrange(3))] if log else [],
        "edits": [EditItem("history", log.head, log.items[-1].seq, b"edited")] if log and log.items else [],
        "checks": [Check("section", "variables", found.sections.get("variables"))],
        "clear": True,
        "labels": {"n": str(number)},
        "owner": dice.choice(["ada", None]),
        "ttl": dice.choice([5.0, None]),
    }
    weights = [8, 2, 2, 8, 1, 1, 1, 4, 1, 1, 1, 1]
    names = dice.choices(list(change), weights, k=dice.randrange(1, 4))
    if {"cuts", "trims", "clear"} & set(names):
        names = [name for name in names if name != "edits"]
    return Part(scope=scope, record=b"r", **{name: change[name] for name in names})


class TestBounds:
    """Memory, descriptors, engines."""

    async def test_a_bounded_number_of_bytes(self, path):
        """The least recently used go first, and one state that is too large isn't kept."""
        storage = SqliteStorage(path, cache_size=100_000)
        for number in range(100):
            await put(storage, StateScope.user(f"u{number}"), value=b"x" * 3000, commit_id=number + 1)
            await value(storage, StateScope.user("u0"))
        info = storage.cache_info()
        assert 80_000 < info.size <= 100_000
        assert 15 < info.states < 25
        assert info.hits == 100
        await put(storage, A, value=b"x" * 30_000)
        assert await value(storage, A) == b"x" * 30_000
        assert storage.cache_info().hits == 100
        await storage.close()

    async def test_pages(self, path):
        """`page_cache_size` is SQLite's cache of both connections, in KiB; the default is 8 MiB."""
        for size, kib in ((None, -8192), (2**20, -1024)):
            storage = SqliteStorage(path, **({} if size is None else {"page_cache_size": size}))
            await storage.open()
            assert await ask(storage, "PRAGMA cache_size") == [(kib,)]
            found = await storage._engine.read(lambda on: on.execute("PRAGMA cache_size").fetchall())
            assert found == [(kib,)]
            await storage.close()

    def test_the_index_is_let_go_when_the_last_connection_is_closed(self, path):
        """As long as anybody here uses the file its descriptor stays open, and not longer."""
        storages = [SqliteStorage(path) for _ in range(2)]
        for one in storages:
            asyncio.run(put(one))
        asyncio.run(storages[0].close())
        assert str(path.resolve()) in walindex._indexes
        asyncio.run(put(storages[1], value=b"2"))
        assert asyncio.run(value(storages[1])) == b"2"
        asyncio.run(storages[1].close())
        assert str(path.resolve()) not in walindex._indexes
        if sys.platform == "linux":
            assert f"{path.resolve()}-shm" not in Path("/proc/self/maps").read_text(encoding="utf-8")

    def test_a_file_made_anew_has_an_index_of_its_own(self, path):
        """Where a file was removed under an open storage, the next one of that name doesn't look at the old one."""
        old, new, beside = (SqliteStorage(path) for _ in range(3))
        asyncio.run(put(old))
        for file in path.parent.glob("state.db*"):
            if file.is_file():
                file.unlink()
        asyncio.run(put(new, value=b"2"))
        assert asyncio.run(value(new)) == b"2"
        asyncio.run(put(beside, value=b"3"))
        assert asyncio.run(value(new)) == b"3"
        for storage in (old, new, beside):
            asyncio.run(storage.close())
        assert str(path.resolve()) not in walindex._indexes

    async def test_without_the_index_every_read_asks_the_file(self, path, monkeypatch):
        """Where the index can't be seen, or has another format, nothing is believed."""
        monkeypatch.setattr(walindex, "FORMAT", 4_000_000)
        storage = SqliteStorage(path)
        await put(storage)
        assert [await value(storage) for _ in range(2)] == [b"1", b"1"]
        assert storage.cache_info()[:2] == (0, 0)
        await storage.close()

    def test_the_head_changes_with_commits_alone(self, path):
        """What the cache relies on: a commit, and nothing less, changes the head, and is counted in it."""
        index = walindex.WalIndex.use(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=wal")
            connection.execute("CREATE TABLE t(x)")
            index.map()
            for sql, commits in (
                ("INSERT INTO t VALUES(1)", 1),
                ("SELECT * FROM t", 0),
                ("BEGIN IMMEDIATE; INSERT INTO t VALUES(2); ROLLBACK", 0),
                ("BEGIN IMMEDIATE; COMMIT", 0),
                ("PRAGMA wal_checkpoint(RESTART)", 0),
                ("BEGIN IMMEDIATE; INSERT INTO t VALUES(3); COMMIT", 1),
                ("DELETE FROM t; ", 1),
            ):
                before = index.head()
                connection.executescript(sql)
                assert (index.head() != before) == bool(commits), sql
                assert walindex.commits_between(before, index.head()) == commits, sql
        index.done()
