"""One storage in several event loops, threads and processes."""

import asyncio
import gc
import os
import threading
import warnings

import pytest

from agentstate.errors import StorageClosedError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Increment, LeaseRequest, Part
from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

C = StateScope.conversation("c-1")
ADD = [Part(scope=C, increments=[Increment("variables", "n", 1)])]


@pytest.fixture
def make(valkey_server, valkey_prefix):
    """Return a maker of storages on this test's data."""
    return lambda **settings: ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, **settings)


def connections(server, name):
    """Return how many connections of this name the server has."""
    return server.ask("CLIENT", "LIST").count(f" name={name} ".encode())


async def total(storage):
    """Return the counter."""
    return (await storage.read(C, EVERYTHING)).entries["variables", "n"].value


class TestLoops:
    """Event loops that come and go."""

    def test_one_after_the_other(self, make, valkey_server):
        """Each loop has its connection, which ends with it, also when nobody closes the storage."""
        storage = make(client_name="loop-after-loop")

        async def work():
            await storage.commit(ADD, commit_id=new_id())
            await storage.read(C, EVERYTHING, lease=LeaseRequest(7, 30.0, "h"))
            assert connections(valkey_server, "loop-after-loop") == 1
            return await total(storage)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [asyncio.run(work()) for _ in range(5)] == [1, 2, 3, 4, 5]
            gc.collect()
        assert connections(valkey_server, "loop-after-loop") == 0

    def test_at_once(self, make):
        """Threads with a loop each use one storage at the same time."""
        storage = make()

        async def work():
            for _ in range(50):
                await asyncio.gather(*[storage.commit(ADD, commit_id=new_id()) for _ in range(4)])

        threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def end():
            found = await total(storage)
            await storage.close()
            return found

        assert asyncio.run(end()) == 800

    def test_a_loop_that_was_only_closed(self, make, valkey_server):
        """The connections of a loop that ended without manners are closed by the next one."""
        storage = make(client_name="rude-loop")
        rude = asyncio.new_event_loop()
        rude.run_until_complete(storage.ping())
        rude.close()

        async def after():
            await storage.ping()
            count = connections(valkey_server, "rude-loop")
            await storage.close()
            return count

        assert asyncio.run(after()) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del rude
            gc.collect()

    async def test_close_reaches_other_loops(self, make, valkey_server):
        """Closing closes the connections of all loops, and no later call gets one."""
        storage = make(client_name="all-closed")
        await storage.ping()
        began, closed = threading.Event(), threading.Event()

        async def elsewhere():
            await storage.ping()
            began.set()
            await asyncio.to_thread(closed.wait)
            await asyncio.sleep(0)
            with pytest.raises(StorageClosedError):
                await storage.ping()

        other = asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(elsewhere()))
        await asyncio.to_thread(began.wait)
        assert connections(valkey_server, "all-closed") == 2
        await storage.close()
        closed.set()
        await other
        assert connections(valkey_server, "all-closed") == 0
        with pytest.raises(StorageClosedError):
            storage.renew([(await take_turn(make(), C, "h")).lease], 1.0)

    async def test_turns_are_given_back(self, make):
        """Closing gives back the turns that were taken, so that nobody waits for them."""
        storage, other = make(), make()
        await take_turn(storage, C, "first")
        await storage.close()
        await storage.close()
        assert (await other.read(C, EVERYTHING, lease=LeaseRequest(9, 30.0, "h"))).lease is not None
        await other.close()


class TestFork:
    """A process that forks while a storage is open."""

    async def test_both_go_on(self, make, valkey_server):
        """The child makes connections of its own; the parent's still answer, with nothing mixed up."""
        storage = make(client_name="forked")
        held = await take_turn(storage, C, "parent")
        await storage.commit(ADD, commit_id=new_id())
        storage.renew([held.lease], 30.0)
        child = os.fork()
        if child == 0:
            status = 1
            try:

                async def in_child():
                    for _ in range(20):
                        await storage.commit(ADD, commit_id=new_id())
                    renewed = storage.renew([held.lease], 30.0)
                    await storage.close()
                    return renewed == [True]

                status = 0 if asyncio.run(in_child()) else 2
            finally:
                os._exit(status)
        for _ in range(20):
            await storage.commit(ADD, commit_id=new_id())
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await total(storage) == 41
        # The child didn't give back what is its parent's.
        (done,) = await storage.commit(ADD, commit_id=new_id(), lease=held.lease, release=True)
        assert done.counters["variables", "n"] == 42
        assert connections(valkey_server, "forked") == 2
        await storage.close()
