"""Idempotency keys, and finding out whether a commit happened."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agentstate.errors import ConflictError
from agentstate.storage.protocol import KNOWN_COMMITS, ONCE_COUNT, ONCE_SECONDS, OnceRecord, Part, Put, Stamp
from agentstate.testing.conformance.case import A, B, StorageCase, commit, need, picture, put, value_of
from agentstate.testing.turns import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock


async def known(storage: Storage, key: str, scope: StateScope = A) -> OnceRecord | None:
    """Return what the storage knows of an idempotency key."""
    return (await storage.read(scope, EVERYTHING, once=key)).once


async def commit_once(storage: Storage, key: str, result: bytes | None = b"done", *, commit_id: int = 5) -> None:
    """Commit under an idempotency key."""
    record = OnceRecord(key, "fingerprint", commit_id, result)
    await commit(storage, commit_id=commit_id, puts=[Put("variables", "k", b"1")], once=record)


class OnceTests(StorageCase):
    """`OnceRecord`: one effect per key, and its result for those who ask again."""

    async def test_unknown(self, storage: Storage) -> None:
        """A key that did nothing is unknown, in an absent state and in one that exists."""
        assert await known(storage, "key") is None
        await put(storage, k=b"1")
        assert await known(storage, "key") is None

    @pytest.mark.parametrize(
        "result", [b"", b"\0\xff{}", b"x" * 65536, None], ids=["empty", "binary", "64KiB", "unstorable"]
    )
    async def test_result_comes_back(self, storage: Storage, clock: FakeClock, result: bytes | None) -> None:
        """What a key did is known afterwards: fingerprint, commit id, result and time."""
        await commit_once(storage, "key", result)
        record = await known(storage, "key")
        assert record is not None
        assert (record.key, record.fingerprint, record.commit_id, record.result) == ("key", "fingerprint", 5, result)
        assert record.at == pytest.approx(clock(), abs=0.01)

    async def test_a_second_commit_conflicts(self, storage: Storage) -> None:
        """A commit under a known key conflicts and writes nothing, whatever its fingerprint."""
        await commit_once(storage, "key")
        before = await picture(storage)
        for fingerprint in ("fingerprint", "another"):
            with pytest.raises(ConflictError):
                await commit(
                    storage, puts=[Put("variables", "k", b"2")], once=OnceRecord("key", fingerprint, 6, b"again")
                )
        assert await picture(storage) == before
        record = await known(storage, "key")
        assert record is not None
        assert record.result == b"done"

    async def test_at_the_same_time(self, storage: Storage) -> None:
        """Of many commits under one key at the same time, exactly one takes effect."""
        calls = [commit_once(storage, "key", b"%d" % n, commit_id=n) for n in range(1, 17)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["ConflictError"] * 15 + ["NoneType"]
        record = await known(storage, "key")
        assert record is not None
        assert record.result == b"%d" % record.commit_id
        assert results[record.commit_id - 1] is None

    async def test_keys_are_apart(self, storage: Storage) -> None:
        """Each key has its own record, in its own scope."""
        await commit_once(storage, "one", b"1", commit_id=1)
        await commit_once(storage, "two", b"2", commit_id=2)
        assert [(await known(storage, key)) is not None for key in ("one", "two", "three")] == [True, True, False]
        assert await known(storage, "one", B) is None

    async def test_belongs_to_the_first_part(self, storage: Storage) -> None:
        """In a commit of several scopes the key is known in the first one."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        parts = [Part(scope=one, puts=[Put("variables", "k", b"1")]) for one in (B, A)]
        await storage.commit(parts, commit_id=5, once=OnceRecord("key", "f", 5, b"r"))
        assert await known(storage, "key", B) is not None
        assert await known(storage, "key", A) is None

    async def test_forgotten_after_a_day(self, storage: Storage, clock: FakeClock) -> None:
        """A key is known for a day and may be used again after it."""
        await commit_once(storage, "key")
        clock.advance(ONCE_SECONDS - 60)
        assert await known(storage, "key") is not None
        clock.advance(120)
        assert await known(storage, "key") is None
        await commit_once(storage, "key", b"anew", commit_id=6)
        record = await known(storage, "key")
        assert record is not None
        assert record.result == b"anew"

    async def test_the_last_thousand(self, storage: Storage) -> None:
        """The last thousand keys of a scope are known."""
        await commit_once(storage, "first")
        total = ONCE_COUNT - 1
        for start in range(0, total, 100):
            numbers = range(start, min(start + 100, total))
            await asyncio.gather(*(commit_once(storage, f"key-{n}", b"", commit_id=n + 10) for n in numbers))
        for key in ("first", "key-0", f"key-{total - 1}"):
            assert await known(storage, key) is not None

    @pytest.mark.parametrize("end", ["drop", "clear", "expiry"])
    async def test_never_outlives_the_state(self, storage: Storage, clock: FakeClock, end: str) -> None:
        """When the state has gone, so have its keys."""
        await commit_once(storage, "key")
        await commit(storage, ttl=10.0)
        if end == "drop":
            assert await storage.drop(A)
        elif end == "clear":
            await commit(storage, clear=True)
        clock.advance(11)
        assert await known(storage, "key") is None
        await commit_once(storage, "key", b"anew", commit_id=6)
        record = await known(storage, "key")
        assert record is not None
        assert record.result == b"anew"


