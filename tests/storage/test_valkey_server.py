"""What the Valkey backend demands of a server, leaves alone on it, and says when it can't be had."""

import asyncio

import pytest

from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    NewerFormatError,
    StateError,
    StorageAccessError,
    StorageFullError,
    StorageUnavailableError,
    UnsupportedError,
)
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, CutTail, Increment, LeaseRequest, Part, Put, ScopeQuery, TrimHead, Wants
from agentstate.storage.valkey import ValkeyStorage
from agentstate.storage.valkey.faults import ServerError, from_server
from agentstate.testing.turns import EVERYTHING, new_id
from tests.servers import ValkeyServer, free_port

C = StateScope.conversation("c-1")
KEY = "agentstate:{110}"


@pytest.fixture
async def opened():
    """Return a function that opens a storage, closed at the end."""
    made = []

    async def open_one(url, **settings):
        storage = ValkeyStorage(url, **settings)
        made.append(storage)
        await storage.open()
        return storage

    yield open_one
    for one in made:
        await one.close()


@pytest.fixture
def server():
    """Return a server of this test's own."""
    with ValkeyServer() as made:
        yield made


async def write(storage, scope=C, **part):
    """Commit one part."""
    (done,) = await storage.commit([Part(scope=scope, **part)], commit_id=new_id())
    return done


class TestDemands:
    """What is checked when a store is opened."""

    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    async def test_eviction(self, opened, policy):
        """A server that may drop states is refused, unless that was allowed."""
        with ValkeyServer(maxmemory="100mb", maxmemory_policy=policy) as server:
            with pytest.raises(ConfigError, match="noeviction"):
                await opened(server.url)
            await opened(server.url, allow_eviction=True)
            server.ask("CONFIG", "SET", "maxmemory", 0)
            await opened(server.url)

    @pytest.mark.parametrize(
        ("config", "durability", "declared"),
        [
            ({}, "server", "process"),
            ({"appendonly": True, "appendfsync": "everysec"}, "server", "process"),
            ({"appendonly": True, "appendfsync": "always"}, "server", "power"),
            ({"appendonly": True, "appendfsync": "always"}, "full", "power"),
            ({"appendonly": True, "appendfsync": "everysec"}, "full", None),
            ({"appendfsync": "always"}, "full", None),
        ],
    )
    async def test_durability(self, opened, config, durability, declared):
        """Full durability demands that every commit is synced; what is declared is what is so."""
        with ValkeyServer(**config) as server:
            if declared is None:
                with pytest.raises(ConfigError, match="appendfsync always"):
                    await opened(server.url, durability=durability)
            else:
                assert (await opened(server.url, durability=durability)).capabilities.durability == declared

    @pytest.mark.parametrize(("durability", "declared"), [("server", "process"), ("full", "power")])
    async def test_settings_that_may_not_be_seen(self, opened, server, durability, declared):
        """Where CONFIG is forbidden, as on hosted servers, the user's word counts."""
        server.ask("ACL", "SETUSER", "default", "-config")
        assert (await opened(server.url, durability=durability)).capabilities.durability == declared

    async def test_the_fewest_rights(self, opened, server):
        """The documented rights on keys, channels and commands are enough for everything."""
        rights = ["~agentstate:*", "&agentstate:wake:*", "+@all", "-@dangerous", "-@admin"]
        server.ask("ACL", "SETUSER", "app", "on", ">pw", *rights)
        storage = await opened(server.url, username="app", password="pw")
        await write(storage, puts=[Put("variables", "k", b"1")], owner="ada", ttl=9.0, record=b"r")
        first = await storage.read(C, EVERYTHING, lease=LeaseRequest(1, 30.0, "h"))
        await storage.read(C, EVERYTHING, lease=LeaseRequest(2, 30.0, "h"))
        await storage.wait_turn(C, 2, 0.01)
        assert storage.renew([first.lease], 30.0) == [True]
        await storage.leave(C, 1, failure=b"f")
        await storage.leave(C, 2)
        assert len((await storage.scopes(ScopeQuery(owner="ada"))).items) == 1
        await storage.sweep()
        assert await storage.drop(C)

    async def test_newer_format(self, opened, server):
        """A store that a newer release wrote is refused and left as it is."""
        await opened(server.url)
        server.ask("HSET", "agentstate:{store}", "format", 2)
        with pytest.raises(NewerFormatError, match="format 2"):
            await opened(server.url)
        assert server.ask("HGET", "agentstate:{store}", "format") == b"2"

    async def test_the_number_of_partitions_stays(self, opened, server):
        """A store keeps the number of partitions that it was made with."""
        server.ask("HSET", "small:{store}", "format", 1, "partitions", 4)
        storage = await opened(server.url, key_prefix="small:")
        assert storage.capabilities.partitions == 4
        scopes = [StateScope.conversation(f"c-{number}") for number in range(20)]
        for scope in scopes:
            await write(storage, scope, puts=[Put("variables", "k", b"1")])
        assert {info.scope for info in (await storage.scopes(ScopeQuery())).items} == {*scopes}
        tags = {key.split(b"}")[0] for key in server.ask("KEYS", "small:{*}state:*")}
        assert tags == {b"small:{%d" % number for number in range(4)}


