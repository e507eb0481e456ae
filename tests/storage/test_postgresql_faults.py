"""What goes wrong with a PostgreSQL server is a typed error that says how to mend it, and nothing is half written."""

import asyncio
import random
import string
import sys
from contextlib import suppress

import asyncpg
import pytest

from agentstate.errors import (
    ConfigError,
    MissingDependencyError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.postgresql import PostgresqlOptions, PostgresqlStorage
from agentstate.storage.protocol import Append, Increment, Part, Put, ScopeQuery
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.postgres import PostgresServer
from tests.servers import free_port

A = StateScope.conversation("a")
CHANGE = {"puts": [Put("variables", "k", b"1")], "appends": [Append("history", "m", b"x")]}


async def put(storage, **change):
    """Commit one part."""
    (done,) = await storage.commit([Part(scope=A, **(change or CHANGE))], commit_id=new_id())
    return done


@pytest.fixture
async def storage(postgres_server, postgres_schema):
    """An open storage in this test's schema."""
    made = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, application_name=postgres_schema)
    await made.open()
    yield made
    await made.close()


def role(server, name, rights="", **settings):
    """Make a role of the test's own, and return how it logs in."""
    server.ask(f"CREATE ROLE {name}_role LOGIN {rights} PASSWORD 'secret'")
    for setting, value in settings.items():
        server.ask(f"ALTER ROLE {name}_role SET {setting} = '{value}'")
    return {"username": f"{name}_role", "password": "secret"}


async def opening(url, **settings):
    """Return what opening a storage raises."""
    storage = PostgresqlStorage(url, **settings)
    try:
        with pytest.raises((StorageError, ConfigError)) as raised:
            await storage.open()
    finally:
        await storage.close()
    return raised.value


# -- where it can't be opened ------------------------------------------------------------------


async def test_no_server():
    """Nobody listens: unavailable, and the remedy names the url."""
    error = await opening(f"postgresql://127.0.0.1:{free_port()}/x")
    assert type(error) is StorageUnavailableError
    assert "correct the url" in error.remedy


async def test_wrong_password(postgres_server, postgres_schema):
    """Neither the right nor the wrong password is shown."""
    error = await opening(postgres_server.url, password="battery staple", schema_name=postgres_schema)
    assert type(error) is StorageAccessError
    assert "battery" not in str(error)


async def test_unknown_database(postgres_server):
    """A database that isn't there is a matter of configuration."""
    error = await opening(postgres_server.url, database="nowhere")
    assert type(error) is ConfigError
    assert "Create the database" in error.remedy


async def test_another_encoding(postgres_server):
    """A database that can't hold every id is refused."""
    postgres_server.ask("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    error = await opening(postgres_server.url, database="bytes")
    assert type(error) is ConfigError
    assert "UTF8" in error.remedy


async def test_no_right_to_create(postgres_server, postgres_schema):
    """Who may not make the schema is told which right is missing; once it is made, using it is enough."""
    guest = {**role(postgres_server, postgres_schema), "schema_name": postgres_schema}
    error = await opening(postgres_server.url, **guest)
    assert type(error) is StorageAccessError
    assert "CREATE" in error.remedy
    owner = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema)
    await owner.open()
    postgres_server.ask(f"GRANT USAGE ON SCHEMA {postgres_schema} TO {guest['username']}")
    postgres_server.ask(f"GRANT ALL ON ALL TABLES IN SCHEMA {postgres_schema} TO {guest['username']}")
    storage = PostgresqlStorage(postgres_server.url, **guest)
    assert (await put(storage)).stamp.version == 1
    await storage.close()
    await owner.close()


async def test_a_server_that_takes_no_more(postgres_schema):
    """At the server's limit of connections those there are serve everybody; without any it is unavailable."""
    with PostgresServer(max_connections="8", superuser_reserved_connections="0") as server:
        storage = PostgresqlStorage(server.url, schema_name=postgres_schema, pool_size=20)
        await storage.open()
        others = [await asyncpg.connect(server.url) for _ in range(6)]
        await asyncio.gather(*(put(storage) for _ in range(20)))
        assert (await storage.read(A, EVERYTHING)).stamp.version == 20
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(server.url))
        error = await opening(server.url, schema_name=postgres_schema)
        assert type(error) is StorageUnavailableError
        assert "max_connections" in error.remedy
        for one in others:
            await one.close()
        await storage.close()


