"""What is SQLite's own: hops, groups, cancellation, life. The contract is in the conformance suite."""

import asyncio
import gc
import threading

import pytest

from agentstate.errors import (
    ConflictError,
    LeaseLostError,
    StorageClosedError,
)
from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    Append,
    LeaseRequest,
    Part,
    Put,
    ScopeQuery,
)
from agentstate.storage.sqlite import SqliteStorage
from tests.storage.sqlitecase import TURN, A, ask, put, turn, value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
async def storage(path):
    made = SqliteStorage(path)
    yield made
    await made.close()


class TestCost:
    """G9: what a turn costs doesn't grow with what is stored."""

    @pytest.mark.parametrize("stored", [10, 2000])
    @pytest.mark.parametrize("cache", [0, 2**20])
    async def test_statements_of_a_turn(self, path, stored, cache):
        """A turn is two transactions with the same few statements, whatever is stored; one, when the state is known."""
        told = []
        storage = SqliteStorage(path, cache_size=cache)
        appends = [Append("history", f"f{n}", b"x" * 200) for n in range(stored)]
        await storage.commit([Part(scope=A, appends=appends)], commit_id=7)
        await turn(storage, 0)
        await storage.trace(lambda kind, sql: told.append((kind, sql.split()[0])))
        await turn(storage, 1)
        await storage.close()
        begun, looks = told.index(("write", "BEGIN")), [] if cache else [("read", "SELECT")] * 3
        assert [at for at in told if at == ("read", "SELECT")] == looks
        assert told[begun : told.index(("write", "COMMIT"), begun)] == [
            ("write", "BEGIN"),
            *[("write", "SELECT")] * (0 if cache else 3),
            *[("write", "INSERT")] * 2,
            ("write", "REPLACE"),
            ("write", "UPDATE"),
            ("write", "INSERT"),
        ]

    async def test_bytes_written_a_turn(self, storage, path):
        """The pages that turns write don't grow with the length of the conversation."""

        async def pages(first):
            size = path.with_name("state.db-wal").stat().st_size
            for number in range(first, first + 20):
                await turn(storage, number)
            return (path.with_name("state.db-wal").stat().st_size - size) / 4120 / 20

        await turn(storage, 0)
        young = await pages(1)
        await storage.close()
        again = SqliteStorage(path)
        appends = [Append("history", f"f{n}", b"x" * 200) for n in range(2000)]
        await again.commit([Part(scope=A, appends=appends)], commit_id=7)
        await again.close()
        storage = SqliteStorage(path)
        await turn(storage, 100)
        old = await pages(101)
        await storage.close()
        assert old <= young + 1.5 <= 12


class TestGroups:
    """Commits that wait together share a transaction and nothing else."""

    async def test_many_share_one_transaction(self, storage):
        """Commits that wait while another is written go into one transaction."""
        told = []
        await put(storage)
        await storage.trace(lambda kind, sql: told.append(sql) if kind == "write" else None)
        await asyncio.gather(*(put(storage, StateScope.user(f"u{n}"), commit_id=n + 1) for n in range(100)))
        await storage.trace(None)
        assert sum(sql == "COMMIT" for sql in told) < 20
        assert [await value(storage, StateScope.user(f"u{n}")) for n in range(100)] == [b"1"] * 100

    async def test_a_conflict_disturbs_no_other(self, storage):
        """A refused member of a group leaves nothing behind, and the others are stored."""
        await put(storage)
        results = await asyncio.gather(
            *(put(storage, StateScope.user(f"u{n}"), base=None if n != 5 else (9, 9)) for n in range(12)),
            return_exceptions=True,
        )
        assert [type(result) for n, result in enumerate(results) if n == 5] == [ConflictError]
        assert sum(isinstance(result, Exception) for result in results) == 1
        assert await value(storage, StateScope.user("u5")) is None
        assert await value(storage, StateScope.user("u11")) == b"1"

    async def test_when_the_engine_undoes_the_group_members_run_singly(self, storage):
        """A member that the engine can't store takes its error alone; the others are stored."""
        await put(storage)
        results = await asyncio.gather(
            *(put(storage, StateScope.user(f"u{n}"), value=b"1" if n != 5 else object()) for n in range(12)),
            return_exceptions=True,
        )
        assert [type(result) for n, result in enumerate(results) if n == 5] == [TypeError]
        assert sum(isinstance(result, Exception) for result in results) == 1
        assert await value(storage, StateScope.user("u5")) is None
        assert await value(storage, StateScope.user("u11")) == b"1"

    async def test_one_scope_in_one_group(self, storage):
        """Members of a group that change one state see each other's changes, in order."""
        await put(storage)
        parts = [Part(scope=A, appends=[Append("history", f"m{n}", b"%d" % n)]) for n in range(30)]
        await asyncio.gather(*(storage.commit([part], commit_id=n + 2) for n, part in enumerate(parts)))
        page = await storage.read_log(A, "history")
        assert [item.value for item in page.items] == [b"%d" % n for n in range(30)]
        assert [item.position for item in page.items] == list(range(1, 31))


