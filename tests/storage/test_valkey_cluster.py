"""The Valkey backend on a real cluster: the whole contract, redirections, failover in the middle of traffic."""

import asyncio

import pytest

from agentstate import ConversationContext, stateful
from agentstate.errors import ConfigError, StateError, StorageUnavailableError, UnsupportedError
from agentstate.scope import StateScope
from agentstate.state.turn import new_id
from agentstate.storage.protocol import Append, Lease, Part, ScopeQuery
from agentstate.storage.valkey import ValkeyStorage
from agentstate.storage.valkey.cluster import slot_of
from agentstate.storage.valkey.scripts import script
from agentstate.testing import MakeStorage, ProcessSpec, StorageConformance
from tests.clusters import ValkeyCluster, until

C = StateScope.conversation("c")


@pytest.fixture(scope="module")
def cluster():
    """Six servers; don't kill them."""
    with ValkeyCluster() as servers:
        yield servers


@pytest.fixture
async def storage(cluster, valkey_prefix):
    """A storage on the cluster."""
    made = ValkeyStorage(cluster.url, key_prefix=valkey_prefix)
    yield made
    await made.close()


class TestValkeyCluster(StorageConformance):
    """All that is asked of one server holds for six."""

    @pytest.fixture
    def make_storage(self, cluster, valkey_prefix) -> MakeStorage:
        """Return a maker of storages under this test's prefix."""
        return lambda clock: ValkeyStorage(cluster.url, key_prefix=valkey_prefix, clock=clock)

    @pytest.fixture
    def process_spec(self, cluster, valkey_prefix) -> ProcessSpec:
        """Return how worker processes open this test's data."""
        options = {"url": cluster.url, "key_prefix": valkey_prefix}
        return ProcessSpec("valkey", options, ("agentstate.storage.valkey", "libvalkey"))


def test_slots(cluster):
    """A key's slot is the server's own opinion, for keys with braces, without, and with strange ones."""
    for key in (b"x{7}y", b"plain", b"{}x", b"a{", b"a}{b}", b"{a}{b}", "ключ{ω}".encode()):
        assert slot_of(key) == cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key)


async def add(storage, number, scope=C):
    part = Part(scope=scope, appends=[Append("history", str(number), str(number).encode(), unique=True)])
    return (await storage.commit([part], commit_id=new_id()))[0]


async def reached(holds, tasks):
    """Wait for what tasks do that go on; when one has ended, say why."""
    async with asyncio.timeout(30):
        while not holds():
            assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
            await asyncio.sleep(0.01)


async def stored(storage, scope=C):
    return [int(item.value) for item in (await storage.read_log(scope, "history")).items]


async def test_every_node_is_used(storage, cluster, valkey_prefix):
    """States spread over the nodes, and each lies whole on one."""
    for number in range(40):
        await add(storage, 0, StateScope.conversation(f"c-{number}"))
    keys = [node.ask("KEYS", f"{valkey_prefix}*state:*") for node in cluster.nodes if node.is_primary]
    assert sum(map(len, keys)) == 40
    assert all(keys)
    page = await storage.scopes(ScopeQuery(limit=15, order="updated"))
    assert len(page.items) == 15
    assert page.cursor


async def test_two_trips_a_turn(storage, cluster):
    """A turn is one script to read and one to commit, both on the node that has the state."""

    @stateful(storage=storage)
    async def handler(task, context, context_id):
        await context.get_history(context_id, 10)
        await context.add_to_history(context_id, "user", "hi")

    await handler({"context_id": "trips"})
    before = scripts_of(cluster)
    await handler({"context_id": "trips"})
    after = scripts_of(cluster)
    assert [b - a for a, b in zip(before, after, strict=True) if b != a] == [2]


def scripts_of(cluster):
    counts = []
    for node in cluster.nodes:
        lines = node.ask("INFO", "commandstats").decode().splitlines()
        found = [line for line in lines if line.startswith("cmdstat_evalsha:")]
        counts.append(int(found[0].split("calls=")[1].split(",")[0]) if found and node.is_primary else 0)
    return counts


async def test_leases_are_renewed_where_they_are(storage):
    """The renewing thread finds the node of each lease."""
    lease = None
    for name in ("a", "b", "c", "d"):
        lease = Lease(StateScope.conversation(name), 0, 0, 0.0)
        calls = [(storage._keys.state(lease.scope), ("", 1, 30.0))]
        assert storage._connections.link.run_all(script("renew"), calls) == [0]


async def test_moved_slot(storage, cluster, valkey_prefix):
    """A slot that is moved to another node is followed: while it is moved, and afterwards."""
    await add(storage, 1)
    key = storage._keys.state(C)
    slot = slot_of(key)
    source = cluster.primary_of(key)
    target = next(node for node in cluster.nodes if node.is_primary and node is not source)
    source_id, target_id = (node.ask("CLUSTER", "MYID") for node in (source, target))
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    assert len(keys) > 1
    assert source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys) == b"OK"
    assert await stored(storage) == [1]  # by ASK
    await add(storage, 2)
    for node in cluster.nodes:
        if node.is_primary:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    assert await stored(storage) == [1, 2]  # by MOVED
    await add(storage, 3)
    assert target.ask("EXISTS", key) == 1


