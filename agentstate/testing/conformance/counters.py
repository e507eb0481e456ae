"""Counters: signed 64-bit integers that the engine itself adds to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentstate.errors import UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import Check, Increment, Put
from agentstate.testing.conformance.case import A, StorageCase, add, commit, picture, put, read, value_of

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

HIGHEST = 2**63 - 1
LOWEST = -(2**63)


class CounterTests(StorageCase):
    """`Increment`, its bounds and what it refuses."""

    async def test_starts_at_zero(self, storage: Storage) -> None:
        """A counter that is absent starts at 0, and the commit returns what it made."""
        done = await add(storage, by=3)
        assert done.counters == {("variables", "n"): 3}
        assert await value_of(storage, "n") == 3

    async def test_adds_up(self, storage: Storage) -> None:
        """Increments add up, negative ones too; the type stays an integer."""
        results = [(await add(storage, by=by)).counters["variables", "n"] for by in (5, -7, 0, 1)]
        assert results == [5, -2, -2, -1]
        value = await value_of(storage, "n")
        assert value == -1
        assert isinstance(value, int)

    async def test_twice_in_one_part(self, storage: Storage) -> None:
        """Two increments of one counter in a part both count."""
        done = await commit(storage, increments=[Increment("variables", "n", 2), Increment("variables", "n", 3)])
        assert done.counters == {("variables", "n"): 5}

    @pytest.mark.parametrize("number", [HIGHEST, LOWEST, 2**53 + 1, -(2**53) - 1])
    async def test_all_64_bits(self, storage: Storage, number: int) -> None:
        """The whole range is exact, in the result, in a read and in a scan."""
        done = await add(storage, by=number)
        assert done.counters == {("variables", "n"): number}
        assert await value_of(storage, "n") == number
        assert (await storage.scan(A, "variables")).entries[0][1].value == number

    @pytest.mark.parametrize(("start", "by"), [(HIGHEST, 1), (LOWEST, -1), (1, HIGHEST), (-2, LOWEST + 1)])
    async def test_beyond_64_bits(self, storage: Storage, start: int, by: int) -> None:
        """Leaving the range is an error, and nothing is written."""
        await add(storage, by=start)
        before = await picture(storage)
        with pytest.raises(ValueTooLargeError):
            await commit(storage, increments=[Increment("variables", "n", by)], puts=[Put("variables", "k", b"1")])
        assert await picture(storage) == before

    async def test_near_the_edge(self, storage: Storage) -> None:
        """The last number inside the range can be reached and left again."""
        await add(storage, by=HIGHEST - 1)
        assert (await add(storage, by=1)).counters["variables", "n"] == HIGHEST
        assert (await add(storage, by=-HIGHEST)).counters["variables", "n"] == 0

    @pytest.mark.parametrize("value", [b"", b"1", b"text"])
    async def test_not_a_counter(self, storage: Storage, value: bytes) -> None:
        """An entry of bytes is no counter, also when they look like a number."""
        await put(storage, n=value)
        before = await picture(storage)
        with pytest.raises(UnsupportedValueError):
            await commit(storage, increments=[Increment("variables", "n", 1)], puts=[Put("variables", "k", b"1")])
        assert await picture(storage) == before

    async def test_put_ends_a_counter(self, storage: Storage) -> None:
        """A put over a counter makes an entry of bytes of it."""
        await add(storage, by=5)
        await put(storage, n=b"5")
        assert await value_of(storage, "n") == b"5"
        with pytest.raises(UnsupportedValueError):
            await add(storage)

    async def test_deleted(self, storage: Storage) -> None:
        """A deleted counter is absent and starts at 0 again."""
        await add(storage, by=5)
        await commit(storage, deletes=[("variables", "n")])
        assert await value_of(storage, "n") is None
        assert (await add(storage, by=2)).counters["variables", "n"] == 2

    async def test_stamped(self, storage: Storage) -> None:
        """An increment stamps entry and section like a put, so that a check sees it."""
        await put(storage, k=b"1")
        done = await add(storage)
        found = await read(storage)
        assert found.entries["variables", "n"].stamp == done.stamp == found.sections["variables"]
        await commit(storage, checks=[Check("entry", "variables", done.stamp, "n")])

    async def test_many_counters(self, storage: Storage) -> None:
        """Counters of several sections change in one commit."""
        increments = [Increment(section, key, 1) for section in ("variables", "metadata") for key in "abc"]
        await commit(storage, increments=increments)
        done = await commit(storage, increments=increments)
        assert set(done.counters.values()) == {2}
        assert len(done.counters) == 6
