"""A commit is applied in the stated order, all or nothing; what clears leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentstate.errors import ConflictError, StateError, UnsupportedError, UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import (
    Append,
    Check,
    CutTail,
    EditItem,
    Increment,
    OnceRecord,
    Part,
    Put,
    ScopeQuery,
    Stamp,
    TrimHead,
)
from agentstate.testing.conformance.case import (
    A,
    B,
    StorageCase,
    add,
    commit,
    log_of,
    need,
    picture,
    put,
    read,
    value_of,
)
from agentstate.testing.turns import EVERYTHING, new_id

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

FULL: dict[str, Any] = {
    "puts": [Put("variables", "new", b"1")],
    "deletes": [("variables", "old")],
    "appends": [Append("history", "new", b"1")],
    "cuts": [CutTail("history", 2)],
    "owner": "mallory",
    "labels": {"status": "wrong"},
    "ttl": 5.0,
    "record": b"wrong",
}
BAD: dict[str, tuple[dict[str, Any], type[StateError]]] = {
    "check": ({"checks": [Check("entry", "variables", Stamp(9, 9), "old")]}, ConflictError),
    "no-counter": ({"increments": [Increment("variables", "old", 1)], "deletes": ()}, UnsupportedValueError),
    "overflow": ({"increments": [Increment("variables", "n", 2**63 - 1)]}, ValueTooLargeError),
    "edit": ({"edits": [EditItem("history", 1, 99, b"x")]}, ConflictError),
}
each_bad = pytest.mark.parametrize(("bad", "error"), BAD.values(), ids=BAD.keys())


class OrderTests(StorageCase):
    """Inside a part: checks, clear, cuts, trims, edits, deletes, puts, increments, appends."""

    async def test_delete_then_put(self, storage: Storage) -> None:
        """A key deleted and put in one part is there with the put value."""
        await put(storage, k=b"1")
        await commit(storage, deletes=[("variables", "k")], puts=[Put("variables", "k", b"2")])
        assert await value_of(storage, "k") == b"2"

    async def test_delete_then_increment(self, storage: Storage) -> None:
        """A counter deleted and increased in one part starts at 0."""
        await add(storage, by=5)
        done = await commit(storage, deletes=[("variables", "n")], increments=[Increment("variables", "n", 2)])
        assert done.counters == {("variables", "n"): 2}
        assert await value_of(storage, "n") == 2

    async def test_put_twice(self, storage: Storage) -> None:
        """Of two puts of one key the later one counts."""
        await commit(storage, puts=[Put("variables", "k", b"1"), Put("variables", "k", b"2")])
        assert await value_of(storage, "k") == b"2"

    async def test_cut_then_append(self, storage: Storage) -> None:
        """A suffix is replaced by a cut and appends in one part."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(1, 5)])
        await commit(storage, cuts=[CutTail("history", 3)], appends=[Append("history", "new", b"new")])
        page = await storage.read_log(A, "history")
        assert [(item.position, item.seq, item.value) for item in page.items] == [
            (1, 1, b"1"),
            (2, 2, b"2"),
            (3, 5, b"new"),
        ]

    async def test_cut_trim_edit_append(self, storage: Storage) -> None:
        """All log operations meet in one part, in their order."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(1, 7)])
        await commit(
            storage,
            appends=[Append("history", "m-7", b"7")],
            edits=[EditItem("history", 3, 3, b"edited")],
            trims=[TrimHead("history", 3)],
            cuts=[CutTail("history", 5)],
        )
        assert await log_of(storage) == [b"edited", b"4", b"7"]

    async def test_an_edit_of_what_the_part_cuts(self, storage: Storage) -> None:
        """An edit of an item that the same part removes conflicts, and nothing is removed."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(1, 4)])
        removals: list[dict[str, Any]] = [{"cuts": [CutTail("history", 2)]}, {"trims": [TrimHead("history", 3)]}]
        for removal in removals:
            with pytest.raises(ConflictError):
                await commit(storage, edits=[EditItem("history", 2, 2, b"x")], **removal)
        assert await log_of(storage) == [b"1", b"2", b"3"]

    async def test_clear_then_the_rest(self, storage: Storage) -> None:
        """A part that clears holds afterwards what it puts, adds and appends, and nothing else."""
        await commit(
            storage, puts=[Put("variables", "old", b"1")], appends=[Append("history", "m", b"1")], owner="ada", ttl=60.0
        )
        await add(storage, by=5)
        await commit(
            storage,
            clear=True,
            puts=[Put("metadata", "new", b"2")],
            increments=[Increment("variables", "n", 1)],
            appends=[Append("events", "e", b"3")],
        )
        found = await read(storage)
        assert {at: entry.value for at, entry in found.entries.items()} == {
            ("metadata", "new"): b"2",
            ("variables", "n"): 1,
        }
        assert set(found.logs) == {"events"}
        assert (found.owner, found.expires_at) == (None, None)


