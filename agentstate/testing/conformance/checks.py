"""Conditions of a commit: what was read must still hold, or nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from agentstate.errors import ConflictError
from agentstate.storage.protocol import Append, Check, Put, Stamp
from agentstate.testing.conformance.case import A, StorageCase, commit, picture, put, read

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

Kind = Literal["entry", "section", "log"]
KINDS: list[tuple[Kind, str, str]] = [("entry", "variables", "k"), ("section", "variables", ""), ("log", "history", "")]
each_kind = pytest.mark.parametrize(("kind", "name", "key"), KINDS, ids=[kind for kind, _, _ in KINDS])
WRITE = [Put("variables", "written", b"!")]
_WRITING: dict[str, Any] = {"puts": WRITE}


async def _touch(storage: Storage) -> Stamp:
    done = await commit(storage, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")])
    assert done.stamp is not None
    return done.stamp


async def _refused(storage: Storage, **change: Any) -> ConflictError:
    before = await picture(storage)
    with pytest.raises(ConflictError) as caught:
        await commit(storage, **(_WRITING | change))
    assert await picture(storage) == before
    return caught.value


class CheckTests(StorageCase):
    """Checks of entries, sections and logs; base and birth."""

    @each_kind
    async def test_the_stamp_holds(self, storage: Storage, kind: Kind, name: str, key: str) -> None:
        """A commit whose checked stamp still holds is done."""
        stamp = await _touch(storage)
        await commit(storage, checks=[Check(kind, name, stamp, key)], puts=WRITE)

    @each_kind
    async def test_the_stamp_has_changed(self, storage: Storage, kind: Kind, name: str, key: str) -> None:
        """A commit that checks an old stamp conflicts, names both stamps and writes nothing."""
        old = await _touch(storage)
        new = (await commit(storage, puts=[Put("variables", "k", b"2")], appends=[Append("history", "n", b"2")])).stamp
        error = await _refused(storage, checks=[Check(kind, name, old, key)])
        assert (error.expected, error.found, error.scope) == (old, new, A)

    @each_kind
    async def test_absent_counts(self, storage: Storage, kind: Kind, name: str, key: str) -> None:
        """What was absent when it was read must still be absent."""
        await commit(storage, checks=[Check(kind, name, None, key)], puts=[Put("other", "x", b"1")])
        await _touch(storage)
        await _refused(storage, checks=[Check(kind, name, None, key)])

    @each_kind
    async def test_gone_counts(self, storage: Storage, kind: Kind, name: str, key: str) -> None:
        """What was there when it was read must not have gone with its state."""
        stamp = await _touch(storage)
        assert await storage.drop(A)
        await _refused(storage, checks=[Check(kind, name, stamp, key)])

    @each_kind
    async def test_whole_stamps(self, storage: Storage, kind: Kind, name: str, key: str) -> None:
        """The same version made by another commit is another stamp, however close the ids are."""
        big = 2**62 + 1
        await commit(storage, commit_id=big, puts=[Put("variables", "k", b"1")], appends=[Append("history", "m", b"1")])
        await _refused(storage, checks=[Check(kind, name, Stamp(1, big - 1), key)])
        await _refused(storage, checks=[Check(kind, name, Stamp(2, big), key)])
        await commit(storage, checks=[Check(kind, name, Stamp(1, big), key)], puts=WRITE)

    async def test_other_changes_dont_conflict(self, storage: Storage) -> None:
        """A check concerns what it names and nothing else of the state."""
        stamp = await _touch(storage)
        await commit(storage, puts=[Put("metadata", "x", b"1")], appends=[Append("events", "e", b"1")])
        checks = [Check(kind, name, stamp, key) for kind, name, key in KINDS]
        await commit(storage, checks=checks, puts=[Put("metadata", "y", b"1")])

    async def test_a_deleted_entry_is_absent(self, storage: Storage) -> None:
        """An entry deleted since conflicts with its old stamp, and is absent for a new check."""
        stamp = await _touch(storage)
        await commit(storage, deletes=[("variables", "k")])
        error = await _refused(storage, checks=[Check("entry", "variables", stamp, "k")])
        assert error.found is None
        await commit(storage, checks=[Check("entry", "variables", None, "k")], puts=WRITE)

    async def test_a_delete_changes_the_section(self, storage: Storage) -> None:
        """Who listed a section conflicts with a delete in it."""
        stamp = await _touch(storage)
        await commit(storage, deletes=[("variables", "k")])
        await _refused(storage, checks=[Check("section", "variables", stamp)])

    async def test_one_of_many_fails(self, storage: Storage) -> None:
        """One failed check among many refuses the commit."""
        stamp = await _touch(storage)
        good = [Check(kind, name, stamp, key) for kind, name, key in KINDS]
        await _refused(storage, checks=[*good, Check("entry", "variables", stamp, "absent")])

    async def test_a_commit_is_checked_before_its_own_change(self, storage: Storage) -> None:
        """Checks see the state before the commit, also what it clears, deletes or puts itself."""
        stamp = await _touch(storage)
        check = Check("entry", "variables", stamp, "k")
        done = await commit(storage, checks=[check], deletes=[("variables", "k")], puts=[Put("variables", "k", b"2")])
        check = Check("entry", "variables", done.stamp, "k")
        await commit(storage, checks=[check], clear=True, puts=[Put("variables", "k", b"3")])

    async def test_base(self, storage: Storage) -> None:
        """A base demands the whole state unchanged; None demands it absent."""
        first = await commit(storage, base=None, puts=WRITE)
        await _refused(storage, base=None)
        second = await commit(storage, base=first.stamp, puts=WRITE)
        error = await _refused(storage, base=first.stamp)
        assert (error.expected, error.found) == (first.stamp, second.stamp)

    async def test_base_of_an_absent_state(self, storage: Storage) -> None:
        """A base of a state that was never there conflicts."""
        await _refused(storage, base=Stamp(1, 1))
        assert (await read(storage)).stamp is None

    async def test_birth(self, storage: Storage) -> None:
        """A birth demands this incarnation, whatever was committed to it since; 0 demands none."""
        first = await commit(storage, birth=0, puts=WRITE)
        await put(storage, k=b"1")
        await commit(storage, birth=first.birth, puts=WRITE)
        await _refused(storage, birth=0)
        await _refused(storage, birth=first.birth - 1)

    async def test_birth_of_a_dropped_state(self, storage: Storage) -> None:
        """A commit that demands a dropped incarnation conflicts and doesn't bring half of it back."""
        first = await put(storage, k=b"1")
        assert await storage.drop(A)
        await _refused(storage, birth=first.birth)
        assert (await read(storage)).stamp is None

    async def test_birth_of_a_remade_state(self, storage: Storage) -> None:
        """A commit that demands an earlier incarnation conflicts with a later one."""
        first = await put(storage, k=b"1")
        assert await storage.drop(A)
        await put(storage, k=b"2")
        await _refused(storage, birth=first.birth)
