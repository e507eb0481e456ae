"""What a turn costs on the line to a PostgreSQL server, and that it works through a transaction pooler."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from agentstate.errors import StorageError
from agentstate.scope import StateScope
from agentstate.storage.postgresql import PostgresqlStorage
from agentstate.storage.protocol import Append, Check, LeaseRequest, OnceRecord, Part, Put, ScopeQuery, Wants
from agentstate.testing.turns import new_id, take_turn
from tests.postgres import USER, PostgresServer
from tests.postgres_lines import CountingLine, PoolingLine

A, B = StateScope.conversation("a"), StateScope.conversation("b")
WANTS = Wants(tails=(("history", 10),), keys=(("variables", "k"),))


@pytest.fixture
def line(postgres_server):
    """A line that counts."""
    with CountingLine(postgres_server.port) as line:
        yield line


@asynccontextmanager
async def opened(server, line, schema, **settings):
    """An open storage whose connections go through a line."""
    url = server.url.replace(f":{server.port}/", f":{line.port}/")
    storage = PostgresqlStorage(url, schema_name=schema, ssl_mode="disable", **settings)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def turn(storage, scope, number, *others):
    """Read with the turn and commit what a usual turn changes, and whatever else."""
    lease = LeaseRequest(new_id(), 30.0, "turn")
    found = await storage.read(scope, WANTS, lease=lease, once=f"key-{number}", touch=60.0)
    assert found.lease is not None
    stamp = found.logs["history"].stamp if found.logs else None
    part = Part(
        scope=scope,
        birth=found.birth,
        checks=[Check("log", "history", stamp)],
        puts=[Put("variables", "k", b"%d" % number)],
        appends=[Append("history", f"{number}-{n}", b"x", unique=True) for n in (1, 2)],
        labels={"status": str(number)},
        ttl=60.0,
        record=b"{}",
    )
    once = OnceRecord(f"key-{number}", "f", 1, b"r")
    await storage.commit([part, *others], commit_id=new_id(), lease=found.lease, release=True, once=once)


async def test_a_turn_is_two_trips(postgres_server, line, postgres_schema):
    """One to read and take the turn, one to commit and give it back, once the statements are known."""
    async with opened(postgres_server, line, postgres_schema, pool_size=1) as storage:
        for number in range(3):
            await turn(storage, A, number)
        before = line.trips
        for number in range(3, 8):
            await turn(storage, A, number)
        assert line.trips - before == 5 * 2
        before = line.trips
        await turn(storage, A, 9, Part(scope=B, puts=[Put("variables", "k", b"1")]))
        assert line.trips - before == 2


async def test_every_look_is_one_trip(postgres_server, line, postgres_schema):
    """What looks without a turn needs one trip; renewing a lifetime on the way needs another one, now and then."""
    async with opened(postgres_server, line, postgres_schema, pool_size=1) as storage:
        await turn(storage, A, 1)
        looks = (
            lambda: storage.read(A, WANTS),
            lambda: storage.read(A, WANTS, touch=60.0),
            lambda: storage.read_log(A, "history", limit=5),
            lambda: storage.find_item(A, "history", "1-1"),
            lambda: storage.scan(A, "variables"),
            lambda: storage.scopes(ScopeQuery(label=("status", "1"))),
            lambda: storage.journal(A),
            lambda: storage.outcome(A, 1),
            lambda: storage.feed(A.partition(256)),
            storage.sweep,
        )
        for look in looks:
            await look()
        before = line.trips
        for look in looks:
            await look()
        assert line.trips - before == len(looks)


async def test_four_trips_without_prepared_statements(postgres_server, line, postgres_schema):
    """With ``pooler`` nothing is prepared: a statement is described first, and sent whole afterwards."""
    async with opened(postgres_server, line, postgres_schema, pooler=True, pool_size=1) as storage:
        await turn(storage, A, 1)
        before = line.trips
        for number in range(2, 5):
            await turn(storage, A, number)
        assert line.trips - before == 3 * 4


@pytest.fixture(scope="module")
def trusting_server():
    """A server that asks for no password, as poolers' servers often are towards them."""
    with PostgresServer(auth="trust") as server:
        yield server


@pytest.fixture
def pooler(trusting_server):
    """A transaction pooler in front of it."""
    with PoolingLine(trusting_server.port, USER) as line:
        yield line


async def test_through_a_pooler(trusting_server, pooler, postgres_schema):
    """Everything works when each transaction may meet another session, also waiting for a turn."""
    async with opened(trusting_server, pooler, postgres_schema, pooler=True) as storage:
        assert not storage.capabilities.push
        for number in range(5):
            await turn(storage, A, number)
        assert (await storage.read(A, WANTS)).logs["history"].head == 10
        assert [info.scope for info in (await storage.scopes(ScopeQuery())).items] == [A]
        held = await take_turn(storage, A, "holder")
        waiting = asyncio.create_task(take_turn(storage, A, "next", patience=20))
        await asyncio.sleep(0.02)
        await storage.leave(A, held.lease.nonce)
        assert (await waiting).lease is not None
        assert list(await asyncio.to_thread(storage.renew, [held.lease], 30.0)) == [False]
        assert await storage.failures(A) == ()


async def test_prepared_statements_through_a_pooler(trusting_server, pooler, postgres_schema):
    """Without the setting such a pooler makes a typed error, not a wrong answer."""

    async def turns():
        async with opened(trusting_server, pooler, postgres_schema) as storage:
            for number in range(5):
                await turn(storage, A, number)

    with pytest.raises(StorageError):
        await turns()
