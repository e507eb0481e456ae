"""Logs: dense positions, sequence numbers never used twice, and what edits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentstate.errors import ConflictError
from agentstate.storage.protocol import Append, CutTail, EditItem, Part, TrimHead, Wants
from agentstate.testing.conformance.case import A, StorageCase, commit, log_of, picture, read

if TYPE_CHECKING:
    from agentstate.storage.protocol import Committed, LogView, Storage


async def fill(storage: Storage, count: int, *, start: int = 1, unique: bool = False) -> Committed:
    """Append ``count`` items whose values are their numbers."""
    appends = [Append("history", f"m-{n}", b"%d" % n, unique=unique) for n in range(start, start + count)]
    return await commit(storage, appends=appends)


async def view_of(storage: Storage) -> LogView:
    """Return the head of the log."""
    return (await read(storage)).logs["history"]


class LogTests(StorageCase):
    """Appending and reading."""

    async def test_append(self, storage: Storage) -> None:
        """Items get dense positions and rising sequence numbers, over several commits."""
        await fill(storage, 2)
        done = await fill(storage, 2, start=3)
        page = await storage.read_log(A, "history")
        assert [(item.seq, item.position, item.id, item.value) for item in page.items] == [
            (n, n, f"m-{n}", b"%d" % n) for n in range(1, 5)
        ]
        assert page.view is not None
        assert (page.view.first, page.view.head, page.view.next_seq) == (1, 4, 5)
        assert (done.logs["history"].head, done.logs["history"].next_seq) == (4, 5)

    @pytest.mark.parametrize(
        ("start", "end", "limit", "positions"),
        [
            (None, None, None, list(range(1, 11))),
            (None, None, 3, [8, 9, 10]),
            (None, None, 0, []),
            (None, 5, None, [1, 2, 3, 4]),
            (None, 5, 2, [3, 4]),
            (4, None, None, [4, 5, 6, 7, 8, 9, 10]),
            (4, None, 2, [4, 5]),
            (4, 7, None, [4, 5, 6]),
            (4, 7, 2, [4, 5]),
            (4, 7, 99, [4, 5, 6]),
            (-5, 3, 1, [1]),
            (0, 99, None, list(range(1, 11))),
            (11, None, 5, []),
            (7, 4, None, []),
            (None, 99, 2, [9, 10]),
        ],
    )
    async def test_read_log(
        self, storage: Storage, start: int | None, end: int | None, limit: int | None, positions: list[int]
    ) -> None:
        """A page begins at ``start``, or ends before ``end``, and is always oldest first."""
        await fill(storage, 10)
        page = await storage.read_log(A, "history", start=start, end=end, limit=limit)
        assert [item.position for item in page.items] == positions
        assert page.view is not None
        assert (page.view.first, page.view.head) == (1, 10)

    async def test_absent_log(self, storage: Storage) -> None:
        """A log of an absent state, and one that never held an item, are absent."""
        assert await storage.read_log(A, "history") == (None, ())
        await commit(storage, appends=[Append("events", "e", b"1")])
        assert await storage.read_log(A, "history") == (None, ())

    async def test_size(self, storage: Storage) -> None:
        """A log counts the bytes of its values, whatever is added, cut, trimmed or edited."""
        await commit(storage, appends=[Append("history", f"m-{n}", b"x" * 10) for n in range(1, 7)])
        assert (await view_of(storage)).size == 60
        await commit(
            storage,
            cuts=[CutTail("history", 6)],
            trims=[TrimHead("history", 2)],
            edits=[EditItem("history", 3, 3, b"y")],
        )
        assert (await view_of(storage)).size == 31

    async def test_equal_ids(self, storage: Storage) -> None:
        """Ids need not be unique unless that is asked for."""
        await commit(storage, appends=[Append("history", "same", b"1"), Append("history", "same", b"2")])
        assert await log_of(storage) == [b"1", b"2"]

    async def test_logs_are_apart(self, storage: Storage) -> None:
        """Each log has positions and sequence numbers of its own."""
        await commit(storage, appends=[Append("history", "m", b"1"), Append("events", "m", b"2", unique=True)])
        found = await read(storage)
        assert {name: (view.head, view.next_seq) for name, view in found.logs.items()} == {
            "history": (1, 2),
            "events": (1, 2),
        }
        assert await storage.find_item(A, "history", "m") is None

    async def test_a_long_log(self, storage: Storage) -> None:
        """Two thousand items in one commit are read back in pages, none twice and none missing."""
        await fill(storage, 2000)
        seen: list[bytes] = []
        for start in range(1, 2001, 300):
            seen += [item.value for item in (await storage.read_log(A, "history", start=start, limit=300)).items]
        assert seen == [b"%d" % n for n in range(1, 2001)]


class UniqueItemTests(StorageCase):
    """Items with unique ids: added once, found by id."""

    async def test_a_repeated_id_adds_nothing(self, storage: Storage) -> None:
        """An append whose unique id the log holds is a no-op, also within one commit."""
        await commit(storage, appends=[Append("history", "m-1", b"first", unique=True)])
        await commit(
            storage,
            appends=[
                Append("history", "m-1", b"again", unique=True),
                Append("history", "m-2", b"second", unique=True),
                Append("history", "m-2", b"and again", unique=True),
            ],
        )
        page = await storage.read_log(A, "history")
        assert [(item.position, item.value) for item in page.items] == [(1, b"first"), (2, b"second")]

    async def test_find_item(self, storage: Storage) -> None:
        """An item is found by its unique id, with its place."""
        await fill(storage, 3, unique=True)
        found = await storage.find_item(A, "history", "m-2")
        assert found is not None
        assert (found.id, found.seq, found.position, found.value) == ("m-2", 2, 2, b"2")

    async def test_find_nothing(self, storage: Storage) -> None:
        """What isn't there isn't found: no state, no log, no id, no unique id."""
        assert await storage.find_item(A, "history", "m-1") is None
        await fill(storage, 1)
        assert await storage.find_item(A, "history", "m-1") is None
        assert await storage.find_item(A, "events", "m-1") is None

    @pytest.mark.parametrize("removal", [{"cuts": [CutTail("history", 2)]}, {"trims": [TrimHead("history", 3)]}])
    async def test_a_removed_id_is_free_again(self, storage: Storage, removal: dict[str, Any]) -> None:
        """The unique id of an item that was cut or trimmed isn't found and can be used again."""
        await fill(storage, 2, unique=True)
        await commit(storage, **removal)
        assert await storage.find_item(A, "history", "m-2") is None
        await commit(storage, appends=[Append("history", "m-2", b"new", unique=True)])
        found = await storage.find_item(A, "history", "m-2")
        assert found is not None
        assert (found.value, found.seq) == (b"new", 3)

    async def test_found_after_the_head_was_trimmed(self, storage: Storage) -> None:
        """An item found by id has the right position after trims and edits."""
        await fill(storage, 5, unique=True)
        await commit(storage, trims=[TrimHead("history", 3)], edits=[EditItem("history", 4, 4, b"edited")])
        found = await storage.find_item(A, "history", "m-4")
        assert found is not None
        assert (found.position, found.seq, found.value) == (4, 4, b"edited")

    async def test_a_cleared_id_is_free_again(self, storage: Storage) -> None:
        """Unique ids go with the state that held them."""
        await fill(storage, 1, unique=True)
        await commit(storage, clear=True, appends=[Append("history", "m-1", b"new", unique=True)])
        assert await log_of(storage) == [b"new"]


