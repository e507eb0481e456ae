"""What lies in a PostgreSQL database: made once, updated in place, readable by people, listed by indexes."""

import asyncio
import json
import re
import time
from pathlib import Path

import asyncpg
import pytest

from agentstate import ConversationContext
from agentstate.errors import StorageAccessError
from agentstate.scope import StateScope
from agentstate.storage.postgresql import PostgresqlStorage, layout
from agentstate.storage.postgresql.encode import label_digest
from agentstate.storage.postgresql.listing import page_arguments
from agentstate.storage.protocol import LeaseRequest, Part, Put, ScopeQuery
from agentstate.testing.clock import FakeClock
from agentstate.testing.fresh import close, fresh_storage
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

A, B = StateScope.conversation("a"), StateScope.conversation("b")
DOCS = Path(__file__).parents[2] / "docs" / "backends.md"
HOSTILE = (
    'a"b',
    "a'b; DROP SCHEMA public CASCADE; --",
    "$body$ {schema} {release} $$",
    "Ünï😀",
    " ",
    "public",
    "x" * 63,
    '"',
    "'",
    "SELECT",
)


def storage_in(server, schema, **settings):
    """A storage in a schema, not yet open."""
    return PostgresqlStorage(server.url, schema_name=schema, **settings)


async def put(storage, scope=A, **change):
    """Commit one part."""
    change = change or {"puts": [Put("variables", "k", b"1")]}
    (done,) = await storage.commit([Part(scope=scope, **change)], commit_id=new_id())
    return done


# -- made and updated --------------------------------------------------------------------------


@pytest.mark.parametrize("schema", HOSTILE)
async def test_hostile_schema_names(postgres_server, schema):
    """A schema's name is a name, whatever it holds, in tables, functions and dynamic statements."""
    storage = storage_in(postgres_server, schema)
    await put(storage, puts=[Put("variables", "k", b"1")], labels={"l": "v"}, ttl=60.0, owner="ada")
    assert (await storage.read(A, EVERYTHING)).stamp.version == 1
    for query in (ScopeQuery(), ScopeQuery(order="updated"), ScopeQuery(label=("l", "v")), ScopeQuery(owner="ada")):
        assert [info.scope for info in (await storage.scopes(query)).items] == [A]
    assert await storage.drop(A)
    await storage.close()
    found = postgres_server.ask("SELECT schemaname FROM pg_tables WHERE tablename = 'states'")
    assert schema in [name for (name,) in found]


async def test_schemas_are_apart(postgres_server, postgres_schema):
    """Two schemas of one database are two stores."""
    one, other = (storage_in(postgres_server, f"{postgres_schema}_{n}") for n in (1, 2))
    await put(one)
    assert (await other.read(A, EVERYTHING)).stamp is None
    await one.close()
    await other.close()


async def test_fresh_for_a_test(postgres_server, request):
    """The pytest plugin gives each test a schema of its own, and removes it with the test."""

    def schemas():
        return {name for (name,) in postgres_server.ask("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'test%'")}

    before = schemas()
    one, other = (fresh_storage(postgres_server.url, FakeClock(), request) for _ in range(2))
    await put(one)
    assert (await other.read(A, EVERYTHING)).stamp is None
    assert len(schemas() - before) == 2
    for storage in (one, other):
        await asyncio.to_thread(close, storage)
    assert schemas() == before


async def test_opened_by_many_at_once(postgres_server, postgres_schema):
    """Of many that open an empty database at once one makes the layout, and all find it."""
    storages = [storage_in(postgres_server, postgres_schema) for _ in range(8)]
    await asyncio.gather(*(put(storage) for storage in storages))
    assert (await storages[0].read(A, EVERYTHING)).stamp.version == 8
    await asyncio.gather(*(storage.close() for storage in storages))


@pytest.fixture
def next_format(monkeypatch, tmp_path):
    """Return a function that makes this process one format newer, with the migration it is given."""

    def use(sql):
        for file in layout.SQL.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "next.sql").write_text(sql)
        monkeypatch.setattr(layout, "SQL", tmp_path)
        monkeypatch.setattr(layout, "MIGRATIONS", {**layout.MIGRATIONS, layout.FORMAT + 1: "next.sql"})
        monkeypatch.setattr(layout, "FORMAT", layout.FORMAT + 1)

    return use