class TestFailures:
    """What goes wrong is a typed error that says where and how to mend it; nothing is stored."""

    async def test_server_down(self, opened):
        """A server that isn't there is named, without the password."""
        with pytest.raises(StorageUnavailableError, match="Start the server") as caught:
            await opened(f"valkey://ada:s3cret@127.0.0.1:{free_port()}")
        assert "s3cret" not in str(caught.value)

    async def test_unknown_host(self, opened):
        """A host that has no address is an error that names it."""
        with pytest.raises(StorageUnavailableError, match=r"nowhere\.invalid"):
            await opened("valkey://nowhere.invalid")

    async def test_not_a_valkey(self, opened):
        """Something else that listens there is found out."""

        async def babble(reader, writer):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read(100)
            writer.close()

        async with await asyncio.start_server(babble, "127.0.0.1", 0) as other:
            port = other.sockets[0].getsockname()[1]
            with pytest.raises(StorageUnavailableError, match="protocol"):
                await opened(f"valkey://127.0.0.1:{port}")

    async def test_wrong_password(self, opened):
        """Wrong, missing and needless passwords are told from a server that is down."""
        with ValkeyServer() as server:
            server.ask("CONFIG", "SET", "requirepass", "right")
            for settings in ({"password": "wrong"}, {}, {"username": "nobody", "password": "right"}):
                with pytest.raises(StorageAccessError, match="password"):
                    await opened(server.url, **settings)
            await opened(server.url, password="right")
        with ValkeyServer() as server, pytest.raises(StorageAccessError, match="has no password"):
            await opened(server.url, password="needless")

    async def test_missing_rights(self, opened, server):
        """A right that is missing is named as the server names it."""
        storage = await opened(server.url)
        server.ask("ACL", "SETUSER", "default", "resetkeys", "~other:*")
        with pytest.raises(StorageAccessError, match="NOPERM"):
            await write(storage, puts=[Put("variables", "k", b"1")])

    async def test_full_memory(self, opened, server):
        """With no memory left nothing is half written, and reading and deleting still work."""
        storage = await opened(server.url)
        before = await write(storage, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")])
        server.ask("CONFIG", "SET", "maxmemory", 1)
        changes = (
            {"puts": [Put("variables", "k", b"2")]},
            {"increments": [Increment("variables", "n", 1)], "appends": [Append("history", "m2", b"2")]},
            {"puts": [Put("variables", "k", b"2")], "owner": "ada", "labels": {"a": "b"}, "ttl": 9.0, "record": b"r"},
        )
        for change in changes:
            with pytest.raises(StorageFullError, match="maxmemory"):
                await write(storage, **change)
        found = await storage.read(C, Wants(tails=(("history", 9),)))
        assert found.stamp == before.stamp
        assert (found.entries["variables", "k"].value, found.logs["history"].head, found.owner) == (b"1", 1, None)
        assert await storage.drop(C)

    async def test_replica(self, opened, server):
        """A replica can be read; writing to it is an error that names the primary as the remedy."""
        storage = await opened(server.url)
        await write(storage, puts=[Put("variables", "k", b"1")])
        server.ask("REPLICAOF", "127.0.0.1", free_port())
        server.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
        assert (await storage.read(C, EVERYTHING)).stamp is not None
        with pytest.raises(StorageUnavailableError, match="primary"):
            await write(storage, puts=[Put("variables", "k", b"2")])

    async def test_cluster(self, opened):
        """A node of a cluster is refused by name, not by half of the keys."""
        with ValkeyServer(cluster_enabled=True) as server:
            server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 10)
            with pytest.raises((UnsupportedError, StorageUnavailableError), match=r"(?i)cluster"):
                await opened(server.url)

    async def test_too_many_clients(self, opened):
        """A server that takes no more clients says so."""
        with ValkeyServer(maxclients=1) as server:
            await opened(server.url)
            with pytest.raises(StorageUnavailableError, match="maxclients"):
                await opened(server.url)

    @pytest.mark.parametrize(
        ("said", "kind"),
        [
            ("LOADING Valkey is loading the dataset in memory", StorageUnavailableError),
            ("MISCONF Errors writing to the AOF file: No space left on device", StorageFullError),
            ("MISCONF Valkey is configured to save RDB snapshots", StorageUnavailableError),
            ("MOVED 1 127.0.0.1:7000", UnsupportedError),
            ("ERR something new", StateError),
        ],
    )
    def test_meanings(self, said, kind):
        """Replies that are hard to provoke are told apart, too, and quoted."""
        error = from_server(ServerError(said), "valkey://h:1/0")
        assert isinstance(error, kind)
        assert said in str(error)

    @pytest.mark.parametrize("gone", ["log:history", "entries"])
    async def test_missing_parts(self, opened, server, gone):
        """A state whose parts don't fit its record is damaged: it is neither read nor written."""
        storage = await opened(server.url)
        appends = [Append("history", f"m{number}", b"1") for number in range(3)]
        await write(storage, puts=[Put("variables", "k", b"1")], appends=appends)
        server.ask("DEL", f"{KEY}{gone}:conversation:c-1")
        with pytest.raises(DamagedStateError, match=gone):
            await storage.read(C, Wants(tails=(("history", 9),)))
        with pytest.raises(DamagedStateError, match=gone):
            await write(storage, puts=[Put("variables", "k", b"2")], appends=appends)

    @pytest.mark.parametrize(
        "spoil",
        [
            ("HSET", "state", "head", "nonsense"),
            ("HSET", "state", "expires", "nonsense"),
            ("HSET", "state", "log:history", "nonsense"),
            ("HSET", "entries", "#variables/k", "nonsense"),
            ("LSET", "log:history", 1, "nonsense"),
            ("DEL", "entries"),
            ("DEL", "log:history"),
        ],
    )
    async def test_nonsense(self, opened, server, spoil):
        """Where nonsense stands nothing is read, and a commit that meets it writes nothing at all."""
        storage = await opened(server.url)
        appends = [Append("history", f"m{number}", b"1", unique=True) for number in range(3)]
        counter = Increment("variables", "n", 1)
        await write(storage, puts=[Put("variables", "k", b"1")], appends=appends, increments=[counter], ttl=99.0)
        command, what, *rest = spoil
        server.ask(command, f"{KEY}{what}:conversation:c-1", *rest)
        before = {key: server.ask("DUMP", key) for key in server.ask("KEYS", "*")}
        with pytest.raises(DamagedStateError):
            await storage.read(C, Wants(tails=(("history", 9),)))
        change = {"puts": [Put("variables", "k", b"2"), Put("variables", "new", b"2")], "increments": [counter]}
        for cut in ({"cuts": [CutTail("history", 2)]}, {"trims": [TrimHead("history", 3)]}):
            with pytest.raises(DamagedStateError):
                await write(storage, **change, **cut, appends=[Append("history", "new", b"1")], record=b"r")
        assert {key: server.ask("DUMP", key) for key in server.ask("KEYS", "*")} == before

    async def test_half_an_entry(self, opened, server):
        """A value without its stamp, and a stamp without its value, are no entry."""
        storage = await opened(server.url)
        for field in ("variables/k", "#variables/k"):
            await write(storage, puts=[Put("variables", "k", b"1"), Put("variables", "l", b"1")])
            server.ask("HDEL", f"{KEY}entries:conversation:c-1", field)
            with pytest.raises(DamagedStateError):
                await storage.read(C, EVERYTHING)


