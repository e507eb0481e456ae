"""A read brings what was wanted: all when it is little, else what was named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentstate.storage.protocol import Append, Put, Wants
from agentstate.testing.conformance.case import A, StorageCase, commit, put

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

SMALL = 4096


class ReadTests(StorageCase):
    """`Wants`: sections, keys, tails, and the limit up to which everything comes."""

    async def test_everything_when_it_is_little(self, storage: Storage) -> None:
        """All entries come while they hold no more than the limit."""
        await commit(storage, puts=[Put("variables", "a", b"1"), Put("metadata", "b", b"2")])
        found = await storage.read(A, Wants())
        assert set(found.entries) == {("variables", "a"), ("metadata", "b")}
        assert found.complete

    async def test_wanted_sections_only(self, storage: Storage) -> None:
        """Only the entries of the wanted sections come, and they are complete."""
        await commit(storage, puts=[Put("variables", "a", b"1"), Put("metadata", "b", b"2")])
        found = await storage.read(A, Wants(sections=("metadata",)))
        assert set(found.entries) == {("metadata", "b")}
        assert found.complete
        assert set(found.sections) == {"variables", "metadata"}

    async def test_a_wanted_key_comes_whatever_its_section(self, storage: Storage) -> None:
        """Keys that were named come, also from sections that were not."""
        await commit(storage, puts=[Put("variables", "a", b"1"), Put("metadata", "b", b"2")])
        found = await storage.read(A, Wants(sections=("metadata",), keys=(("variables", "a"),)))
        assert ("variables", "a") in found.entries
        assert ("metadata", "b") in found.entries

    async def test_only_named_keys_when_it_is_much(self, storage: Storage) -> None:
        """Beyond the limit the named keys come alone, and the snapshot says that it isn't complete."""
        await put(storage, big=b"x" * (2 * SMALL), little=b"1", other=b"2")
        found = await storage.read(A, Wants(keys=(("variables", "little"), ("variables", "no")), inline_bytes=SMALL))
        assert {at: entry.value for at, entry in found.entries.items()} == {("variables", "little"): b"1"}
        assert not found.complete

    async def test_nothing_inline(self, storage: Storage) -> None:
        """A limit of nothing brings no entries, but all the rest."""
        await commit(storage, puts=[Put("variables", "a", b"1")], appends=[Append("history", "m", b"1")], owner="ada")
        found = await storage.read(A, Wants(tails=(("history", 1),), inline_bytes=0))
        assert found.entries == {}
        assert not found.complete
        assert (found.owner, len(found.logs["history"].items)) == ("ada", 1)

    async def test_byte_counts(self, storage: Storage) -> None:
        """The bytes of all entries are counted and shrink when entries go."""
        await put(storage, a=b"x" * 1000, b=b"x" * 1000)
        full = (await storage.read(A, Wants())).entry_bytes
        assert 2000 <= full <= 2200
        await put(storage, a=b"")
        await commit(storage, deletes=[("variables", "b")])
        assert (await storage.read(A, Wants())).entry_bytes < 200

    async def test_shrinking_makes_it_complete_again(self, storage: Storage) -> None:
        """A state that has become small comes whole again."""
        await put(storage, big=b"x" * (2 * SMALL), little=b"1")
        await commit(storage, deletes=[("variables", "big")])
        found = await storage.read(A, Wants(inline_bytes=SMALL))
        assert set(found.entries) == {("variables", "little")}
        assert found.complete

    @pytest.mark.parametrize(
        ("wanted", "positions"), [(0, []), (1, [5]), (3, [3, 4, 5]), (5, [1, 2, 3, 4, 5]), (99, [1, 2, 3, 4, 5])]
    )
    async def test_tails(self, storage: Storage, wanted: int, positions: list[int]) -> None:
        """The last n items of a log come, oldest first."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"%d" % n) for n in range(1, 6)])
        view = (await storage.read(A, Wants(tails=(("history", wanted),)))).logs["history"]
        assert [item.position for item in view.items] == positions
        assert [item.value for item in view.items] == [b"%d" % n for n in positions]
        assert (view.first, view.head) == (1, 5)

    async def test_heads_of_all_logs(self, storage: Storage) -> None:
        """The heads of all logs come, with the items of the wanted ones only; an unknown log is absent."""
        await commit(storage, appends=[Append("history", "m", b"1"), Append("events", "e", b"1")])
        found = await storage.read(A, Wants(tails=(("history", 9), ("unknown", 9))))
        assert {name: len(view.items) for name, view in found.logs.items()} == {"history": 1, "events": 0}
        assert found.logs["events"].head == 1

    async def test_scan_pages_in_key_order(self, storage: Storage) -> None:
        """A section is paged in the order of its keys' UTF-8 bytes, each entry once."""
        keys = [f"k{n:03}" for n in range(25)] + ["K", "é", "z", "\U0001f600", "\uffee"]
        await put(storage, **{key: key.encode() for key in keys})
        seen: list[str] = []
        cursor: str | None = None
        for _ in range(len(keys)):
            page = await storage.scan(A, "variables", cursor=cursor, limit=7)
            assert len(page.entries) <= 7
            assert all(entry.value == key.encode() for key, entry in page.entries)
            seen += [key for key, _ in page.entries]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == sorted(keys, key=str.encode)

    async def test_scan_by_prefix(self, storage: Storage) -> None:
        """A prefix is compared byte for byte: no wildcards, no case folding."""
        await put(storage, **dict.fromkeys(("a%", "a%b", "ab", "A%", "a_", "a*", "b"), b"1"))
        for prefix, keys in {"a%": ["a%", "a%b"], "a": ["a%", "a%b", "a*", "a_", "ab"], "a*": ["a*"], "c": []}.items():
            page = await storage.scan(A, "variables", prefix=prefix)
            assert [key for key, _ in page.entries] == keys
            assert page.cursor is None

    async def test_scan_of_nothing(self, storage: Storage) -> None:
        """An absent state and an absent section have no entries."""
        assert (await storage.scan(A, "variables")).entries == ()
        await put(storage, k=b"1")
        assert (await storage.scan(A, "metadata")).entries == ()