async def test_migrated_in_place(postgres_server, postgres_schema, next_format):
    """A newer release brings the tables up to date where they lie, once, whoever comes first."""
    old = storage_in(postgres_server, postgres_schema)
    await put(old)
    next_format("ALTER TABLE {schema}.states ADD COLUMN colour text DEFAULT 'blue';")
    storages = [storage_in(postgres_server, postgres_schema) for _ in range(4)]
    await asyncio.gather(*(put(storage) for storage in storages))
    assert (await storages[0].read(A, EVERYTHING)).stamp.version == 5
    assert postgres_server.ask(f"SELECT colour FROM {postgres_schema}.states")[0][0] == "blue"
    # What was open goes on: its release's functions are still there.
    await put(old)
    assert postgres_server.ask(f"SELECT value FROM {postgres_schema}.meta WHERE name = 'format'")[0][0] == "2"
    await asyncio.gather(*(storage.close() for storage in (*storages, old)))


async def test_a_migration_that_fails(postgres_server, postgres_schema, next_format):
    """A migration that fails leaves everything as it was."""
    old = storage_in(postgres_server, postgres_schema)
    await put(old)
    await old.close()
    next_format("ALTER TABLE {schema}.states ADD COLUMN colour text; DO $$BEGIN RAISE SQLSTATE '42501'; END$$;")
    storage = storage_in(postgres_server, postgres_schema)
    with pytest.raises(StorageAccessError):
        await storage.open()
    await storage.close()
    sql = "SELECT count(*) FROM information_schema.columns WHERE table_schema = $1 AND column_name = 'colour'"
    assert postgres_server.ask(sql, postgres_schema)[0][0] == 0
    assert postgres_server.ask(f"SELECT value FROM {postgres_schema}.meta WHERE name = 'format'")[0][0] == "1"


async def test_a_restored_dump(postgres_server, postgres_schema):
    """A store whose transaction numbers come from another cluster goes on: commits, and the feed in its order."""
    storage = storage_in(postgres_server, postgres_schema)
    for _ in range(3):
        await put(storage)
    await storage.close()
    for table in ("journal", "states"):
        postgres_server.ask(f"UPDATE {postgres_schema}.{table} SET xid = xid + 10000000000")
    storage = storage_in(postgres_server, postgres_schema)
    await put(storage)
    items = await storage.feed(A.partition(256))
    assert [item.stamp.version for item in items] == [1, 2, 3, 4]
    await put(storage)
    later = await storage.feed(A.partition(256), after=items[-1].cursor)
    assert [item.stamp.version for item in later] == [5]
    await storage.close()


# -- what a transaction waits for --------------------------------------------------------------