class TestCancellation:
    """What was handed over is finished; what was taken is given back."""

    async def test_a_cancelled_commit_is_stored_whole_and_gives_the_turn_back(self, storage):
        """Cancelling whoever awaits a commit doesn't undo it, nor keep its turn."""
        found = await storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "x"))
        part = Part(scope=A, puts=[Put("variables", "k", b"1")])
        task = asyncio.create_task(storage.commit([part], commit_id=9, lease=found.lease, release=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other = LeaseRequest(6, 30.0, "y")
        while (await storage.read(A, TURN, lease=other)).lease is None:
            await storage.wait_turn(A, 6, 5.0)
        assert await storage.outcome(A, 9) == (1, 9)
        assert await value(storage) == b"1"

    async def test_a_cancelled_read_gives_its_turn_back(self, path):
        """A turn that was taken on the way of a cancelled read is free again."""
        storage = SqliteStorage(path, cache_size=0)
        await put(storage)
        task = asyncio.create_task(storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "x")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await storage.read(A, TURN, lease=LeaseRequest(6, 30.0, "y"))).lease is not None
        await storage.close()

    async def test_a_cancelled_look_keeps_the_turn_that_was_held(self, storage):
        """Cancelling a second read of a turn doesn't end the turn."""
        request = LeaseRequest(5, 30.0, "x")
        await storage.read(A, TURN, lease=request)
        task = asyncio.create_task(storage.read(A, TURN, lease=request))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await storage.read(A, TURN, lease=LeaseRequest(6, 30.0, "y"))).lease is None

    async def test_a_lease_given_back_is_lost(self, storage):
        """Whoever left the turn can't commit under its lease any more."""
        found = await storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "x"))
        await storage.leave(A, 5)
        with pytest.raises(LeaseLostError):
            await storage.commit([Part(scope=A)], commit_id=1, lease=found.lease)
        assert (await storage.read(A, TURN)).stamp is None


class TestLife:
    """Opening, closing, forgetting."""

    async def test_closed_is_closed(self, storage):
        """After close every call says so, closing again is no error, and leaving neither."""
        await put(storage)
        await storage.close()
        await storage.close()
        for call in (storage.read(A, TURN), put(storage), storage.open(), storage.ping(), storage.sweep()):
            with pytest.raises(StorageClosedError):
                await call
        await storage.leave(A, 1)
        assert storage.renew([], 1.0) == []

    async def test_close_finishes_what_was_handed_over(self, path):
        """Commits on their way when the storage is closed are stored, or refused as closed."""
        storage = SqliteStorage(path)
        await storage.open()
        tasks = [asyncio.create_task(put(storage, StateScope.user(f"u{n}"), commit_id=n + 1)) for n in range(50)]
        await asyncio.sleep(0)
        await storage.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        again = SqliteStorage(path)
        for number, result in enumerate(results):
            stored = await value(again, StateScope.user(f"u{number}"))
            assert stored == (b"1" if not isinstance(result, Exception) else None)
            assert not isinstance(result, Exception) or isinstance(result, StorageClosedError)
        await again.close()

    async def test_a_forgotten_storage_ends_its_threads(self, path):
        """A storage that nobody closed goes with its threads, its files and its turns."""
        storage = SqliteStorage(path)
        await storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "x"))
        engine = storage._engine
        del storage
        gc.collect()
        await asyncio.to_thread(engine.writer.ended.result, 10)
        await asyncio.to_thread(engine.reader.ended.result, 10)
        other = SqliteStorage(path)
        assert (await other.read(A, TURN, lease=LeaseRequest(6, 30.0, "y"))).lease is not None
        await other.close()

    def test_loops_that_come_and_go(self, path):
        """One storage serves one event loop after another, and several at once in threads."""
        storage = SqliteStorage(path)
        for number in range(3):
            asyncio.run(put(storage, StateScope.user(f"u{number}")))
        threads = [
            threading.Thread(target=lambda n=n: asyncio.run(put(storage, StateScope.user(f"t{n}")))) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listed = asyncio.run(storage.scopes(ScopeQuery(kind="user")))
        assert [info.scope.id for info in listed.items] == ["t0", "t1", "t2", "t3", "u0", "u1", "u2"]
        asyncio.run(storage.close())

    def test_a_loop_that_ends_in_the_middle_of_a_pass(self, path):
        """What was asked for on a loop that was closed at once is done all the same, its turn given back."""
        storage = SqliteStorage(path)
        asyncio.run(put(storage))
        loop = asyncio.new_event_loop()
        found = loop.run_until_complete(storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "x")))
        storage._engine.reader._pace.together = 2
        part = Part(scope=A, puts=[Put("variables", "k", b"2")])
        commit = storage.commit([part], commit_id=2, lease=found.lease, release=True)
        loop.call_soon(lambda: (loop.stop(), commit.send(None)))
        loop.run_forever()
        loop.close()
        commit.close()
        storage._engine.reader._pace.together = 2
        asyncio.run(put(storage, StateScope.user("other")))
        assert asyncio.run(value(storage)) == b"2"
        assert asyncio.run(storage.read(A, TURN, lease=LeaseRequest(6, 30.0, "y"))).lease is not None
        asyncio.run(storage.close())

    def test_capabilities(self, path):
        """It says what it is, as configured."""
        assert SqliteStorage(path).capabilities.durability == "power"
        assert SqliteStorage(path, durability="normal").capabilities.durability == "process"
        found = SqliteStorage(path).capabilities
        assert (found.shared, found.leases, found.atomic_scopes, found.partitions) == (True, "machine", True, 1)

    async def test_full_durability_syncs_every_commit(self, storage, path):
        """`full` is SQLite's FULL; `normal` its NORMAL; both write ahead."""
        await storage.open()
        normal = SqliteStorage(path, durability="normal")
        await normal.open()
        assert await ask(storage, "PRAGMA synchronous") == [(2,)]
        assert await ask(normal, "PRAGMA synchronous") == [(1,)]
        assert await ask(storage, "PRAGMA journal_mode") == [("wal",)]
        assert await ask(storage, "PRAGMA mmap_size") in ([], [(0,)])
        await normal.close()
