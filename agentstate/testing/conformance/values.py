"""Values come back byte for byte; versions, stamps and births say what the contract says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentstate.errors import ValueTooLargeError
from agentstate.storage.protocol import Append, Part, Put, Stamp
from agentstate.testing.conformance.case import A, B, StorageCase, commit, put, read, value_of
from agentstate.testing.turns import new_id

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock

VALUES = {
    "empty": b"",
    "json": b'{"a": [1, {}, []], "b": 12345678901234567}',
    "number": b"42",
    "every-byte": bytes(range(256)),
    "nul": b"\0",
    "line-ends": b"\r\n\n\r",
    "invalid-utf8": b"\xff\xfe\xc3\x28",
    "kilobytes": b"0123456789abcdef" * 4096,
    "megabyte": bytes(range(256)) * 4096,
}
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())


class ValueTests(StorageCase):
    """What is put comes back the same."""

    @each_value
    async def test_entry_comes_back(self, storage: Storage, value: bytes) -> None:
        """An entry's bytes are not touched."""
        await put(storage, k=value)
        assert await value_of(storage, "k") == value

    @each_value
    async def test_item_comes_back(self, storage: Storage, value: bytes) -> None:
        """A log item's bytes are not touched, and counted as they are."""
        done = await commit(storage, appends=[Append("history", "m-1", value)])
        page = await storage.read_log(A, "history")
        assert [(item.id, item.value) for item in page.items] == [("m-1", value)]
        assert done.logs["history"].size == len(value)

    async def test_put_replaces(self, storage: Storage) -> None:
        """The last put of a key counts."""
        await put(storage, k=b"a long first value")
        await put(storage, k=b"2")
        assert await value_of(storage, "k") == b"2"

    async def test_many_entries(self, storage: Storage) -> None:
        """Five hundred entries in one commit all come back."""
        wanted = {f"key-{n}": b"value %d" % n for n in range(500)}
        await put(storage, **wanted)
        found = (await read(storage)).entries
        assert {key: entry.value for (_, key), entry in found.items()} == wanted

    async def test_sections_are_apart(self, storage: Storage) -> None:
        """The same key in two sections is two entries; a log of the same name is neither."""
        puts = [Put("variables", "k", b"1"), Put("metadata", "k", b"2")]
        await commit(storage, puts=puts, appends=[Append("variables", "k", b"3")])
        found = await read(storage)
        assert {at: entry.value for at, entry in found.entries.items()} == {
            ("variables", "k"): b"1",
            ("metadata", "k"): b"2",
        }
        assert found.logs["variables"].head == 1

    async def test_delete(self, storage: Storage) -> None:
        """A deleted entry is absent, its neighbours stay."""
        await put(storage, k=b"1", other=b"2")
        await commit(storage, deletes=[("variables", "k"), ("variables", "never there")])
        assert set((await read(storage)).entries) == {("variables", "other")}

    async def test_scopes_are_apart(self, storage: Storage) -> None:
        """A commit of one scope changes nothing in another."""
        await put(storage, A, k=b"a")
        await put(storage, B, k=b"b")
        assert await value_of(storage, "k", A) == b"a"
        assert await value_of(storage, "k", B) == b"b"

    async def test_owner_parent_and_labels(self, storage: Storage) -> None:
        """Owner, parent and labels are kept until they are set anew; None removes."""
        await commit(storage, owner="ada", parent="conversation:root", labels={"status": "open", "topic": "é\n"})
        await put(storage, k=b"1")
        found = await read(storage)
        assert (found.owner, found.parent, dict(found.labels)) == (
            "ada",
            "conversation:root",
            {"status": "open", "topic": "é\n"},
        )
        await commit(storage, owner=None, parent=None, labels={"status": "done"})
        found = await read(storage)
        assert (found.owner, found.parent, dict(found.labels)) == (None, None, {"status": "done"})
        await commit(storage, labels={})
        assert dict((await read(storage)).labels) == {}

    async def test_eight_labels(self, storage: Storage) -> None:
        """Eight labels are stored."""
        labels = {f"label-{n}": str(n) for n in range(8)}
        await commit(storage, labels=labels)
        assert dict((await read(storage)).labels) == labels

    async def test_nine_labels(self, storage: Storage) -> None:
        """A ninth label is refused, and nothing is written."""
        with pytest.raises(ValueTooLargeError):
            await commit(storage, puts=[Put("variables", "k", b"1")], labels={f"label-{n}": "x" for n in range(9)})
        assert (await read(storage)).stamp is None