class TestFailover:
    """A node is killed in the middle of traffic."""

    async def test_traffic(self, valkey_prefix):
        """Whoever calls waits for the replica to take over; what is stored is whole, each thing once."""
        with ValkeyCluster() as cluster:
            storage = ValkeyStorage(cluster.url, key_prefix=valkey_prefix, failover_timeout=20)
            scopes = [StateScope.conversation(f"c-{n}") for n in range(12)]
            acknowledged = {scope: [] for scope in scopes}
            done = asyncio.Event()

            async def write(scope):
                number = 0
                while not done.is_set():
                    number += 1
                    try:
                        await add(storage, number, scope)
                    except StateError:
                        continue  # typed: it says that it isn't known, or couldn't be reached
                    acknowledged[scope].append(number)

            writers = [asyncio.create_task(write(scope)) for scope in scopes]
            await reached(lambda: min(map(len, acknowledged.values())) >= 20, writers)
            victim = cluster.primary_of(storage._keys.state(scopes[0]))
            await asyncio.to_thread(victim.kill)
            known = {scope: len(found) for scope, found in acknowledged.items()}
            await reached(lambda: all(len(acknowledged[scope]) >= known[scope] + 10 for scope in scopes), writers)
            done.set()
            await asyncio.gather(*writers)
            for scope in scopes:
                found = await stored(storage, scope)
                assert found == sorted(set(found))
                lost = set(acknowledged[scope]) - set(found)
                # Replication isn't waited for: only what was acknowledged in its last moments may be missing.
                assert len(lost) <= 5, lost
                assert all(number <= known[scope] + 5 for number in lost)
            await storage.close()

    async def test_half_of_it_gone(self, valkey_prefix):
        """Without a majority nobody takes over: a typed error in time, and all is well when they come back."""
        with ValkeyCluster() as cluster:
            storage = ValkeyStorage(cluster.url, key_prefix=valkey_prefix, failover_timeout=0.5)
            await add(storage, 1)
            key = storage._keys.state(C)
            others = [node for node in cluster.nodes if node is not cluster.primary_of(key)]
            for node in others:
                node.kill()
            survivor = next(node for node in cluster.nodes if node not in others)
            await asyncio.to_thread(
                until, lambda: b"cluster_state:fail" in survivor.ask("CLUSTER", "INFO"), "it notices"
            )
            with pytest.raises(StorageUnavailableError):
                await stored(storage)
            for node in others:
                node.start()
            await asyncio.to_thread(cluster.settle)
            assert await stored(storage) == [1]
            await storage.close()


class TestWrongAddress:
    """What the url says and what is there."""

    async def test_no_cluster(self, valkey_server):
        """A server that stands alone says so at once, with the url to write instead."""
        storage = ValkeyStorage(f"valkey+cluster://127.0.0.1:{valkey_server.port}")
        with pytest.raises(UnsupportedError, match="cluster support disabled") as caught:
            await storage.open()
        assert "valkey://" in caught.value.remedy
        await storage.close()

    async def test_nobody_there(self):
        """Nodes that can't be reached are waited for only as long as asked."""
        storage = ValkeyStorage("valkey+cluster://127.0.0.1:1,127.0.0.1:2", failover_timeout=0)
        with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:1,127\.0\.0\.1:2"):
            await storage.open()
        await storage.close()

    def test_database(self):
        """A cluster has one database."""
        with pytest.raises(ConfigError, match="db 3"):
            ValkeyStorage("valkey+cluster://127.0.0.1:1/3")


async def test_a_turn_that_waits_is_woken(storage, cluster, valkey_prefix):
    """Two storages, as of two processes, take turns: the one that waits is woken by what the other publishes."""
    other = ValkeyStorage(cluster.url, key_prefix=valkey_prefix)
    contexts = [ConversationContext(one) for one in (storage, other)]
    for _ in range(5):
        async with contexts[0].turn("c"):
            waiting = asyncio.create_task(take(contexts[1]))
            await asyncio.sleep(0.02)
        async with asyncio.timeout(2):
            await waiting
    assert await contexts[0].get_variable("c", "n") == 5
    await other.close()


async def take(context):
    async with context.turn("c") as conversation:
        await conversation.increment("n")


async def test_looking_for_another_systems_records(storage):
    """A new conversation is begun wherever its key, and that of a record AgentUp may have left, has its slot."""
    context = ConversationContext(storage)
    for number in range(30):
        assert await context.increment(f"c-{number}", "n") == 1
        assert await storage.legacy_record(f"c-{number}") is None