class ClearTests(StorageCase):
    """Clearing: a new incarnation, or a drop."""

    async def test_clear_and_put_is_a_new_incarnation(self, storage: Storage) -> None:
        """The state is born anew, and its version goes on rising."""
        first = await put(storage, k=b"1")
        second = await commit(storage, clear=True, puts=[Put("variables", "k", b"2")])
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version > first.stamp.version
        assert second.birth == second.stamp.commit_id != first.birth
        assert (await read(storage)).birth == second.birth

    async def test_clear_alone_drops(self, storage: Storage) -> None:
        """A part that clears and leaves nothing drops the state."""
        await commit(storage, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")], owner="ada")
        done = await commit(storage, clear=True)
        assert done.stamp is None
        found = await read(storage)
        assert (found.stamp, found.birth, found.entries, found.logs, found.owner) == (None, 0, {}, {}, None)
        assert (await storage.scopes(ScopeQuery())).items == ()

    async def test_what_was_dropped_is_not_mixed_in(self, storage: Storage) -> None:
        """A state made after a drop has nothing of the one before, and a higher version."""
        first = await commit(
            storage,
            puts=[Put("variables", "old", b"1")],
            appends=[Append("history", "m", b"1", unique=True)],
            owner="ada",
            labels={"status": "open"},
            record=b"first",
        )
        await commit(storage, clear=True)
        second = await put(storage, new=b"2")
        found = await read(storage)
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version > first.stamp.version
        assert set(found.entries) == {("variables", "new")}
        assert (found.logs, found.owner, dict(found.labels)) == ({}, None, {})
        assert set(found.sections) == {"variables"}
        assert await storage.find_item(A, "history", "m") is None
        assert b"first" not in [record.record for record in await storage.journal(A)]

    async def test_clear_of_nothing(self, storage: Storage) -> None:
        """Clearing an absent state leaves it absent."""
        done = await commit(storage, clear=True)
        assert done.stamp is None
        assert (await read(storage)).stamp is None

    async def test_a_failed_clear_clears_nothing(self, storage: Storage) -> None:
        """A part that clears under a failed condition changes nothing."""
        await put(storage, k=b"1")
        before = await picture(storage)
        with pytest.raises(ConflictError):
            await commit(storage, clear=True, base=None)
        assert await picture(storage) == before

    async def test_a_large_state_is_cleared(self, storage: Storage) -> None:
        """Clearing removes a thousand entries and items as it removes one."""
        puts = [Put("variables", f"k{n}", b"x") for n in range(1000)]
        await commit(storage, puts=puts, appends=[Append("history", f"m{n}", b"x", unique=True) for n in range(1000)])
        await commit(storage, clear=True, puts=[Put("variables", "k1", b"y")])
        found = await read(storage)
        assert {at: entry.value for at, entry in found.entries.items()} == {("variables", "k1"): b"y"}
        assert found.logs == {}
        assert await storage.find_item(A, "history", "m1") is None


class AtomicityTests(StorageCase):
    """All or nothing, inside a scope and across scopes."""

    @each_bad
    async def test_one_bad_operation(self, storage: Storage, bad: dict[str, Any], error: type[StateError]) -> None:
        """A commit with one operation that can't be done changes nothing at all."""
        await put(storage, old=b"1")
        await add(storage, by=1)
        await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(3)], owner="ada")
        before = await picture(storage)
        with pytest.raises(error):
            await commit(storage, **(FULL | bad))
        assert await picture(storage) == before

    @each_bad
    async def test_one_bad_part(self, storage: Storage, bad: dict[str, Any], error: type[StateError]) -> None:
        """A commit whose second part can't be done doesn't do the first one either."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        await put(storage, B, old=b"1")
        await add(storage, B, by=1)
        await commit(storage, B, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(3)])
        before = [await picture(storage, A), await picture(storage, B)]
        with pytest.raises(error):
            await storage.commit(
                [Part(scope=A, puts=[Put("variables", "k", b"1")]), Part(scope=B, **(FULL | bad))],
                commit_id=new_id(),
            )
        assert [await picture(storage, A), await picture(storage, B)] == before

    async def test_several_scopes_together(self, storage: Storage) -> None:
        """Parts of several scopes are applied together, each with its own version."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        await put(storage, B, k=b"0")
        puts = [Put("variables", "k", b"1")]
        done = await storage.commit([Part(scope=A, puts=puts), Part(scope=B, puts=puts)], commit_id=9)
        assert [one.stamp for one in done] == [Stamp(1, 9), Stamp(2, 9)]
        assert await value_of(storage, "k", A) == await value_of(storage, "k", B) == b"1"

    async def test_a_part_that_only_checks(self, storage: Storage) -> None:
        """A commit may rely on a state that it doesn't change: that one gets no version, and isn't created."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        stamp = (await put(storage, B, k=b"0")).stamp
        absent = A.conversation("absent")
        parts = [
            Part(scope=A, puts=[Put("variables", "k", b"1")]),
            Part(scope=B, checks=[Check("entry", "variables", stamp, "k")], checks_only=True),
            Part(scope=absent, checks=[Check("entry", "variables", None, "k")], checks_only=True),
        ]
        await storage.commit(parts, commit_id=9)
        assert (await read(storage, B)).stamp == stamp
        assert (await read(storage, absent)).stamp is None
        assert [one.scope for one in (await storage.scopes(ScopeQuery())).items] == [A, B]
        changed = await put(storage, B, k=b"2")
        with pytest.raises(ConflictError):
            await storage.commit(parts, commit_id=10)
        with pytest.raises(ConflictError):
            await storage.commit(parts[1:], commit_id=11)
        assert ((await read(storage, A)).stamp, (await read(storage, B)).stamp) == (Stamp(1, 9), changed.stamp)

    async def test_several_scopes_refused(self, storage: Storage) -> None:
        """A storage that can't commit several scopes says so and writes nothing."""
        if storage.capabilities.atomic_scopes:
            pytest.skip("declared: atomic_scopes, so nothing is refused")
        puts = [Put("variables", "k", b"1")]
        parts = [Part(scope=A.conversation(f"c-{n}"), puts=puts) for n in range(50)]
        with pytest.raises(UnsupportedError):
            await storage.commit(parts, commit_id=9)
        assert (await storage.scopes(ScopeQuery())).items == ()

    async def test_a_failed_first_commit_leaves_no_state(self, storage: Storage) -> None:
        """A refused commit to an absent state doesn't create it."""
        with pytest.raises(ConflictError):
            await commit(storage, **(FULL | BAD["check"][0]))
        assert (await read(storage)).stamp is None
        assert (await storage.scopes(ScopeQuery())).items == ()
        assert await storage.journal(A) == ()

    async def test_a_refused_commit_stores_no_result(self, storage: Storage) -> None:
        """A refused commit doesn't mark its idempotency key as done, and has no outcome."""
        await put(storage, k=b"1")
        with pytest.raises(ConflictError):
            await commit(storage, commit_id=5, base=None, once=OnceRecord("key", "f", 5, b"result"))
        assert (await storage.read(A, EVERYTHING, once="key")).once is None
        assert await storage.outcome(A, 5) is None
