"""The Valkey backend behind real sentinels: it finds the primary, and the next one when that is killed."""

import asyncio

import pytest

from agentstate.errors import ConfigError, StateError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.state.turn import new_id
from agentstate.storage.protocol import Append, Lease, Part
from agentstate.storage.valkey import ValkeyStorage
from agentstate.storage.valkey.scripts import script
from tests.clusters import SentinelTrio

C = StateScope.conversation("c")


async def add(storage, number):
    part = Part(scope=C, appends=[Append("history", str(number), str(number).encode(), unique=True)])
    return (await storage.commit([part], commit_id=new_id()))[0]


async def stored(storage):
    return [int(item.value) for item in (await storage.read_log(C, "history")).items]


async def reached(holds, task):
    """Wait for what a task does that goes on; when it has ended, say why."""
    async with asyncio.timeout(30):
        while not holds():
            assert not task.done(), task
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def trio():
    """Three servers and three sentinels; don't kill them."""
    with SentinelTrio() as servers:
        yield servers


async def test_finds_the_primary(trio, valkey_prefix):
    """The storage goes where the sentinels say, with one of them gone, too."""
    hosts = trio.url.removeprefix("valkey+sentinel://")
    storage = ValkeyStorage(f"valkey+sentinel://127.0.0.1:1,{hosts}", key_prefix=valkey_prefix)
    await add(storage, 1)
    assert await stored(storage) == [1]
    assert trio.primary.ask("EXISTS", storage._keys.state(C)) == 1
    calls = [(storage._keys.state(C), ("", 1, 30.0))]
    assert storage._connections.link.run_all(script("renew"), calls) == [0]
    await storage.close()


async def test_failover(valkey_prefix):
    """The primary is killed in the middle of traffic; calls wait for the next one, nothing is torn or doubled."""
    with SentinelTrio() as trio:
        storage = ValkeyStorage(trio.url, key_prefix=valkey_prefix, failover_timeout=20)
        acknowledged = []
        done = asyncio.Event()

        async def write():
            number = 0
            while not done.is_set():
                number += 1
                try:
                    await add(storage, number)
                except StateError:
                    continue
                acknowledged.append(number)

        writer = asyncio.create_task(write())
        await reached(lambda: len(acknowledged) >= 50, writer)
        old = trio.primary
        await asyncio.to_thread(old.kill)
        known = len(acknowledged)
        await reached(lambda: len(acknowledged) >= known + 50, writer)
        done.set()
        await writer
        found = await stored(storage)
        assert found == sorted(set(found))
        assert len(set(acknowledged) - set(found)) <= 5
        assert trio.primary is not old
        await storage.close()


async def test_unknown_name(trio):
    """A name that the sentinels don't know is an error that says it."""
    hosts = trio.url.removeprefix("valkey+sentinel://").rpartition("/")[0]
    storage = ValkeyStorage(f"valkey+sentinel://{hosts}/other", failover_timeout=0)
    with pytest.raises(StorageUnavailableError, match="'other'"):
        await storage.open()
    await storage.close()


async def test_lease_of_nobody(trio, valkey_prefix):
    """Renewing what isn't held says so."""
    storage = ValkeyStorage(trio.url, key_prefix=valkey_prefix)
    await storage.open()
    renewed = await asyncio.to_thread(storage.renew, [Lease(C, 5, 1, 0.0)], 30.0)
    assert list(renewed) == [False]
    await storage.close()


class TestUrl:
    """What the url says."""

    def test_parts(self):
        """Sentinels, the name of what they watch, the database."""
        options = ValkeyStorage("valkeys+sentinel://ada:pw@a,b:1/main/2").options
        assert options.addresses == (("a", 26379), ("b", 1))
        assert (options.watched, options.db, options.tls, options.username) == ("main", 2, True, "ada")
        assert options.location == "valkeys+sentinel://ada@a:26379,b:1/main/2"

    def test_no_name(self):
        """Sentinels watch several; which one is meant must be said."""
        with pytest.raises(ConfigError, match="watch"):
            ValkeyStorage("valkey+sentinel://a,b")
