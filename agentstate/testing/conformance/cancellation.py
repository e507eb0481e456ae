"""Cancelling any call at any await: it has happened or it hasn't, and the storage goes on."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from agentstate.storage.protocol import Append, Increment, LeaseRequest, OnceRecord, Part, Put, ScopeQuery
from agentstate.testing.conformance.case import A, B, StorageCase, add, commit, eventually, need, put, read, value_of
from agentstate.testing.drive import cancelled_at
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agentstate.storage.protocol import Storage

_LITTLE = Put("variables", "k", b"1")
each_way = pytest.mark.parametrize("again", [False, True], ids=["once", "repeatedly"])
LOOKS: dict[str, Callable[[Storage], Coroutine[Any, Any, Any]]] = {
    "read": lambda storage: storage.read(A, EVERYTHING, touch=60.0),
    "read_log": lambda storage: storage.read_log(A, "history"),
    "find_item": lambda storage: storage.find_item(A, "history", "m"),
    "scan": lambda storage: storage.scan(A, "variables"),
    "scopes": lambda storage: storage.scopes(ScopeQuery()),
    "journal": lambda storage: storage.journal(A),
    "feed": lambda storage: storage.feed(0),
    "failures": lambda storage: storage.failures(A),
    "outcome": lambda storage: storage.outcome(A, 5),
    "sweep": lambda storage: storage.sweep(),
    "ping": lambda storage: storage.ping(),
    "open": lambda storage: storage.open(),
}


class CancellationTests(StorageCase):
    """Every public coroutine, cancelled at its k-th await for all k, once or again and again."""

    @each_way
    async def test_commit(self, live: Storage, again: bool) -> None:
        """A cancelled commit is whole or not there, and its outcome tells which."""
        tried: list[int] = []
        for at in itertools.count(1):
            tried.append(new_id())
            append = Append("history", f"m-{at}", b"x")
            call = commit(live, commit_id=tried[-1], increments=[Increment("variables", "n", 1)], appends=[append])
            if not await cancelled_at(call, at, again=again):
                break

        async def agree() -> bool:
            found = await read(live)
            total, head = found.entries["variables", "n"].value, found.logs["history"].head
            assert total == head, "half of a commit is visible"
            return total == sum([await live.outcome(A, one) is not None for one in tried])

        await eventually(agree, "the commits that happened are those with an outcome")

    @each_way
    async def test_commit_of_several_scopes(self, live: Storage, again: bool) -> None:
        """A cancelled commit of several scopes is in all of them or in none."""
        need(live.capabilities.atomic_scopes, "atomic_scopes")
        for at in itertools.count(1):
            increments = [Increment("variables", "n", at)]
            call = live.commit([Part(scope=one, increments=increments) for one in (A, B)], commit_id=new_id())
            if not await cancelled_at(call, at, again=again):
                break

        async def agree() -> bool:
            return await value_of(live, "n", A) == await value_of(live, "n", B)

        await eventually(agree, "both scopes have seen the same commits")

    @each_way
    async def test_commit_that_releases(self, live: Storage, again: bool) -> None:
        """After a cancelled commit the turn can be left, and then another takes it."""
        for at in itertools.count(1):
            entered = await take_turn(live, A, "turn", patience=20)
            assert entered.lease is not None
            call = commit(live, increments=[Increment("variables", "n", 1)], lease=entered.lease, release=True)
            cancelled = await cancelled_at(call, at, again=again)
            await live.leave(A, entered.lease.nonce)
            if not cancelled:
                break
        assert (await take_turn(live, A, "next", patience=20)).lease is not None

    @each_way
    async def test_commit_once(self, live: Storage, again: bool) -> None:
        """A cancelled commit under an idempotency key did it and says so, or didn't."""
        for at in itertools.count(1):
            key = f"key-{at}"
            record = OnceRecord(key, "fingerprint", at, b"r")
            call = commit(live, commit_id=at, increments=[Increment("variables", key, 1)], once=record)
            cancelled = await cancelled_at(call, at, again=again)
            found = await live.read(A, EVERYTHING, once=key)
            assert (found.once is not None) == (("variables", key) in found.entries)
            if not cancelled:
                break

    @each_way
    async def test_taking_a_turn(self, live: Storage, again: bool) -> None:
        """A read that takes the turn and is cancelled leaves nothing that leaving doesn't undo."""
        for at in itertools.count(1):
            nonce = new_id()
            request = LeaseRequest(nonce, 60.0, "cancelled")
            cancelled = await cancelled_at(live.read(A, EVERYTHING, lease=request), at, again=again)
            await live.leave(A, nonce)
            entered = await take_turn(live, A, "next", patience=20)
            assert entered.lease is not None
            await live.leave(A, entered.lease.nonce)
            if not cancelled:
                break

    @each_way
    async def test_waiting_for_a_turn(self, live: Storage, again: bool) -> None:
        """A waiter that is cancelled and leaves the line is passed over."""
        for at in itertools.count(1):
            holder, waiter = await take_turn(live, A, "holder", patience=20), new_id()
            assert holder.lease is not None
            await live.read(A, EVERYTHING, lease=LeaseRequest(waiter, 60.0, "waiter"))
            cancelled = await cancelled_at(live.wait_turn(A, waiter, 0.05), at, again=again)
            await live.leave(A, waiter)
            await live.leave(A, holder.lease.nonce)
            if not cancelled:
                break
        assert (await take_turn(live, A, "next", patience=20)).lease is not None

    @each_way
    async def test_leaving(self, live: Storage, again: bool) -> None:
        """A cancelled leave can be repeated."""
        for at in itertools.count(1):
            entered = await take_turn(live, A, "turn", patience=20)
            assert entered.lease is not None
            cancelled = await cancelled_at(live.leave(A, entered.lease.nonce, failure=b"f"), at, again=again)
            await live.leave(A, entered.lease.nonce)
            if not cancelled:
                break
        assert (await take_turn(live, A, "next", patience=20)).lease is not None

    @each_way
    async def test_dropping(self, live: Storage, again: bool) -> None:
        """A cancelled drop has removed all of a state or nothing."""
        for at in itertools.count(1):
            await commit(live, puts=[_LITTLE], appends=[Append("history", "m", b"x")])
            cancelled = await cancelled_at(live.drop(A), at, again=again)
            found = await read(live)
            assert (found.stamp is None) == (not found.entries) == (not found.logs)
            if not cancelled:
                break

    @each_way
    @pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
    async def test_looking(
        self, live: Storage, again: bool, look: Callable[[Storage], Coroutine[Any, Any, Any]]
    ) -> None:
        """A cancelled look leaves the storage as able as before."""
        await commit(live, puts=[_LITTLE], appends=[Append("history", "m", b"x", unique=True)], ttl=600.0, record=b"r")
        for at in itertools.count(1):
            if not await cancelled_at(look(live), at, again=again):
                break
            await add(live)
        assert await value_of(live, "k") == b"1"

    async def test_many_at_once(self, live: Storage) -> None:
        """Of thirty-two concurrent commits half are cancelled; the others are done, none is half done."""

        async def one(number: int) -> None:
            append = Append("history", f"m-{number}", b"x")
            await commit(live, increments=[Increment("variables", "n", 1)], appends=[append])

        await put(live, k=b"1")
        tasks = [asyncio.create_task(one(number)) for number in range(32)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results[1::2] if result is not None] == []

        async def settled() -> bool:
            found = await read(live)
            assert found.entries["variables", "n"].value == found.logs["history"].head
            await asyncio.sleep(0.05)
            return (await read(live)).stamp == found.stamp

        await eventually(settled, "no commit is still under way")
        ids = {item.id for item in (await live.read_log(A, "history")).items}
        assert ids >= {f"m-{number}" for number in range(1, 32, 2)}
