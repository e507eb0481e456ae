"""What happens on a state's row in PostgreSQL: commits that meet, connections that end, commits that come twice."""

import asyncio
import time

import asyncpg
import pytest

from agentstate.errors import CommitUnknownError, ConflictError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.postgresql import PostgresqlStorage, commit
from agentstate.storage.postgresql.encode import RESENT, CommitCall
from agentstate.storage.protocol import Append, Check, Increment, LeaseRequest, Part, Put
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.postgres import PostgresServer
from tests.postgres_lines import CountingLine

A, B = StateScope.conversation("a"), StateScope.conversation("b")


@pytest.fixture
async def storage(postgres_server, postgres_schema):
    """An open storage in this test's schema."""
    made = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, application_name=postgres_schema)
    await made.open()
    yield made
    await made.close()


class RowLock:
    """Another session that holds the row of a state, so that whoever comes waits there."""

    def __init__(self, server, schema, scope):
        self.server, self.schema, self.scope = server, schema, scope

    async def __aenter__(self):
        self.connection = await asyncpg.connect(self.server.url)
        await self.connection.execute("BEGIN")
        sql = f"SELECT FROM {self.schema}.states WHERE kind = $1 AND id = $2 FOR UPDATE"
        await self.connection.fetch(sql, self.scope.kind, self.scope.id)
        return self

    async def waiting(self, count):
        """Return the sessions that wait, when there are so many."""
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock' ORDER BY pid"
        deadline = time.monotonic() + 20
        while len(found := [pid for (pid,) in await self.connection.fetch(sql, self.schema)]) < count:
            assert time.monotonic() < deadline, f"{found} wait, not {count}"
            await self.connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.005)
        return found

    async def __aexit__(self, *_):
        await self.connection.execute("COMMIT")
        await self.connection.close()


async def add(storage, item="m", by=1, **change):
    """Commit an increment and an append."""
    part = Part(
        scope=A, increments=[Increment("variables", "n", by)], appends=[Append("history", item, b"x")], **change
    )
    (done,) = await storage.commit([part], commit_id=new_id())
    return done


async def count(storage):
    """Return the counter and the number of items, which must agree."""
    found = await storage.read(A, EVERYTHING)
    assert found.entries["variables", "n"].value == found.logs["history"].head
    return found.logs["history"].head


# -- meeting on the lock ----------------------------------------------------------------------


async def test_two_checked_commits_meet(storage, postgres_server, postgres_schema):
    """Of two commits that rely on one entry and wait for one row, the second sees what the first wrote."""
    await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"0")])], commit_id=new_id())
    stamp = (await storage.read(A, EVERYTHING)).entries["variables", "k"].stamp

    async def change(value):
        checks = [Check("entry", "variables", stamp, "k")]
        part = Part(scope=A, checks=checks, puts=[Put("variables", "k", value)])
        return await storage.commit([part], commit_id=new_id())

    async with RowLock(postgres_server, postgres_schema, A) as row:
        calls = [asyncio.create_task(change(value)) for value in (b"1", b"2")]
        await row.waiting(2)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(result) for result in results if isinstance(result, Exception)) == [ConflictError]
    winner = b"1" if isinstance(results[1], ConflictError) else b"2"
    assert (await storage.read(A, EVERYTHING)).entries["variables", "k"].value == winner


async def test_blind_commits_meet(storage, postgres_server, postgres_schema):
    """Increments and appends that wait for one row build on one another."""
    await add(storage)
    async with RowLock(postgres_server, postgres_schema, A) as row:
        calls = [asyncio.create_task(add(storage, f"m-{n}")) for n in range(8)]
        await row.waiting(8)
    await asyncio.gather(*calls)
    assert await count(storage) == 9


async def test_a_turn_reads_after_its_lock(storage, postgres_server, postgres_schema):
    """A read that waits for the row returns what was committed meanwhile, not what it would have seen at first."""
    await add(storage)
    async with RowLock(postgres_server, postgres_schema, A) as row:
        reading = asyncio.create_task(take_turn(storage, A, "late"))
        await row.waiting(1)
        sql = f"UPDATE {postgres_schema}.entries SET counter = 77"
        await row.connection.execute(sql)
    assert (await reading).entries["variables", "n"].value == 77


async def test_a_plain_read_waits_for_nobody(storage, postgres_server, postgres_schema):
    """A read without a turn takes no lock."""
    await add(storage)
    async with RowLock(postgres_server, postgres_schema, A), asyncio.timeout(10):
        assert await count(storage) == 1


async def test_versions_of_the_feed_stay_in_order(storage, postgres_server, postgres_schema):
    """A commit whose transaction began before one that overtook it is made in a younger one: feeds are in order."""
    for scope in (A, B):
        await storage.commit([Part(scope=scope)], commit_id=new_id())
    both = [Part(scope=scope) for scope in (A, B)]
    async with RowLock(postgres_server, postgres_schema, B) as row:
        # It has locked A, so it has its number, and waits for B, which the younger transaction changes first.
        slow = asyncio.create_task(storage.commit(both, commit_id=new_id()))
        await row.waiting(1)
        bump = f"UPDATE {postgres_schema}.states SET version = 2, xid = pg_current_xact_id()::text::bigint + 0"
        await row.connection.execute(f"{bump} WHERE id = 'b'")
        younger = await row.connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
    done = await slow
    assert [one.stamp.version for one in done] == [2, 3]
    sql = f"SELECT min(xid) FROM {postgres_schema}.journal WHERE version = 3"
    assert postgres_server.ask(sql)[0][0] > younger