async def test_what_waits_for_the_disk(postgres_server, postgres_schema):
    """Taking, waiting for and giving back a turn don't wait for the disk; commits do, whatever the user's setting."""
    postgres_server.ask(f"CREATE ROLE {postgres_schema}_lazy LOGIN SUPERUSER PASSWORD 'lazy'")
    postgres_server.ask(f"ALTER ROLE {postgres_schema}_lazy SET synchronous_commit = off")
    lazy = {"username": f"{postgres_schema}_lazy", "password": "lazy"}
    plain, eager = storage_in(postgres_server, postgres_schema), storage_in(postgres_server, postgres_schema, **lazy)
    server = storage_in(postgres_server, postgres_schema, durability="server", **lazy)
    await plain.open()
    postgres_server.ask(f"CREATE TABLE {postgres_schema}.seen (n serial, what text, setting text)")
    postgres_server.ask(
        f"CREATE FUNCTION {postgres_schema}.see() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        f"INSERT INTO {postgres_schema}.seen(what, setting) VALUES (CASE WHEN new.version > old.version THEN 'commit' "
        "ELSE 'turn' END, current_setting('synchronous_commit')); RETURN new; END$$"
    )
    # Deferred: what counts is the setting when the transaction ends.
    postgres_server.ask(
        f"CREATE CONSTRAINT TRIGGER see AFTER UPDATE ON {postgres_schema}.states DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW EXECUTE FUNCTION {postgres_schema}.see()"
    )
    seen = []
    for storage in (plain, eager, server):
        lease = (await take_turn(storage, A, "turn")).lease
        waiter = LeaseRequest(new_id(), 30.0, "waiter")
        await storage.read(A, EVERYTHING, lease=waiter)
        await storage.wait_turn(A, waiter.nonce, 0.01)
        await storage.leave(A, waiter.nonce)
        await asyncio.to_thread(storage.renew, [lease], 30.0)
        parts = [Part(scope=A, puts=[Put("variables", "k", b"1")])]
        await storage.commit(parts, commit_id=new_id(), lease=lease, release=True)
        sql = f"DELETE FROM {postgres_schema}.seen RETURNING what, setting"
        rows = postgres_server.ask(f"WITH seen AS ({sql}) SELECT DISTINCT what, setting FROM seen ORDER BY 1, 2")
        seen.append([tuple(row) for row in rows])
    # The first commit makes the state: it is an update of the row that the turn made.
    assert seen == [
        [("commit", "on"), ("turn", "off")],
        [("commit", "on"), ("turn", "off")],
        [("commit", "off"), ("turn", "off")],
    ]
    for storage in (plain, eager, server):
        await storage.close()


async def test_capabilities(postgres_server, postgres_schema):
    """Durability is what the server's settings make of it; this test server doesn't sync."""
    storage = storage_in(postgres_server, postgres_schema)
    assert storage.capabilities.durability == "power"
    await storage.open()
    found = storage.capabilities
    assert (found.durability, found.shared, found.leases) == ("process", True, "network")
    assert (found.atomic_scopes, found.partitions, found.push, found.taskless) == (True, 256, True, True)
    await storage.close()


async def test_woken_across_processes_outside_the_commit(postgres_server, postgres_schema):
    """A waiter of another instance is notified, by a transaction that isn't the commit's."""
    holder, waiter = storage_in(postgres_server, postgres_schema), storage_in(postgres_server, postgres_schema)
    lease = (await take_turn(holder, A, "holder")).lease
    nonce = new_id()
    assert (await waiter.read(A, EVERYTHING, lease=LeaseRequest(nonce, 30.0, "waiter"))).lease is None
    waiting = asyncio.create_task(waiter.wait_turn(A, nonce, 60.0))
    waker = waiter._ready().waker
    deadline = time.monotonic() + 20
    while waker.connection is None or not waker._waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    told = []
    wake = waker._wake
    waker._wake = lambda nonce: (told.append(nonce), wake(nonce))
    await holder.commit([Part(scope=A)], commit_id=new_id(), lease=lease, release=True)
    await asyncio.wait_for(waiting, 20)
    assert (await waiter.read(A, EVERYTHING, lease=LeaseRequest(nonce, 30.0, "waiter"))).lease is not None
    assert told in ([str(nonce)], [])  # the poll may have been quicker
    body = (layout.SQL / "commit.sql").read_text()
    assert "notify" not in body.lower()
    await holder.close()
    await waiter.close()


# -- what people see ---------------------------------------------------------------------------


async def test_the_queries_of_the_docs(postgres_server, postgres_schema):
    """Every query that the page on backends shows runs, on what a handler stored, and finds something."""
    storage = storage_in(postgres_server, postgres_schema)
    context = ConversationContext(storage)
    for number in range(3):
        await context.get_or_create(f"c-{number}", user_id="ada")
        await context.set_variable(f"c-{number}", "plan", "pro" if number else "free")
        await context.increment(f"c-{number}", "visits", number + 1)
        await context.add_to_history(f"c-{number}", "user", "Where is my order?")
        await context.add_to_history(f"c-{number}", "assistant", "On its way, with 'quotes' and \\ all.")
    section = DOCS.read_text().partition("\n## PostgreSQL\n")[2].partition("\n## ")[0]
    queries = re.findall(r"^```sql\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(queries) >= 3
    connection = await asyncpg.connect(postgres_server.url)
    try:
        for query in queries:
            assert await connection.fetch(query.replace("agentstate.", f"{postgres_schema}.")), query
    finally:
        await connection.close()
    await storage.close()


async def test_values_that_are_no_json(postgres_server, postgres_schema):
    """What is compressed, binary or no JSON is NULL in the views, and stops no query."""
    storage = storage_in(postgres_server, postgres_schema)
    values = {"json": b'{"a": [1]}', "text": b'"x"', "binary": b"\xff\x00", "nul": b'"\\u0000"', "none": b""}
    await put(storage, puts=[Put("variables", key, value) for key, value in values.items()])
    rows = postgres_server.ask(f"SELECT key, value::text FROM {postgres_schema}.entries_view ORDER BY key")
    assert dict(rows) == {"json": '{"a": [1]}', "text": '"x"', "binary": None, "nul": None, "none": None}
    await storage.close()


# -- listing -----------------------------------------------------------------------------------

FILL = """
INSERT INTO {schema}.states(tenant, kind, id, partition, version, commit_id, birth, created, updated, owner, labels)
SELECT '', CASE WHEN n % 10 = 0 THEN 'user' ELSE 'conversation' END, 'c-' || lpad(n::text, 6, '0'), n % 256, 1, n, n,
    n, 1000000 - n, 'owner-' || n % 50, '{{"status": "open"}}' FROM generate_series(1, 100000) n"""
LABELS = """
INSERT INTO {schema}.labels SELECT number, tenant, $1, kind, id, updated FROM {schema}.states WHERE number % 2 = 0"""


async def test_a_page_of_a_hundred_thousand(postgres_server, postgres_schema):
    """A page of 50 states touches few pages of the database, in every order and with every filter.

    There are no statistics, as in any table that has grown quickly. A scan would touch thousands.
    """
    storage = storage_in(postgres_server, postgres_schema, pool_size=1)
    await storage.open()
    postgres_server.ask(FILL.replace("{schema}", postgres_schema).replace("{{", "{").replace("}}", "}"))
    postgres_server.ask(LABELS.replace("{schema}", postgres_schema), label_digest("status", "open"))
    middle = (await storage.scopes(ScopeQuery(limit=50, order="updated"))).cursor
    queries = {
        "by id": ScopeQuery(limit=50),
        "backwards": ScopeQuery(limit=50, reverse=True),
        "by update": ScopeQuery(limit=50, order="updated"),
        "newest": ScopeQuery(limit=50, order="updated", reverse=True),
        "a kind": ScopeQuery(limit=50, kind="conversation", order="updated", reverse=True),
        "a prefix": ScopeQuery(limit=50, kind="conversation", prefix="c-0500"),
        "an owner": ScopeQuery(limit=50, owner="owner-7"),
        "an owner's newest": ScopeQuery(limit=50, owner="owner-7", order="updated", reverse=True),
        "a label": ScopeQuery(limit=50, label=("status", "open")),
        "a label's newest": ScopeQuery(limit=50, label=("status", "open"), order="updated", reverse=True),
        "the next page": ScopeQuery(limit=50, order="updated", cursor=middle),
        "a time": ScopeQuery(limit=50, order="updated", updated_after=950_000.0, updated_before=960_000.0),
    }
    touched, times = {}, {}
    for name, query in queries.items():
        assert len((await storage.scopes(query)).items) == 50, name
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {storage._calls.page}"
        ((plan,),) = await storage._ready().ask(explain, *page_arguments(query, None))
        (told,) = json.loads(plan)
        touched[name], times[name] = told["Plan"]["Shared Hit Blocks"], told["Execution Time"]
    # What only a few have is found as quickly.
    postgres_server.ask(f"UPDATE {postgres_schema}.states SET owner = 'rare' WHERE number = 50000")
    for order in ("id", "updated"):
        plan = page_arguments(ScopeQuery(owner="rare", order=order), None)
        ((plan,),) = await storage._ready().ask(explain, *plan)
        touched[f"rare by {order}"] = json.loads(plan)[0]["Plan"]["Shared Hit Blocks"]
    assert max(touched.values()) < 700, touched
    assert min(times.values()) < 20, times
    await storage.close()