class StampTests(StorageCase):
    """Versions, stamps, births and times."""

    async def test_absent(self, storage: Storage) -> None:
        """A state nobody committed is absent."""
        found = await read(storage)
        assert (found.stamp, found.birth, found.owner, found.entries, found.logs) == (None, 0, None, {}, {})
        assert found.complete

    async def test_version_adds_one(self, storage: Storage) -> None:
        """Every commit adds one to the version and stamps it with its commit id."""
        for version in (1, 2, 3):
            commit_id = new_id()
            done = await commit(storage, commit_id=commit_id, puts=[Put("variables", "k", b"%d" % version)])
            assert done.stamp == Stamp(version, commit_id)
            assert (await read(storage)).stamp == done.stamp

    async def test_a_commit_that_holds_nothing_counts(self, storage: Storage) -> None:
        """A part without operations is a commit like any other."""
        first = await put(storage, k=b"1")
        second = await commit(storage)
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version == first.stamp.version + 1

    @pytest.mark.parametrize("commit_id", [1, 2**53 + 1, 2**63 - 1])
    async def test_commit_ids_are_exact(self, storage: Storage, commit_id: int) -> None:
        """A commit id comes back exactly, also where a float would round it."""
        await commit(storage, commit_id=commit_id, puts=[Put("variables", "k", b"1")])
        found = await read(storage)
        assert found.stamp == Stamp(1, commit_id)
        assert found.birth == commit_id
        assert found.entries["variables", "k"].stamp == Stamp(1, commit_id)

    async def test_touched_parts_take_the_stamp(self, storage: Storage) -> None:
        """Entries, sections and logs take the stamp of the commit that touched them; others keep theirs."""
        first = await commit(
            storage,
            puts=[Put("variables", "old", b"1"), Put("metadata", "old", b"1")],
            appends=[Append("history", "m-1", b"1"), Append("events", "e-1", b"1")],
        )
        second = await commit(storage, puts=[Put("variables", "new", b"2")], appends=[Append("history", "m-2", b"2")])
        found = await read(storage)
        stamps = {at: entry.stamp for at, entry in found.entries.items()}
        assert stamps == {
            ("variables", "old"): first.stamp,
            ("metadata", "old"): first.stamp,
            ("variables", "new"): second.stamp,
        }
        assert found.sections == {"variables": second.stamp, "metadata": first.stamp}
        assert {name: log.stamp for name, log in found.logs.items()} == {"history": second.stamp, "events": first.stamp}

    async def test_a_delete_stamps_its_section(self, storage: Storage) -> None:
        """A section from which an entry was deleted has changed, also when it holds none any more."""
        await put(storage, k=b"1")
        done = await commit(storage, deletes=[("variables", "k")])
        assert (await read(storage)).sections == {"variables": done.stamp}

    async def test_birth_stays(self, storage: Storage) -> None:
        """The birth is the commit id that created the incarnation."""
        first = await commit(storage, commit_id=77, puts=[Put("variables", "k", b"1")])
        second = await put(storage, k=b"2")
        assert first.birth == second.birth == (await read(storage)).birth == 77

    async def test_times(self, storage: Storage, clock: FakeClock) -> None:
        """A state knows when it was made and last committed, on the storage's clock."""
        start = clock()
        await put(storage, k=b"1")
        clock.advance(10)
        await put(storage, k=b"2")
        clock.advance(10)
        found = await read(storage)
        assert found.created_at == pytest.approx(start, abs=0.01)
        assert found.updated_at == pytest.approx(start + 10, abs=0.01)
        assert found.now == pytest.approx(start + 20, abs=0.01)
        assert found.expires_at is None

    async def test_a_snapshot_stays_as_it_was(self, storage: Storage) -> None:
        """A snapshot doesn't follow later commits, whatever the storage shares inside."""
        change: dict[str, Any] = {"puts": [Put("variables", "k", b"1")], "appends": [Append("history", "m-1", b"1")]}
        await commit(storage, labels={"status": "open"}, **change)
        found = await read(storage)
        await commit(storage, clear=True, puts=[Put("metadata", "x", b"2")], labels={"status": "done"})
        assert dict(found.labels) == {"status": "open"}
        assert set(found.entries) == {("variables", "k")}
        assert found.logs["history"].head == 1

    async def test_the_result_says_what_was_made(self, storage: Storage) -> None:
        """A commit returns stamp, birth and log heads of each part, in the parts' order."""
        done = await commit(storage, appends=[Append("history", f"m-{n}", b"x") for n in range(3)])
        assert done.stamp is not None
        assert done.birth == done.stamp.commit_id
        view = done.logs["history"]
        assert (view.first, view.head, view.next_seq, view.size, view.stamp) == (1, 3, 4, 3, done.stamp)

    async def test_parts_in_order(self, storage: Storage) -> None:
        """A commit of one part gives one result."""
        done = await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"1")])], commit_id=5)
        assert [one.stamp for one in done] == [Stamp(1, 5)]
