"""Listing merges 256 partitions: every state once, in order, at a bounded cost."""

import asyncio
import itertools
import random

import pytest

from agentstate.errors import StorageError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Part, Put, ScopeQuery
from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing import FakeClock
from agentstate.testing.turns import new_id
from tests.servers import ValkeyServer

COUNT = 600


@pytest.fixture(scope="module")
def server():
    """Return a server that holds 600 states of two kinds, three owners and two labels."""
    with ValkeyServer() as made:
        asyncio.run(fill(made))
        yield made


async def fill(server):
    """Make the states, each a second after the one before, in a mixed order."""
    clock = FakeClock(1000.0)
    storage = ValkeyStorage(server.url, clock=clock)
    numbers = list(range(COUNT))
    random.Random(5).shuffle(numbers)
    for number in numbers:
        clock.advance(0.5 if number % 10 else 0)
        part = Part(
            scope=scope_of(number),
            puts=[Put("variables", "k", b"1")],
            owner=("ada", "bob", None)[number % 3],
            labels={"status": "open" if number % 2 else "closed"},
        )
        await storage.commit([part], commit_id=new_id())
    tenant = StateScope.user("7", tenant="acme/{1}")
    await storage.commit([Part(scope=tenant, puts=[Put("a", "b", b"c")], owner="ada")], commit_id=new_id())
    await storage.close()


def scope_of(number):
    """Return the scope of a number."""
    return StateScope.user(f"u-{number:04}") if number % 4 == 0 else StateScope.conversation(f"c-{number:04}")


@pytest.fixture
async def storage(server):
    """Return an open storage on these states."""
    made = ValkeyStorage(server.url, clock=FakeClock(5000.0))
    await made.open()
    yield made
    await made.close()


async def paged(storage, limit, **query):
    """Return all pages' states."""
    found, cursor = [], None
    for _ in range(COUNT + 2):
        page = await storage.scopes(ScopeQuery(limit=limit, cursor=cursor, **query))
        assert len(page.items) <= limit
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("the pages have no end")


QUERIES = {
    "all": {},
    "kind": {"kind": "user"},
    "prefix": {"kind": "conversation", "prefix": "c-01"},
    "prefix of any kind": {"prefix": "u-00"},
    "owner": {"owner": "ada"},
    "owner and kind": {"owner": "bob", "kind": "user"},
    "label": {"label": ("status", "open")},
    "owner and label": {"owner": "ada", "label": ("status", "closed")},
    "before": {"updated_before": 1100.0},
    "after": {"updated_after": 1100.0},
    "between": {"updated_after": 1050.0, "updated_before": 1060.0, "owner": "ada"},
    "nobody's": {"owner": "eve"},
}