# -- while it runs -----------------------------------------------------------------------------


async def test_read_only(storage, postgres_server, postgres_schema):
    """A database that may only be read: reading works, a commit says so and writes nothing."""
    await put(storage)
    who = role(postgres_server, postgres_schema, "SUPERUSER", default_transaction_read_only="on")
    reader = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, **who)
    assert (await reader.read(A, EVERYTHING)).stamp.version == 1
    for call in (put(reader), take_turn(reader, A, "turn")):
        with pytest.raises(StorageAccessError, match="primary"):
            await call
    assert (await reader.read(A, EVERYTHING)).stamp.version == 1
    await reader.close()


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", StorageFullError),
        ("53200", StorageFullError),
        ("42501", StorageAccessError),
        ("57014", StorageUnavailableError),
        ("XX000", StorageError),
    ],
)
async def test_refused_in_the_middle(storage, postgres_server, postgres_schema, state, error):
    """A refusal at the last statement of a commit (a full disk, say) undoes the first ones."""
    before = await put(storage)
    postgres_server.ask(
        f"CREATE FUNCTION {postgres_schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE SQLSTATE '{state}'; END$$"
    )
    postgres_server.ask(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {postgres_schema}.journal EXECUTE FUNCTION {postgres_schema}.refuse()"
    )
    with pytest.raises(error) as raised:
        await put(storage, increments=[Increment("variables", "n", 1)], **CHANGE)
    assert type(raised.value) is error
    found = await storage.read(A, EVERYTHING)
    assert (found.stamp, set(found.entries)) == (before.stamp, {("variables", "k")})
    assert found.logs["history"].head == 1
    postgres_server.ask(f"DROP TRIGGER refuse ON {postgres_schema}.journal")
    assert (await put(storage)).stamp.version == 2


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_a_stricter_isolation(postgres_server, postgres_schema, level):
    """A server that isolates more strictly undoes commits that meet; they are done again, and nothing is lost."""
    who = role(postgres_server, postgres_schema, "SUPERUSER", default_transaction_isolation=level)
    storage = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, pool_size=4, **who)
    await asyncio.gather(*(put(storage, increments=[Increment("variables", "n", 1)]) for _ in range(20)))
    assert (await storage.read(A, EVERYTHING)).entries["variables", "n"].value == 20
    await storage.close()


async def test_deadlocks_of_others(storage, postgres_server, postgres_schema):
    """A commit that the server undoes to end a deadlock is done again."""
    postgres_server.ask(f"CREATE TABLE {postgres_schema}.times (n integer)")
    postgres_server.ask(
        f"CREATE FUNCTION {postgres_schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        f"IF nextval('{postgres_schema}.twice') < 3 THEN RAISE SQLSTATE '40P01'; END IF; RETURN new; END$$"
    )
    postgres_server.ask(f"CREATE SEQUENCE {postgres_schema}.twice")
    postgres_server.ask(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {postgres_schema}.journal "
        f"FOR EACH ROW EXECUTE FUNCTION {postgres_schema}.refuse()"
    )
    assert (await put(storage)).stamp.version == 1
    assert postgres_server.ask(f"SELECT last_value FROM {postgres_schema}.twice")[0][0] == 3


async def test_all_connections_busy(postgres_server, postgres_schema):
    """Who waits too long for a connection is told which setting to raise; the others are served."""
    storage = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, pool_size=1, pool_timeout=0.05)
    await storage.open()
    busy = asyncio.create_task(storage._ready().ask("SELECT pg_sleep(0.5)"))
    await asyncio.sleep(0)
    with pytest.raises(StorageUnavailableError, match="pool_size"):
        await put(storage)
    await busy
    assert (await put(storage)).stamp.version == 1
    await storage.close()


async def test_a_server_that_hangs(postgres_server, postgres_schema):
    """A call without an answer is given up; the connection isn't used again."""
    storage = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, pool_size=1, command_timeout=0.3)
    await put(storage)
    with pytest.raises(StorageUnavailableError, match="TimeoutError"):
        await storage._ready().ask("SELECT pg_sleep(60)")
    assert (await put(storage)).stamp.version == 2
    await storage.close()