class OutcomeTests(StorageCase):
    """`Storage.outcome`: did it happen?"""

    async def test_it_happened(self, storage: Storage) -> None:
        """The stamp that a commit made is found by its commit id."""
        await commit(storage, commit_id=2**62 + 1, puts=[Put("variables", "k", b"1")])
        await put(storage, k=b"2")
        assert await storage.outcome(A, 2**62 + 1) == Stamp(1, 2**62 + 1)

    async def test_it_did_not(self, storage: Storage) -> None:
        """A commit that never was, or was refused, has no outcome; nor has another scope's."""
        assert await storage.outcome(A, 5) is None
        await commit(storage, commit_id=4, puts=[Put("variables", "k", b"1")])
        with pytest.raises(ConflictError):
            await commit(storage, commit_id=5, base=None)
        assert await storage.outcome(A, 5) is None
        assert await storage.outcome(B, 4) is None

    async def test_the_last_32(self, storage: Storage) -> None:
        """The last 32 commits of a scope are known, with or without a journal."""
        for n in range(1, KNOWN_COMMITS + 1):
            await commit(storage, commit_id=n, puts=[Put("variables", "k", b"%d" % n)])
        assert [await storage.outcome(A, n) for n in range(1, KNOWN_COMMITS + 1)] == [
            Stamp(n, n) for n in range(1, KNOWN_COMMITS + 1)
        ]

    async def test_older_ones_from_the_journal(self, storage: Storage) -> None:
        """Commits that left a journal record are known for longer."""
        for n in range(1, KNOWN_COMMITS + 10):
            await commit(storage, commit_id=n, puts=[Put("variables", "k", b"%d" % n)], record=b"r")
        assert await storage.outcome(A, 1) == Stamp(1, 1)

    async def test_of_every_part(self, storage: Storage) -> None:
        """A commit of several scopes is known in each of them."""
        need(storage.capabilities.atomic_scopes, "atomic_scopes")
        await put(storage, B, k=b"0")
        parts = [Part(scope=one, puts=[Put("variables", "k", b"1")]) for one in (A, B)]
        await storage.commit(parts, commit_id=77)
        assert await storage.outcome(A, 77) == Stamp(1, 77)
        assert await storage.outcome(B, 77) == Stamp(2, 77)

    async def test_known_to_another_instance(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """Outcomes and idempotency keys are stored, not remembered by the instance."""
        need(storage.capabilities.durability != "none", "durability")
        await commit_once(storage, "key", b"r", commit_id=5)
        await storage.close()
        again = await another(clock)
        assert await again.outcome(A, 5) == Stamp(1, 5)
        assert await known(again, "key") is not None
        assert await value_of(again, "k") == b"1"
