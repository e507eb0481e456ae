"""Listing states by index: filters, orders, pages."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import pytest

from agentstate.errors import StateError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Put, ScopeQuery
from agentstate.testing.conformance.case import A, B, StorageCase, commit, put

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock

IDS = ["a", "a:", "a:b", "a:b:c", "a;", "ab", "A", "b", "a%b", "a_b", "a*", "é", "e\u0301", "\U0001f600", "\uffee"]
Order = Literal["id", "updated"]
LISTED_STATES = int(os.environ.get("AGENTSTATE_LISTED_STATES", "300"))
AT_ONCE = 50


def conversations(ids: Iterable[str]) -> list[StateScope]:
    """Return scopes of conversations."""
    return [StateScope.conversation(one) for one in ids]


async def listed(storage: Storage, query: ScopeQuery | None = None) -> list[StateScope]:
    """Return all pages of a query; no page may be larger than asked for."""
    query = query or ScopeQuery()
    found: list[StateScope] = []
    for _ in range(1000):
        page = await storage.scopes(query)
        assert len(page.items) <= query.limit
        found += [info.scope for info in page.items]
        if page.cursor is None:
            return found
        query = query._replace(cursor=page.cursor)
    raise AssertionError("the pages don't come to an end")


class ListingTests(StorageCase):
    """`Storage.scopes`."""

    async def test_very_many(self, storage: Storage, clock: FakeClock) -> None:
        """All of them are listed once, in pages, in both orders and both directions, and by owner.

        ``AGENTSTATE_LISTED_STATES`` says how many they are; it was made for 100,000.
        """
        scopes = conversations(f"c-{n:06d}" for n in range(LISTED_STATES))
        for start in range(0, len(scopes), AT_ONCE):
            batch = scopes[start : start + AT_ONCE]
            await asyncio.gather(*(commit(storage, scope, owner=f"user-{start // AT_ONCE % 7}") for scope in batch))
            clock.advance(1)
        query = ScopeQuery(limit=1000)
        assert await listed(storage, query) == scopes
        assert await listed(storage, query._replace(reverse=True)) == scopes[::-1]
        by_age = await listed(storage, query._replace(order="updated", kind="conversation"))
        assert sorted(by_age, key=lambda one: one.id) == scopes
        places = [int(one.id[2:]) // AT_ONCE for one in by_age]
        assert places == sorted(places)
        own = [one for number, one in enumerate(scopes) if number // AT_ONCE % 7 == 3]
        assert await listed(storage, query._replace(owner="user-3")) == own

    async def test_empty_listing(self, storage: Storage) -> None:
        """An empty storage lists nothing."""
        page = await storage.scopes(ScopeQuery())
        assert page == ((), None)

    async def test_what_is_said(self, storage: Storage, clock: FakeClock) -> None:
        """A listing says stamp, owner, times, labels and sizes."""
        await put(storage, k=b"x" * 100)
        made = clock()
        clock.advance(5)
        done = await commit(
            storage,
            appends=[Append("history", f"m{n}", b"x") for n in range(3)],
            owner="ada",
            labels={"status": "open"},
            ttl=60.0,
        )
        (info,) = (await storage.scopes(ScopeQuery())).items
        assert (info.scope, info.stamp, info.owner, dict(info.labels)) == (A, done.stamp, "ada", {"status": "open"})
        assert info.created_at == pytest.approx(made, abs=0.01)
        assert info.updated_at == pytest.approx(made + 5, abs=0.01)
        assert info.expires_at == pytest.approx(made + 65, abs=0.01)
        assert 100 <= info.entry_bytes <= 200
        assert dict(info.log_lengths) == {"history": 3}

    async def test_order_by_id(self, storage: Storage) -> None:
        """By id means kind, then id, in the order of their UTF-8 bytes."""
        scopes = [*conversations(IDS), StateScope.agent("z"), StateScope.user("a"), StateScope.GLOBAL]
        scopes.append(StateScope.step("wf", "validate"))
        for scope in scopes:
            await put(storage, scope, k=b"1")
        wanted = sorted(scopes, key=lambda scope: (scope.kind.encode(), scope.id.encode()))
        assert await listed(storage) == wanted
        assert await listed(storage, ScopeQuery(reverse=True)) == wanted[::-1]

    async def test_order_by_update(self, storage: Storage, clock: FakeClock) -> None:
        """By update means the time of the last commit, the oldest first unless reversed."""
        for scope in conversations("cab"):
            await put(storage, scope, k=b"1")
            clock.advance(10)
        await put(storage, StateScope.conversation("c"), k=b"2")
        assert await listed(storage, ScopeQuery(order="updated")) == conversations("abc")
        assert await listed(storage, ScopeQuery(order="updated", reverse=True)) == conversations("cba")

    async def test_by_kind(self, storage: Storage) -> None:
        """A kind lists the states of that kind only."""
        for scope in (StateScope.agent("x"), StateScope.user("x"), StateScope.GLOBAL, A):
            await put(storage, scope, k=b"1")
        assert await listed(storage, ScopeQuery(kind="user")) == [StateScope.user("x")]
        assert await listed(storage, ScopeQuery(kind="global")) == [StateScope.GLOBAL]
        assert await listed(storage, ScopeQuery(kind="team")) == []

    @pytest.mark.parametrize("prefix", ["a", "a:", "a:b", "a:b:", "a%", "a_", "a*", "é", "e", "\U0001f600", "no", "A"])
    @pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
    async def test_by_prefix(self, storage: Storage, prefix: str, reverse: bool) -> None:
        """A prefix is compared byte for byte: no wildcards, no case folding, no normalising."""
        for scope in conversations(IDS):
            await put(storage, scope, k=b"1")
        wanted = sorted((one for one in IDS if one.startswith(prefix)), key=str.encode, reverse=reverse)
        query = ScopeQuery(kind="conversation", prefix=prefix, reverse=reverse, limit=2)
        assert await listed(storage, query) == conversations(wanted)

    async def test_by_owner(self, storage: Storage) -> None:
        """An owner lists its own states; a new owner takes them along."""
        for scope, owner in zip(conversations("abcd"), ("ada", "bob", "ada", None), strict=True):
            await commit(storage, scope, owner=owner)
        assert await listed(storage, ScopeQuery(owner="ada")) == conversations("ac")
        await commit(storage, A, owner="bob")
        await commit(storage, StateScope.conversation("c"), owner=None)
        assert await listed(storage, ScopeQuery(owner="ada")) == []
        assert await listed(storage, ScopeQuery(owner="bob")) == conversations("ab")

    async def test_by_label(self, storage: Storage) -> None:
        """A label lists the states that carry it now, name and value exact."""
        for scope, status in zip(conversations("abcd"), ("open", "done", "open", "opening"), strict=True):
            await commit(storage, scope, labels={"status": status, "kind": "open"})
        assert await listed(storage, ScopeQuery(label=("status", "open"))) == conversations("ac")
        await commit(storage, A, labels={"status": "done"})
        assert await listed(storage, ScopeQuery(label=("status", "open"))) == conversations("c")
        assert await listed(storage, ScopeQuery(label=("status", "done"))) == conversations("ab")
        assert await listed(storage, ScopeQuery(label=("kind", "open"))) == conversations("bcd")

    @pytest.mark.parametrize("order", ["id", "updated"])
    async def test_by_update_time(self, storage: Storage, clock: FakeClock, order: Order) -> None:
        """Before and after bound the time of the last commit, in either order."""
        start = clock()
        for scope in conversations("abcde"):
            await put(storage, scope, k=b"1")
            clock.advance(10)
        before, after = (
            ScopeQuery(order=order, updated_before=start + 25),
            ScopeQuery(order=order, updated_after=start + 5),
        )
        assert await listed(storage, before) == conversations("abc")
        assert await listed(storage, after) == conversations("bcde")
        assert await listed(storage, before._replace(updated_after=start + 5, reverse=True)) == conversations("cb")

    @pytest.mark.parametrize("order", ["id", "updated"])
    async def test_filters_together(self, storage: Storage, clock: FakeClock, order: Order) -> None:
        """All filters of a query hold at once, across pages."""
        start = clock()
        for n in range(30):
            owner, status = ("ada", "bob")[n % 2], ("open", "done", "held")[n % 3]
            await commit(storage, StateScope.conversation(f"x{n:02}"), owner=owner, labels={"status": status})
            await commit(storage, StateScope.user(f"x{n:02}"), owner=owner, labels={"status": status})
            clock.advance(1)
        query = ScopeQuery(
            kind="conversation",
            prefix="x",
            owner="ada",
            label=("status", "open"),
            updated_after=start + 5.5,
            updated_before=start + 24.5,
            order=order,
            limit=1,
        )
        assert await listed(storage, query) == conversations(["x06", "x12", "x18", "x24"])

    @pytest.mark.parametrize("limit", [1, 3, 10, 11])
    @pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
    @pytest.mark.parametrize("order", ["id", "updated"])
    async def test_pages(self, storage: Storage, order: Order, limit: int, reverse: bool) -> None:
        """Pages of any size hold every state once, also when all were updated at the same moment."""
        scopes = conversations(f"{n:02}" for n in range(10))
        for scope in scopes:
            await put(storage, scope, k=b"1")
        found = await listed(storage, ScopeQuery(order=order, limit=limit, reverse=reverse))
        assert sorted(found) == scopes
        if order == "id":
            assert found == (scopes[::-1] if reverse else scopes)

    async def test_inserts_between_pages(self, storage: Storage) -> None:
        """States made and dropped between pages neither hide nor repeat the others."""
        for n in range(10, 40, 2):
            await put(storage, StateScope.conversation(str(n)), k=b"1")
        stay = set(conversations(str(n) for n in range(10, 40, 2))) - {StateScope.conversation("12")}
        query, found, step = ScopeQuery(limit=4), list[StateScope](), 0
        while True:
            page = await storage.scopes(query)
            found += [info.scope for info in page.items]
            if page.cursor is None:
                break
            for n in (step, 11 + 2 * step, 31 + step):
                await put(storage, StateScope.conversation(f"{n:02}"), k=b"new")
            await storage.drop(StateScope.conversation("12"))
            query, step = query._replace(cursor=page.cursor), step + 1
        assert len(found) == len(set(found))
        assert stay <= set(found)
        assert found == sorted(found)

    async def test_updates_between_pages(self, storage: Storage, clock: FakeClock) -> None:
        """A state updated between pages may come again, the others come exactly once."""
        for n in range(12):
            await put(storage, StateScope.conversation(f"{n:02}"), k=b"1")
            clock.advance(1)
        first = await storage.scopes(ScopeQuery(order="updated", limit=4))
        await put(storage, StateScope.conversation("01"), k=b"2")
        rest = await listed(storage, ScopeQuery(order="updated", limit=4, cursor=first.cursor))
        assert [info.scope for info in first.items] == conversations(["00", "01", "02", "03"])
        assert rest[:8] == conversations(f"{n:02}" for n in range(4, 12))
        assert rest[8:] in ([], conversations(["01"]))

    async def test_tenants(self, storage: Storage) -> None:
        """A listing is of one tenant; the same id in another is another state."""
        for tenant in ("", "acme", "acme2", "a"):
            scope = StateScope.conversation("a", tenant=tenant)
            await commit(storage, scope, puts=[Put("variables", "k", tenant.encode())], owner="ada", labels={"l": "v"})
        for tenant in ("", "acme", "acme2", "a"):
            scope = StateScope.conversation("a", tenant=tenant)
            for order in ("id", "updated"):
                assert await listed(storage, ScopeQuery(tenant=tenant, order=order)) == [scope]
            assert await listed(storage, ScopeQuery(tenant=tenant, owner="ada")) == [scope]
            assert await listed(storage, ScopeQuery(tenant=tenant, label=("l", "v"))) == [scope]
        assert await listed(storage, ScopeQuery(tenant="unknown")) == []

    async def test_gone(self, storage: Storage, clock: FakeClock) -> None:
        """Dropped and expired states are in no listing, and fill no page."""
        for n in range(12):
            ttl = 10.0 if n % 2 else None
            await commit(storage, StateScope.conversation(f"{n:02}"), owner="ada", labels={"l": "v"}, ttl=ttl)
        clock.advance(11)
        await storage.drop(StateScope.conversation("00"))
        left = conversations(f"{n:02}" for n in range(2, 12, 2))
        for query in (ScopeQuery(), ScopeQuery(owner="ada"), ScopeQuery(label=("l", "v")), ScopeQuery(order="updated")):
            assert await listed(storage, query._replace(limit=2)) == left

    async def test_many(self, storage: Storage) -> None:
        """Three hundred states are paged completely and in order."""
        scopes = conversations(f"c-{n:04}" for n in range(300))
        for scope in scopes:
            await put(storage, scope, k=b"1")
        await put(storage, B, k=b"1")
        assert await listed(storage, ScopeQuery(prefix="c-", limit=70)) == scopes

    @pytest.mark.parametrize("cursor", ["", "nonsense", "\U0001f600", "' OR 1=1 --", "Zm9v"])
    async def test_a_cursor_that_is_none(self, storage: Storage, cursor: str) -> None:
        """A made-up cursor is refused with a typed error, or begins somewhere; it never breaks anything."""
        await put(storage, k=b"1")
        try:
            page = await storage.scopes(ScopeQuery(cursor=cursor))
        except StateError:
            return
        assert {info.scope for info in page.items} <= {A}
