"""Copies: what a state that was copied from another storage keeps of its original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.storage.protocol import Append, Kept, Part, Put, ScopeQuery, TrimHead, Wants
from agentstate.testing.conformance.case import A, B, StorageCase, commit, log_of, need, picture, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock

LONG_AGO = 1_000_000.0
LATER = 1_000_500.0


class CopyTests(StorageCase):
    """`Part.kept`."""

    async def test_version_and_times(self, storage: Storage) -> None:
        """The copy has its original's version, birthday and last change, for reads and listings."""
        kept = Kept(41, LONG_AGO, LATER, {})
        done = await commit(storage, puts=[Put("variables", "k", b"1")], kept=kept)
        assert done.stamp is not None
        assert done.stamp.version == 41
        found = await read(storage)
        assert (found.stamp, found.created_at, found.updated_at) == (done.stamp, LONG_AGO, LATER)
        (info,) = (await storage.scopes(ScopeQuery())).items
        assert (info.stamp, info.created_at, info.updated_at) == (done.stamp, LONG_AGO, LATER)

    async def test_goes_on(self, storage: Storage) -> None:
        """The next commit makes the next version, at the storage's own time."""
        await commit(storage, puts=[Put("variables", "k", b"1")], kept=Kept(41, LONG_AGO, LATER, {}))
        done = await commit(storage, puts=[Put("variables", "k", b"2")])
        assert done.stamp is not None
        assert done.stamp.version == 42
        found = await read(storage)
        assert found.created_at == LONG_AGO
        assert found.updated_at > LATER
        assert [one.stamp.version for one in await storage.journal(A, after=41)] in ([42], [])

    async def test_in_several_commits(self, storage: Storage) -> None:
        """A large copy comes in pieces; versions only rise, and the last piece brings the original's."""
        first = await commit(storage, appends=[Append("history", "a", b"1")], kept=Kept(0, LONG_AGO, LATER, {}))
        second = await commit(storage, appends=[Append("history", "b", b"2")], kept=Kept(1, LATER, LATER, {}))
        last = await commit(storage, appends=[Append("history", "c", b"3")], kept=Kept(7, LATER, LATER, {}))
        assert [one.stamp.version for one in (first, second, last) if one.stamp is not None] == [1, 2, 7]
        assert (await read(storage)).created_at == LONG_AGO

    async def test_positions(self, storage: Storage) -> None:
        """A log whose head was trimmed keeps its positions; what is appended later comes after them."""
        kept = Kept(9, LONG_AGO, LATER, {"history": 31})
        done = await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in (31, 32)], kept=kept)
        view = done.logs["history"]
        assert (view.first, view.head, view.next_seq) == (31, 32, 33)
        await commit(storage, appends=[Append("history", "m-33", b"33")])
        page = await storage.read_log(A, "history")
        assert [(item.position, item.seq, item.value) for item in page.items] == [
            (31, 31, b"31"),
            (32, 32, b"32"),
            (33, 33, b"33"),
        ]
        tail = (await storage.read(A, Wants((), (), (("history", 2),)))).logs["history"].items
        assert [item.position for item in tail] == [32, 33]
        await commit(storage, trims=[TrimHead("history", 33)])
        assert await log_of(storage) == [b"33"]

    async def test_replaces(self, storage: Storage) -> None:
        """With ``clear`` the copy takes the place of what was there, whose version it doesn't fall behind."""
        for n in range(3):
            await commit(storage, puts=[Put("variables", "old", b"%d" % n)])
        done = await commit(storage, clear=True, puts=[Put("variables", "k", b"1")], kept=Kept(2, LONG_AGO, LATER, {}))
        assert done.stamp is not None
        assert done.stamp.version == 4
        found = await read(storage)
        assert list(found.entries) == [("variables", "k")]
        assert (found.created_at, found.updated_at) == (LONG_AGO, LATER)

    async def test_reopened(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """All of that is stored: it is the same when the data is opened again."""
        need(storage.capabilities.durability != "none", "durability")
        kept = Kept(9, LONG_AGO, LATER, {"history": 31})
        await commit(storage, appends=[Append("history", "m-31", b"31")], kept=kept)
        await commit(storage, puts=[Put("variables", "k", b"2")])
        before = await picture(storage)
        await storage.close()
        again = await another(clock)
        assert await picture(again) == before
        found = await read(again)
        assert found.stamp is not None
        assert (found.stamp.version, found.created_at) == (10, LONG_AGO)
        assert found.logs["history"].first == 31

    async def test_order(self, storage: Storage) -> None:
        """Listings by time put a copy where its original was."""
        await storage.commit([Part(scope=B, owner="ada")], commit_id=1)
        await commit(storage, owner="ada", kept=Kept(5, LONG_AGO, LATER, {}))
        page = await storage.scopes(ScopeQuery(order="updated"))
        assert [one.scope for one in page.items] == [A, B]
        old = await storage.scopes(ScopeQuery(updated_before=LATER + 1, order="updated"))
        assert [one.scope for one in old.items] == [A]