class LogEditTests(StorageCase):
    """Cutting the tail, trimming the head, editing in the middle."""

    async def test_cut(self, storage: Storage) -> None:
        """A cut removes every item from a position on; positions go on from there, numbers don't."""
        await fill(storage, 5)
        done = await commit(storage, cuts=[CutTail("history", 4)])
        assert (done.logs["history"].head, done.logs["history"].next_seq) == (3, 6)
        await fill(storage, 1, start=6)
        page = await storage.read_log(A, "history")
        assert [(item.position, item.seq) for item in page.items] == [(1, 1), (2, 2), (3, 3), (4, 6)]

    async def test_cut_all(self, storage: Storage) -> None:
        """Position 0 cuts everything; the empty log is still there and never counts again from 1."""
        await fill(storage, 3)
        await commit(storage, cuts=[CutTail("history", 0)])
        view = await view_of(storage)
        assert (view.first, view.next_seq, view.size) == (view.head + 1, 4, 0)
        await fill(storage, 1, start=9)
        page = await storage.read_log(A, "history")
        assert [(item.seq, item.value) for item in page.items] == [(4, b"9")]

    async def test_trim(self, storage: Storage) -> None:
        """A trim removes every item before a position; the others keep their places."""
        await fill(storage, 5)
        done = await commit(storage, trims=[TrimHead("history", 3)])
        assert (done.logs["history"].first, done.logs["history"].head) == (3, 5)
        page = await storage.read_log(A, "history", start=0, limit=2)
        assert [(item.position, item.value) for item in page.items] == [(3, b"3"), (4, b"4")]

    async def test_trim_all(self, storage: Storage) -> None:
        """A trim may remove everything; the next item goes on where the log ended."""
        await fill(storage, 3)
        await commit(storage, trims=[TrimHead("history", 99)])
        view = await view_of(storage)
        assert (view.first, view.head, view.next_seq) == (4, 3, 4)
        await fill(storage, 1, start=4)
        page = await storage.read_log(A, "history")
        assert [(item.position, item.seq) for item in page.items] == [(4, 4)]

    @pytest.mark.parametrize("change", [{"cuts": [CutTail("history", 9)]}, {"trims": [TrimHead("history", 1)]}])
    async def test_removing_nothing(self, storage: Storage, change: dict[str, Any]) -> None:
        """A cut behind the head and a trim before the first item remove nothing."""
        await fill(storage, 3)
        await commit(storage, **change)
        assert await log_of(storage) == [b"1", b"2", b"3"]

    async def test_removing_from_an_absent_log(self, storage: Storage) -> None:
        """Cutting and trimming what isn't there is no error and makes no log."""
        await commit(storage, cuts=[CutTail("history", 0)], trims=[TrimHead("history", 5)])
        assert (await read(storage)).logs == {}

    async def test_tail_after_cut_and_trim(self, storage: Storage) -> None:
        """The last n items are the last n there are, however often the log was cut and trimmed."""
        await fill(storage, 6)
        await commit(storage, cuts=[CutTail("history", 5)], trims=[TrimHead("history", 3)])
        await fill(storage, 2, start=7)
        found = await storage.read(A, Wants(tails=(("history", 3),)))
        assert [item.value for item in found.logs["history"].items] == [b"4", b"7", b"8"]
        found = await storage.read(A, Wants(tails=(("history", 99),)))
        assert [item.value for item in found.logs["history"].items] == [b"3", b"4", b"7", b"8"]

    async def test_edit(self, storage: Storage) -> None:
        """An edit replaces the value and nothing else of the item, and stamps the log."""
        await commit(storage, appends=[Append("history", "m-1", b"1"), Append("history", "m-2", b"2", ttl=500.0)])
        before = (await storage.read_log(A, "history")).items
        done = await commit(storage, edits=[EditItem("history", 2, 2, b"edited")])
        page = await storage.read_log(A, "history")
        assert page.items == (before[0], before[1]._replace(value=b"edited"))
        assert page.view is not None
        assert page.view.stamp == done.stamp

    @pytest.mark.parametrize(("position", "seq"), [(2, 1), (2, 3), (9, 9), (0, 0)])
    async def test_edit_of_another_item(self, storage: Storage, position: int, seq: int) -> None:
        """An edit whose item isn't the one that was read conflicts."""
        await fill(storage, 3)
        before = await picture(storage)
        with pytest.raises(ConflictError):
            await commit(storage, edits=[EditItem("history", position, seq, b"x")])
        assert await picture(storage) == before

    async def test_edit_after_the_place_was_reused(self, storage: Storage) -> None:
        """An item cut and replaced since has the same position and another number: conflict."""
        await fill(storage, 2)
        await commit(storage, cuts=[CutTail("history", 2)])
        await fill(storage, 1, start=3)
        with pytest.raises(ConflictError):
            await commit(storage, edits=[EditItem("history", 2, 2, b"x")])
        assert await log_of(storage) == [b"1", b"3"]

    async def test_two_logs_in_one_part(self, storage: Storage) -> None:
        """Operations on several logs don't mix."""
        appends = [Append(log, f"m-{n}", b"%d" % n) for log in ("history", "events") for n in (1, 2, 3)]
        await commit(storage, appends=appends)
        part = Part(scope=A, cuts=[CutTail("history", 2)], trims=[TrimHead("events", 3)])
        await storage.commit([part], commit_id=5)
        assert await log_of(storage) == [b"1"]
        assert await log_of(storage, log="events") == [b"3"]