async def test_the_longest_names(storage):
    """Ids, tenants, owners and labels of 512 bytes each fit the indexes, also where they have to be escaped."""
    chance = random.Random(1)
    text = lambda letters: "".join(chance.choices(letters, k=512))  # noqa: E731
    scope = StateScope.step(text("/%ab"), text(string.printable), tenant=text(string.ascii_letters))
    labels = {text(string.printable): text(string.printable)}
    await storage.commit([Part(scope=scope, owner=text(string.ascii_letters), labels=labels)], commit_id=1)
    owner = (await storage.read(scope, EVERYTHING)).owner
    for query in (ScopeQuery(owner=owner), ScopeQuery(label=next(iter(labels.items()))), ScopeQuery(order="updated")):
        page = await storage.scopes(query._replace(tenant=scope.tenant))
        assert [info.scope for info in page.items] == [scope]


@pytest.mark.parametrize("where", ["id", "key"])
async def test_text_that_the_server_refuses(storage, where):
    """Names with a NUL, which the core never lets through, are an error and no other name."""
    part = Part(scope=A, puts=[Put("variables", "a\0b", b"1")]) if where == "key" else Part(scope=A, owner="a\0b")
    with pytest.raises(StorageError):
        await storage.commit([part], commit_id=1)
    assert (await storage.read(A, EVERYTHING)).stamp is None


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("mysql://h/d", {}, "scheme"),
        ("postgresql://h:port/d", {}, "port"),
        ("postgresql://h/d?pool_sise=3", {}, "pool_size"),
        ("postgresql://h/d", {"pool_sise": 3}, "pool_size"),
        ("postgresql://h/d", {"pool_size": 0}, "pool_size"),
        ("postgresql://h/d", {"schema_name": "x" * 64}, "63 bytes"),
        ("postgresql://h/d", {"schema_name": "pg_mine"}, "pg_"),
        ("postgresql://h/d", {"schema_name": ""}, "schema"),
    ],
)
def test_wrong_settings(url, settings, said):
    """A wrong setting is named, with the nearest right one."""
    with pytest.raises(ConfigError) as raised:
        PostgresqlStorage(url, **settings)
    assert said in str(raised.value)


def test_url():
    """User, password, database and settings may stand in the URL; the location shows no password."""
    options = PostgresqlOptions(url="postgres://ada:s%3Acret@db.example:6000/cha%20t?pool_size=3&schema_name=own")
    assert (options.username, options.password.get_secret_value(), options.database) == ("ada", "s:cret", "cha t")
    assert (options.address, options.pool_size, options.schema_name) == (("db.example", 6000), 3, "own")
    assert options.location == "postgresql://ada@db.example:6000/cha%20t?schema_name=own"
    assert PostgresqlOptions(url="postgresql://[::1]:6000/x").address == ("::1", 6000)
    made = registry.create(registry.backend_for_url("postgres://h/d"), {"url": "postgres://h/d?pool_size=2"})
    assert (made.options.pool_size, made.options.database) == (2, "d")


async def test_tls_files(tmp_path):
    """Files that can't be used are a matter of configuration."""
    (tmp_path / "ca.pem").write_text("no certificate")
    for settings in ({"ssl_ca_file": str(tmp_path / "ca.pem")}, {"ssl_cert_file": str(tmp_path / "none.pem")}):
        error = await opening("postgresql://127.0.0.1:1/x", ssl_mode="verify-full", **settings)
        assert type(error) is ConfigError


async def test_tls_is_demanded(postgres_server):
    """A server without TLS is refused where TLS is demanded."""
    error = await opening(postgres_server.url, ssl_mode="require")
    assert type(error) is StorageUnavailableError


async def test_missing_driver(monkeypatch):
    """Without the driver the error names the install command."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    storage = PostgresqlStorage("postgresql://127.0.0.1:1/x")
    with pytest.raises(MissingDependencyError, match=r"agentstate-suite\[postgresql\]"):
        await storage.open()
    await storage.close()