class TestNeighbours:
    """What lies beside our keys."""

    async def test_prefixes(self, opened, server):
        """A store never sees one whose prefix begins with its own, nor the other way round."""
        short, long = await opened(server.url, key_prefix="a:"), await opened(server.url, key_prefix="a:b:")
        await write(short, puts=[Put("variables", "k", b"short")], owner="ada", ttl=5.0)
        await write(long, puts=[Put("variables", "k", b"long")], owner="ada", ttl=5.0)
        other = StateScope.conversation("b:c-1")
        await write(short, other, puts=[Put("variables", "k", b"b")])
        for storage, value, scopes in ((short, b"short", {C, other}), (long, b"long", {C})):
            assert (await storage.read(C, EVERYTHING)).entries["variables", "k"].value == value
            assert {info.scope for info in (await storage.scopes(ScopeQuery())).items} == scopes
        assert await short.drop(C)
        assert (await long.read(C, EVERYTHING)).stamp is not None

    async def test_what_agentup_wrote(self, opened, server):
        """AgentUp's own records are found and read, and never touched."""
        record = b'{"context_id": "c-1", "variables": {"name": "Ada"}}'
        server.ask("SET", "agentstate:c-1", record)
        server.ask("SET", "agentstate:*[c]", b"{}")
        server.ask("SET", "agentstate", b"no")
        server.ask("RPUSH", "agentstate:list", b"no")
        storage = await opened(server.url)
        await write(storage, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")])
        assert set(await storage.legacy_keys()) == {"c-1", "*[c]"}
        assert len(await storage.legacy_keys(1)) == 1
        assert await storage.legacy_record("c-1") == record
        assert await storage.legacy_record("list") is None
        assert await storage.legacy_record("absent") is None
        await storage.drop(C)
        assert server.ask("GET", "agentstate:c-1") == record

    async def test_a_glob_in_the_prefix(self, opened, server):
        """A prefix that holds wildcards means these characters."""
        server.ask("SET", "a*:c-1", b"ours")
        server.ask("SET", "ab:c-2", b"not ours")
        assert await (await opened(server.url, key_prefix="a*:")).legacy_keys() == ("c-1",)

    async def test_readable(self, opened, server):
        """A value lies there as it was given, for whoever looks with valkey-cli."""
        storage = await opened(server.url)
        await write(storage, puts=[Put("variables", "name", b'{"first":"Ada"}')])
        await write(storage, increments=[Increment("variables", "visits", 7)])
        await write(storage, appends=[Append("history", "m-1", b'{"role":"user"}')])
        entries = f"{KEY}entries:conversation:c-1"
        assert server.ask("HGET", entries, "variables/name") == b'{"first":"Ada"}'
        assert server.ask("HGET", entries, "variables/visits") == b"7"
        (item,) = server.ask("LRANGE", f"{KEY}log:history:conversation:c-1", -10, -1)
        assert item == b'1 - m-1 {"role":"user"}'

    async def test_slots(self, opened, server):
        """All keys of a state, its indexes and its feed have one hash tag, so one slot of a cluster."""
        storage = await opened(server.url)
        await write(
            storage,
            puts=[Put("variables", "k", b"1", ttl=5.0)],
            appends=[Append("history", "m{x}", b"1", unique=True)],
            owner="{ada}",
            labels={"{a}": "{b}"},
            ttl=9.0,
            record=b"r",
        )
        await storage.leave(C, 5, failure=b"f")
        keys = [key for key in server.ask("KEYS", "*") if key != b"agentstate:{store}"]
        assert len(keys) > 10
        assert {key.partition(b"}")[0] for key in keys} == {b"agentstate:{110"}


class TestPersistence:
    """What a restart of the server would cost is said when the store is opened."""

    async def test_nothing_kept(self, caplog):
        """A server that writes nothing to its disk is used, with a warning that names it."""
        with ValkeyServer(save="", appendonly="no") as server:
            storage = ValkeyStorage(server.url)
            await storage.open()
            await storage.close()
            assert [record.message for record in caplog.records if "keeps nothing on disk" in record.message]
            assert str(server.port) in caplog.text

    @pytest.mark.parametrize("config", [{"save": "3600 1"}, {"appendonly": "yes", "save": ""}])
    async def test_something_kept(self, caplog, config):
        """Snapshots or an append-only file are enough for no warning."""
        with ValkeyServer(**config) as server:
            storage = ValkeyStorage(server.url)
            await storage.open()
            await storage.close()
            assert "keeps nothing" not in caplog.text
