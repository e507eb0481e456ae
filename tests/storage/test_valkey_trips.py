"""Round trips, and who shares them."""

import asyncio

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Check, Increment, LeaseRequest, Part, Put, Wants
from agentstate.storage.valkey import ValkeyStorage
from agentstate.storage.valkey.pipeline import MOST_IN_FLIGHT, Pipeline
from agentstate.testing.turns import EVERYTHING, new_id
from tests.servers import ValkeyServer

TAIL = Wants(tails=(("history", 10),))


@pytest.fixture(scope="module")
def server():
    """Return a server whose commands nobody else counts on."""
    with ValkeyServer() as made:
        yield made


@pytest.fixture
async def storage(server, valkey_prefix):
    """Return an open storage that the server knows the scripts of."""
    made = ValkeyStorage(server.url, key_prefix=valkey_prefix)
    await turn(made, StateScope.conversation("warm"))
    yield made
    await made.close()


@pytest.fixture
def packets(monkeypatch):
    """Return the list of how many commands each packet held."""
    sent = []
    flush = Pipeline._flush

    def counted(pipeline):
        before = len(pipeline._pending)
        flush(pipeline)
        sent.append(len(pipeline._pending) - before)

    monkeypatch.setattr(Pipeline, "_flush", counted)
    return sent


async def turn(storage, scope):
    """Take a turn, as the core does: load 10 messages, read 2 variables, append 2, set 1."""
    found = await storage.read(scope, TAIL, lease=LeaseRequest(new_id(), 30.0, "h"))
    old = found.entries.get(("variables", "a"))
    part = Part(
        scope=scope,
        birth=found.birth,
        checks=[Check("entry", "variables", old.stamp if old else None, "a")],
        puts=[Put("variables", "a", b"1")],
        appends=[Append("history", f"m{new_id()}", b"x" * 200) for _ in range(2)],
        record=b"record",
        ttl=3600.0,
    )
    await storage.commit([part], commit_id=new_id(), lease=found.lease, release=True)


class TestTrips:
    """A turn is two trips."""

    async def test_two_scripts(self, storage, server):
        """At the server a turn is two script calls and not one other command."""
        scope = StateScope.conversation("c")
        await turn(storage, scope)
        server.ask("CONFIG", "RESETSTAT")
        for _ in range(20):
            await turn(storage, scope)
        lines = server.ask("INFO", "stats").decode().splitlines()
        processed = next(int(line.split(":")[1]) for line in lines if line.startswith("total_commands_processed"))
        calls = server.calls()
        assert calls["evalsha"] == 40
        inside = sum(calls.values()) - calls["evalsha"] - calls.get("config|resetstat", 0) - calls.get("info", 0)
        assert processed - inside <= 40 + 4

    async def test_two_packets(self, storage, packets):
        """At the connection a turn is two packets."""
        scope = StateScope.conversation("c")
        await turn(storage, scope)
        packets.clear()
        await turn(storage, scope)
        assert packets == [1, 1]

    async def test_callers_share_packets(self, storage, packets):
        """Sixty-four callers of one pass of the loop share one packet a trip."""
        scopes = [StateScope.conversation(f"c-{number}") for number in range(64)]
        await asyncio.gather(*[turn(storage, scope) for scope in scopes])
        packets.clear()
        await asyncio.gather(*[turn(storage, scope) for scope in scopes])
        assert sum(packets) == 128
        assert packets[0] == 64
        assert len(packets) <= 20

    async def test_in_flight(self, storage):
        """More callers than may be under way at once are served in their order."""
        scope = StateScope.conversation("c")
        increment = [Part(scope=scope, increments=[Increment("variables", "n", 1)])]
        count = MOST_IN_FLIGHT + 200
        made = await asyncio.gather(*[storage.commit(increment, commit_id=new_id()) for _ in range(count)])
        assert [done.counters["variables", "n"] for (done,) in made] == list(range(1, count + 1))

    async def test_cancelled_before_it_was_sent(self, storage, packets):
        """A call that is cancelled in the pass of the loop in which it was made is never sent."""
        scope = StateScope.conversation("c")
        packets.clear()
        task = asyncio.create_task(turn(storage, scope))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sum(packets) == 0
        assert (await storage.read(scope, EVERYTHING)).stamp is None

    async def test_what_is_read_does_not_grow(self, storage, server):
        """A turn on ten thousand messages runs the same commands and moves as many bytes as on ten."""
        costs = []
        for count in (10, 10_000):
            scope = StateScope.conversation(f"of-{count}")
            for start in range(0, count, 5000):
                items = [Append("history", f"m{n}", b"x" * 200) for n in range(start, min(count, start + 5000))]
                await storage.commit([Part(scope=scope, appends=items)], commit_id=new_id())
            await turn(storage, scope)
            server.ask("CONFIG", "RESETSTAT")
            for _ in range(10):
                await turn(storage, scope)
            lines = dict(line.split(":") for line in server.ask("INFO", "stats").decode().splitlines() if ":" in line)
            calls = server.calls()
            names = ("evalsha", "lrange", "rpush", "hset", "zadd", "hgetall", "hmget", "xadd")
            moved = int(lines["total_net_output_bytes"]) + int(lines["total_net_input_bytes"])
            costs.append(([calls[name] for name in names], moved))
        (few, little), (many, much) = costs
        assert few == many
        assert much < little * 1.05

    async def test_large_values(self, storage):
        """Megabytes go through the same pipe, both ways, beside small calls."""
        scope, big = StateScope.conversation("big"), bytes(range(256)) * 20_000
        await asyncio.gather(
            storage.commit([Part(scope=scope, puts=[Put("variables", "big", big)])], commit_id=new_id()),
            *[turn(storage, StateScope.conversation(f"small-{number}")) for number in range(50)],
        )
        assert (await storage.read(scope, EVERYTHING)).entries["variables", "big"].value == big