# -- sessions that end ------------------------------------------------------------------------


def end_sessions(server, schema):
    """Terminate every session of this test's storage."""
    sql = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = $1"
    return server.ask(sql, schema)[0][0]


async def test_ended_before_a_commit(storage, postgres_server, postgres_schema):
    """Sessions that were ended while nothing ran are made anew."""
    await add(storage)
    lease = (await take_turn(storage, B, "holder")).lease
    assert await asyncio.to_thread(storage.renew, [lease], 30.0) == [True]
    assert end_sessions(postgres_server, postgres_schema) >= 2
    await add(storage)
    assert await count(storage) == 2
    assert await asyncio.to_thread(storage.renew, [lease], 30.0) == [True]
    assert end_sessions(postgres_server, postgres_schema) >= 2
    assert (await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "x"))).lease is not None


async def test_ended_in_a_commit(storage, postgres_server, postgres_schema):
    """A commit whose session is ended while it waits for its row is done once, on another session."""
    await add(storage)
    async with RowLock(postgres_server, postgres_schema, A) as row:
        calls = [asyncio.create_task(add(storage, f"m-{n}")) for n in range(4)]
        await row.waiting(4)
        assert end_sessions(postgres_server, postgres_schema) >= 4
        await row.waiting(4)
    done = await asyncio.gather(*calls)
    assert sorted(one.stamp.version for one in done) == [2, 3, 4, 5]
    assert await count(storage) == 5


@pytest.mark.parametrize("cut", ["cut_requests", "cut_replies"])
async def test_cut_at_a_commit(postgres_server, postgres_schema, cut):
    """A commit whose request or reply is lost on the line is done exactly once, and says what it made."""
    with CountingLine(postgres_server.port) as line:
        url = postgres_server.url.replace(f":{postgres_server.port}/", f":{line.port}/")
        storage = PostgresqlStorage(url, schema_name=postgres_schema, ssl_mode="disable")
        await add(storage)
        setattr(line, cut, 1)
        done = await add(storage, "marked", puts=[Put("variables", "k", b"1")])
        assert line.cuts == 1
        assert (done.stamp.version, done.counters["variables", "n"], done.logs["history"].head) == (2, 2, 2)
        assert (await storage.outcome(A, done.stamp.commit_id)) == done.stamp
        assert await count(storage) == 2
        await storage.close()


async def test_what_is_left_of_a_first_sending(storage):
    """A commit that was sent again and done can't be done by its first sending, should that arrive last."""
    await add(storage)
    part = Part(scope=A, increments=[Increment("variables", "n", 1)], appends=[Append("history", "m", b"x")])

    def call():
        return CommitCall([part], commit_id=5, now=None, durable=True, lease=None, release=False, once=None).arguments

    here = await storage._here()
    again = call()
    again[RESENT] = True
    found = [(await here.run(storage._calls.commit, *arguments))[0]["status"] for arguments in (again, call(), again)]
    assert found == ["ok", "fenced", "again"]
    assert await count(storage) == 2


async def test_undecided(postgres_schema, monkeypatch):
    """When the server stays away, the outcome of a commit that was sent is unknown; one that wasn't sent failed."""
    monkeypatch.setattr(commit, "DECIDED_WITHIN", 0.3)
    with PostgresServer(durable=True) as server:
        storage = PostgresqlStorage(server.url, schema_name=postgres_schema, application_name=postgres_schema)
        await add(storage)
        async with RowLock(server, postgres_schema, A) as row:
            waiting = asyncio.create_task(add(storage, "lost"))
            await row.waiting(1)
            server.kill()
            row.connection.terminate()
            row.connection = await asyncpg.connect(server.restart().url)
            await row.connection.execute("BEGIN")
            server.kill()
            with pytest.raises(CommitUnknownError) as unknown:
                await waiting
            with pytest.raises(StorageUnavailableError):
                await add(storage, "never sent")
            server.restart()
            row.connection = await asyncpg.connect(server.url)
        assert await storage.outcome(A, unknown.value.commit_id) is None
        assert await count(storage) == 1
        await add(storage)
        assert await count(storage) == 2
        await storage.close()


async def test_acknowledged_commits_survive_the_server(postgres_schema):
    """What was acknowledged is there after the server was ended at once, though turns were taken unsynced."""
    with PostgresServer(durable=True) as server:
        storage = PostgresqlStorage(server.url, schema_name=postgres_schema)
        await storage.open()
        assert storage.capabilities.durability == "power"
        for number in range(1, 6):
            lease = (await take_turn(storage, A, "turn", patience=60)).lease
            part = Part(scope=A, puts=[Put("variables", "k", b"%d" % number)])
            await storage.commit([part], commit_id=new_id(), lease=lease, release=True)
            await take_turn(storage, B, "forgotten?", seconds=0.01)
            server.kill()
            server.restart()
            assert (await storage.read(A, EVERYTHING)).stamp.version == number
        await storage.close()