class TestPages:
    """Pages, in either order and direction."""

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("order", ["id", "updated"])
    @pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
    async def test_every_state_once(self, storage, query, order, reverse):
        """The pages together are the one big page, which is what the filters say, in order."""
        whole = await storage.scopes(ScopeQuery(limit=10_000, order=order, reverse=reverse, **query))
        assert whole.cursor is None
        everything = await storage.scopes(ScopeQuery(limit=10_000))

        def wanted(info):
            return (
                info.scope.kind == query.get("kind", info.scope.kind)
                and info.scope.id.startswith(query.get("prefix", ""))
                and info.owner == query.get("owner", info.owner)
                and ("label" not in query or info.labels["status"] == query["label"][1])
                and info.updated_at < query.get("updated_before", 9e9)
                and info.updated_at > query.get("updated_after", 0)
            )

        def place(info):
            return (info.updated_at, info.scope.text) if order == "updated" else (info.scope.kind, info.scope.id)

        assert list(whole.items) == sorted(filter(wanted, everything.items), key=place, reverse=reverse)
        assert await paged(storage, 45, order=order, reverse=reverse, **query) == list(whole.items)

    async def test_all_are_there(self, storage):
        """Nothing is missing and no other tenant's is there."""
        found = await storage.scopes(ScopeQuery(limit=10_000))
        assert {info.scope for info in found.items} == {scope_of(number) for number in range(COUNT)}
        (mine,) = (await storage.scopes(ScopeQuery(tenant="acme/{1}", owner="ada"))).items
        assert mine.scope == StateScope.user("7", tenant="acme/{1}")

    async def test_cursors(self, storage):
        """A cursor that is none, or of another order, is refused."""
        page = await storage.scopes(ScopeQuery(limit=1))
        for query in (ScopeQuery(cursor="nonsense"), ScopeQuery(cursor=page.cursor, order="updated")):
            with pytest.raises(StorageError):
                await storage.scopes(query)

    async def test_growth_between_pages(self, valkey_server, valkey_prefix):
        """States that come and go between pages don't make others appear twice or not at all."""
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix)
        scopes = [StateScope.user(f"u-{number:02}") for number in range(30)]
        for scope in scopes:
            await storage.commit([Part(scope=scope, puts=[Put("a", "b", b"c")])], commit_id=new_id())
        for order, reverse in itertools.product(("id", "updated"), (False, True)):
            first = await storage.scopes(ScopeQuery(limit=10, order=order, reverse=reverse))
            gone, kept = first.items[3].scope, {info.scope for info in first.items}
            assert await storage.drop(gone)
            query = ScopeQuery(limit=100, order=order, reverse=reverse, cursor=first.cursor)
            rest = {info.scope for info in (await storage.scopes(query)).items}
            assert rest == {*scopes} - kept
            await storage.commit([Part(scope=gone, puts=[Put("a", "b", b"c")])], commit_id=new_id())
        await storage.close()


class TestCost:
    """What a listing asks of the server."""

    async def test_no_full_scan(self, storage, server):
        """A page asks each partition once and looks up what it returns: no scan, no set of all keys."""
        server.ask("CONFIG", "RESETSTAT")
        page = await storage.scopes(ScopeQuery(limit=50))
        assert len(page.items) == 50
        calls = server.calls()
        assert not {"scan", "keys", "zrange", "smembers"} & set(calls)
        assert calls["zrangebylex"] <= 256 + 50
        assert calls["hgetall"] <= 60

    async def test_owners_pages_read_owners_states(self, storage, server):
        """A page of one owner reads no other owner's states."""
        server.ask("CONFIG", "RESETSTAT")
        page = await storage.scopes(ScopeQuery(owner="ada", limit=20, order="updated", reverse=True))
        assert len(page.items) == 20
        assert server.calls()["hgetall"] == 21


class TestGone:
    """States that the engine itself has removed."""

    async def test_stale_entries_are_taken_out(self, valkey_server, valkey_prefix):
        """An index entry without its state isn't shown, and is gone afterwards."""
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix)
        scope = StateScope.conversation("c-1")
        part = Part(scope=scope, puts=[Put("a", "b", b"c")], owner="ada", labels={"x": "y"}, ttl=100.0)
        await storage.commit([part], commit_id=new_id())
        keys = valkey_server.ask("KEYS", f"{valkey_prefix}*conversation:c-1")
        valkey_server.ask("DEL", *keys)
        for query in ({}, {"owner": "ada"}, {"label": ("x", "y")}):
            for order in ("id", "updated"):
                page = await storage.scopes(ScopeQuery(order=order, **query))
                assert page.items == ()
        assert valkey_server.ask("KEYS", f"{valkey_prefix}*by-*") == []
        await storage.close()

    async def test_swept(self, valkey_server, valkey_prefix):
        """A sweep takes what the engine removed out of the indexes of all states."""
        clock = FakeClock()
        storage = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock)
        scope = StateScope.conversation("c-1")
        await storage.commit([Part(scope=scope, puts=[Put("a", "b", b"c")], ttl=10.0)], commit_id=new_id())
        valkey_server.ask("DEL", *valkey_server.ask("KEYS", f"{valkey_prefix}*conversation:c-1"))
        clock.advance(11)
        assert (await storage.sweep()).done
        left = valkey_server.ask("KEYS", f"{valkey_prefix}*")
        assert {key.decode().rpartition("}")[2] for key in left} == {"feed", ""}
        await storage.close()
