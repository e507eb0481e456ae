"""What the scripts take care of: exact counters, all or nothing, large commits, bounded records."""

import pytest

from agentstate.errors import UnsupportedError, UnsupportedValueError, ValueTooLargeError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, CutTail, Increment, OnceRecord, Part, Put, Wants
from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id

C = StateScope.conversation("c-1")
HIGHEST, LOWEST = 2**63 - 1, -(2**63)


@pytest.fixture
async def storage(valkey_server, valkey_prefix):
    """Return an open storage on a clock that stands still."""
    made = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=FakeClock())
    await made.open()
    yield made
    await made.close()


async def write(storage, **part):
    """Commit one part."""
    (done,) = await storage.commit([Part(scope=C, **part)], commit_id=new_id())
    return done


def add(**by):
    """Return increments."""
    return [Increment("variables", key, number) for key, number in by.items()]


class TestCounters:
    """Exact to 64 bits; an overflow takes everything back."""

    @pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, HIGHEST, LOWEST, 12345678901234567])
    async def test_exact(self, storage, number):
        """No number is rounded, written at once or added up."""
        assert (await write(storage, increments=add(n=number))).counters["variables", "n"] == number
        step = -1 if number > 0 else 1
        assert (await write(storage, increments=add(n=step))).counters["variables", "n"] == number + step
        entry = (await storage.read(C, EVERYTHING)).entries["variables", "n"]
        assert entry.value == number + step

    @pytest.mark.parametrize("by", [1, -7, HIGHEST, LOWEST])
    async def test_taken_back(self, storage, by):
        """When one of several counters overflows, those that were added to before are as they were."""
        start = -1 if by > 0 else 0
        await write(storage, increments=add(a=start, b=start, last=HIGHEST))
        before = await storage.read(C, EVERYTHING)
        with pytest.raises(ValueTooLargeError, match="variables/last"):
            await write(storage, increments=add(a=by, b=by, last=1), puts=[Put("variables", "new", b"1")])
        after = await storage.read(C, EVERYTHING)
        assert (after.stamp, after.entries) == (before.stamp, before.entries)

    async def test_several_of_one(self, storage):
        """Several increments of one counter in one commit add up, and together may not overflow."""
        made = await write(storage, increments=add(n=5) + add(n=HIGHEST - 5))
        assert made.counters == {("variables", "n"): HIGHEST}
        for too_much in (add(m=HIGHEST) + add(m=1), add(m=2**63), add(m=-(2**63) - 1)):
            with pytest.raises(ValueTooLargeError):
                await write(storage, increments=too_much)

    async def test_put_and_increased(self, storage):
        """An entry can't be put and increased in one commit."""
        with pytest.raises(UnsupportedValueError):
            await write(storage, increments=add(n=1), puts=[Put("variables", "n", b"1")])
        assert (await storage.read(C, EVERYTHING)).stamp is None

    async def test_a_value_that_looks_like_a_number(self, storage):
        """JSON that happens to be a number is no counter."""
        await write(storage, puts=[Put("variables", "n", b"12")])
        with pytest.raises(UnsupportedValueError, match="no counter"):
            await write(storage, increments=add(n=1))


class TestSize:
    """Commits and states of any size."""

    async def test_ten_thousand_of_everything(self, storage):
        """A commit of ten thousand entries, items and deletes goes through in one piece."""
        keys = [f"k{number:05}" for number in range(10_000)]
        await write(
            storage,
            puts=[Put("variables", key, b"1") for key in keys],
            appends=[Append("history", key, b"1", unique=True) for key in keys],
            record=b"r",
        )
        found = await storage.read(C, Wants(tails=(("history", 10_000),), inline_bytes=2**30))
        assert (len(found.entries), len(found.logs["history"].items)) == (10_000, 10_000)
        wanted = Wants(keys=tuple(("variables", key) for key in keys[:3000]), inline_bytes=0)
        assert len((await storage.read(C, wanted)).entries) == 3000
        await write(storage, deletes=[("variables", key) for key in keys], cuts=[CutTail("history", 2)], record=b"r")
        found = await storage.read(C, Wants(tails=(("history", 10),)))
        assert (found.entries, found.entry_bytes, found.logs["history"].head) == ({}, 0, 1)
        (_, record) = await storage.journal(C)
        assert len(record.removed["history"]) == 9999

    async def test_many_logs_and_sections(self, storage, valkey_server, valkey_prefix):
        """A state of hundreds of logs and sections is written, expired and dropped whole."""
        names = [f"n{number}: %/{{x}} é" for number in range(600)]
        appends = [Append(name, "m", b"1", unique=True) for name in names]
        await write(storage, puts=[Put(name, "k", b"1") for name in names], appends=appends, ttl=60.0)
        found = await storage.read(C, EVERYTHING)
        assert set(found.logs) == set(found.sections) == set(names)
        assert await storage.drop(C)
        left = valkey_server.ask("KEYS", f"{valkey_prefix}*conversation:c-1")
        assert {key.decode().rpartition("}")[2].split(":")[0] for key in left} == {"state", "known"}
        assert all(valkey_server.ask("TTL", key) > 3000 for key in left)

    async def test_the_journal_is_bounded(self, storage, valkey_server, valkey_prefix):
        """A thousand commits are kept, and a page of them is found by version."""
        for number in range(1, 1101):
            await write(storage, puts=[Put("variables", "k", b"1")], record=b"%d" % number if number % 10 else None)
        page = await storage.journal(C, after=1055, limit=3)
        assert [record.stamp.version for record in page] == [1056, 1057, 1058]
        assert page[0].record == b"1056"
        assert len(await storage.journal(C, limit=5000)) == 990
        assert await storage.journal(C, after=1100) == ()

    async def test_idempotency_keys_are_bounded(self, storage):
        """A thousand idempotency keys are kept, for a day."""
        for number in range(1005):
            storage._clock.advance(0.001)
            record = OnceRecord(f"key-{number}", "f", number + 1, b"r")
            await storage.commit([Part(scope=C, increments=add(n=1))], commit_id=number + 1, once=record)
        known = [(await storage.read(C, EVERYTHING, once=f"key-{number}")).once for number in (0, 4, 5, 1004)]
        assert [one is not None for one in known] == [False, False, True, True]
        storage._clock.advance(24 * 3600 + 1)
        assert (await storage.read(C, EVERYTHING, once="key-1004")).once is None
        await storage.commit([Part(scope=C, increments=add(n=1))], commit_id=9999, once=OnceRecord("new", "f", 1, b""))
        assert (await storage.read(C, EVERYTHING, once="new")).once.result == b""


class TestScopes:
    """One scope a commit."""

    async def test_several(self, storage):
        """Several scopes, and a turn of another scope, are refused before anything is sent."""
        parts = [Part(scope=StateScope.user(one), puts=[Put("a", "b", b"c")]) for one in "ab"]
        with pytest.raises(UnsupportedError):
            await storage.commit(parts, commit_id=1)
        held = await storage.read(C, EVERYTHING)
        assert held.stamp is None
        assert await storage.commit([], commit_id=2) == ()
        assert not storage.capabilities.atomic_scopes
