"""Transactions: all or nothing, serialisable, savepoints, and only what is touched is written."""

# ruff: noqa: PT012 - what raises is the end of a transaction's block, and the block is the test
from __future__ import annotations

import asyncio
import random

import pytest

from agentstate import StateManager, StateScope
from agentstate.errors import (
    ConflictError,
    ContextNotFoundError,
    StorageError,
    TurnClosedError,
    UnsavedChangeError,
    UnsupportedError,
    UnsupportedValueError,
)
from agentstate.storage.protocol import ScopeQuery
from agentstate.testing.faults import FaultyStorage

A, B, C = StateScope.agent("a"), StateScope.team("b"), StateScope.GLOBAL


async def test_all_or_nothing(joint):
    """Everything is stored at the end, as one commit each scope, and nothing before."""
    async with joint.transaction(reason="pay") as tx:
        await tx.set(A, "k", 1)
        await tx.set(B, "k", 2)
        assert [await tx.get(A, "k"), await joint.get(A, "k")] == [1, None]
    assert [await joint.get(scope, "k") for scope in (A, B)] == [1, 2]
    assert [(await joint.info(scope)).version for scope in (A, B)] == [1, 1]


async def test_an_exception_rolls_back(manager):
    """The block's own exception goes on, and nothing of it is stored."""
    with pytest.raises(ZeroDivisionError):
        async with manager.transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.append(A, "l", 1)
            raise ZeroDivisionError
    assert not await manager.exists(A)


async def test_reads_its_own_writes(joint):
    """Every call sees what the transaction did before."""
    await joint.set_many(A, {"old": 1, "gone": 1, "n": 5})
    async with joint.transaction() as tx:
        await tx.set(A, "new", 1)
        await tx.delete(A, "gone")
        assert await tx.increment(A, "n", 2) == 7
        assert await tx.append(A, "l", 1, 2) == 2
        assert await tx.list(A) == {"l": [1, 2], "n": 7, "new": 1, "old": 1}
        assert await tx.get_many(A, ["gone", "new"]) == {"new": 1}
        assert not await tx.exists(A, "gone")
        await tx.clear(A)
        assert await tx.list(A) == {}
        await tx.set(A, "last", 1)
        message = await tx.conversation("c").add_message("user", "hi")
        assert [one.id for one in await tx.conversation("c").history()] == [message.id]
    assert await joint.list(A) == {"last": 1}


@pytest.mark.parametrize(
    "read",
    [
        lambda tx: tx.get(A, "k"),
        lambda tx: tx.list(A),
        lambda tx: tx.exists(A, "k"),
        lambda tx: tx.exists(A),
        lambda tx: tx.info(A),
        lambda tx: tx.get_versioned(A, "k"),
        lambda tx: tx.get_many(A, ["k", "q"]),
        lambda tx: tx.get(StateScope.step("w", "s"), "k", inherit=True),
    ],
)
@pytest.mark.parametrize("before", [True, False])
async def test_what_was_only_read_is_checked(joint, read, before):
    """A change of what a transaction read, also of a state it doesn't change, refuses its commit."""
    if before:
        await joint.set_many(A, {"k": 1})
        await joint.set_many(StateScope.workflow("w"), {"k": 1})
    with pytest.raises(ConflictError):
        async with joint.transaction() as tx:
            await read(tx)
            await tx.set(B, "k", 1)
            await joint.set(A, "k", 2)
            await joint.set(StateScope.workflow("w"), "k", 2)
    assert not await joint.exists(B)


async def test_what_was_read_is_left_alone(joint):
    """A state that was only read gets no version, and one that is absent isn't made."""
    await joint.set(A, "k", 1)
    async with joint.transaction() as tx:
        await tx.get(A, "k")
        await tx.get(C, "k")
        await tx.set(B, "k", 1)
    assert (await joint.info(A)).version == 1
    assert not await joint.exists(C)


async def test_blind_changes_dont_conflict(joint):
    """Values set without being read, and increments, meet no condition."""
    async with joint.transaction() as tx:
        await tx.set(A, "k", 1)
        await tx.increment(B, "n")
        await joint.set(A, "k", 2)
        await joint.set(A, "other", 2)
        await joint.increment(B, "m")
    assert [await joint.get(A, "k"), await joint.get(B, "n")] == [1, 1]


async def test_a_reader_sees_one_moment(joint):
    """A transaction that only reads several states fails when they were never so together."""
    await joint.set(A, "k", 1)
    await joint.set(B, "k", 1)
    with pytest.raises(ConflictError):
        async with joint.transaction() as tx:
            await tx.get(A, "k")
            async with joint.transaction() as other:
                await other.set(A, "k", 2)
                await other.set(B, "k", 2)
            await tx.get(B, "k")
    assert [(await joint.info(scope)).version for scope in (A, B)] == [2, 2]


async def test_savepoints(joint):
    """What a savepoint did is kept with it, or undone with its exception; they nest."""
    async with joint.transaction() as tx:
        await tx.set(A, "k", 1)
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint() as one:
                await one.set(A, "k", 2)
                await one.set(B, "k", 2)
                async with one.savepoint() as two:
                    await two.append(A, "l", 1)
                    assert await two.get(A, "k") == 2
                assert await one.get(A, "l") == [1]
                raise ZeroDivisionError
        assert [await tx.get(A, "k"), await tx.get(A, "l"), await tx.get(B, "k")] == [1, None, None]
        async with tx.savepoint() as one:
            await one.increment(A, "n", 3)
            with pytest.raises(ZeroDivisionError):
                async with one.savepoint() as two:
                    await two.increment(A, "n", 5)
                    await two.delete(A, "k")
                    raise ZeroDivisionError
            await one.conversation("c").add_message("user", "kept")
        with pytest.raises(TurnClosedError):
            await one.get(A, "k")
    assert await joint.list(A) == {"k": 1, "n": 3}
    assert not await joint.exists(B)
    assert [one.content for one in await joint.conversation("c").history()] == ["kept"]


async def test_messages_before_and_after_reading(joint):
    """What is stored, added before the first read, in savepoints and after it, is one history, in order."""
    await joint.conversation("c").add_message("user", "stored")

    async def contents(face):
        return [one.content for one in await face.conversation("c").history()]

    async with joint.transaction() as tx:
        await tx.conversation("c").add_message("user", "blind")
        async with tx.savepoint() as one:
            await one.conversation("c").add_message("user", "inner")
            async with one.savepoint() as two:
                await two.conversation("c").add_message("user", "innermost")
                assert await contents(two) == ["stored", "blind", "inner", "innermost"]
            assert [m.content for m in await one.conversation("c").history(2)] == ["inner", "innermost"]
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint() as one:
                await one.conversation("c").add_message("user", "undone")
                assert (await contents(one))[-1] == "undone"
                raise ZeroDivisionError
        await tx.conversation("c").add_message("user", "last")
        wanted = ["stored", "blind", "inner", "innermost", "last"]
        assert await contents(tx) == wanted
    assert await contents(joint) == wanted
    with pytest.raises(ConflictError):
        async with joint.transaction() as tx:
            await contents(tx)
            await joint.conversation("c").add_message("user", "somebody else's")
            await tx.set(A, "k", 1)


async def test_what_an_undone_savepoint_read_counts(joint):
    """Who caught its error decides by what it read, so the commit relies on that, too."""
    await joint.set(A, "k", 1)
    with pytest.raises(ConflictError):
        async with joint.transaction() as tx:
            with pytest.raises(ZeroDivisionError):
                async with tx.savepoint() as inner:
                    await inner.get(A, "k")
                    await inner.set(A, "k", 5)
                    raise ZeroDivisionError
            await tx.set(B, "k", 1)
            await joint.set(A, "k", 2)
    assert not await joint.exists(B)


async def test_one_key_of_a_large_state(storage):
    """Touching one key of a state of 10 MB reads, copies and writes that key, not the state."""
    manager = StateManager(storage)
    await manager.set_many(A, {f"k{n}": random.Random(n).randbytes(500_000) for n in range(20)})
    seen = []
    commit, read = storage.commit, storage.read

    async def counting_commit(parts, **more):
        seen.append(sum(len(put.value) for part in parts for put in part.puts))
        return await commit(parts, **more)

    async def counting_read(*args, **more):
        snapshot = await read(*args, **more)
        seen.append(sum(len(entry.value) for entry in snapshot.entries.values()))
        return snapshot

    storage.commit, storage.read = counting_commit, counting_read
    async with manager.transaction() as tx:
        await tx.set(A, "k3", "small")
        assert await tx.update(A, "n", lambda old: old + 1, 0) == 1
    assert sum(seen) < 100
    assert len(seen) == 2  # one read of one key, one commit


async def test_after_the_end(joint):
    """A transaction that has ended, or hasn't begun, is refused."""
    tx = joint.transaction()
    with pytest.raises(TurnClosedError):
        await tx.get(A, "k")
    async with tx:
        bound = tx.at(A)
        await bound.set("k", 1)
    for call in (tx.get(A, "k"), bound.set("k", 2), tx.__aenter__()):
        with pytest.raises(TurnClosedError):
            await call


async def test_a_value_changed_and_not_set(joint):
    """A value that was read, changed and not set is an error, not a loss."""
    await joint.set(A, "k", {"n": 1})
    with pytest.raises(UnsavedChangeError, match="'k'"):
        async with joint.transaction() as tx:
            (await tx.get(A, "k"))["n"] = 2
    assert await joint.get(A, "k") == {"n": 1}


async def test_what_cant_be_stored_fails_at_once(joint):
    """A value that wouldn't come back the same raises where it is set."""
    async with joint.transaction() as tx:
        with pytest.raises(UnsupportedValueError):
            await tx.set(A, "k", object())
        await tx.set(A, "ok", 1)
    assert await joint.list(A) == {"ok": 1}


@pytest.mark.parametrize("backend", ["file", "valkey"])
async def test_an_engine_that_cant(storage_options, backend):
    """Where several states can't be one commit, the second one is refused at its touch, before anything is stored."""
    from agentstate.storage import registry

    storage = registry.create(backend, storage_options(backend))
    manager = StateManager(storage)
    for touch in (lambda tx: tx.set(B, "k", 1), lambda tx: tx.get(B, "k")):
        with pytest.raises(UnsupportedError, match="agent:a"):
            async with manager.transaction() as tx:
                await tx.set(A, "k", 1)
                await touch(tx)
    assert (await storage.scopes(ScopeQuery())).items == ()
    async with manager.transaction() as tx:
        await tx.set(A, "k", 1)
        await tx.update(A, "k", lambda old: old + 1)
    assert await manager.get(A, "k") == 2
    await storage.close()


async def test_two_stores_are_refused(tmp_path):
    """States in two storages can't be one commit, whatever each of them can."""
    manager = StateManager(storages={"global": f"sqlite:///{tmp_path}/a.db", "*": f"sqlite:///{tmp_path}/b.db"})
    with pytest.raises(UnsupportedError):
        async with manager.transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.set(C, "k", 1)
    assert not await manager.exists(A)
    await manager.aclose()


async def test_owners_in_a_transaction(joint):
    """A transaction sees and takes what its principal may, and no more."""
    ada, bob = (StateManager(joint.routes.of("agent").store, principal=name) for name in ("ada", "bob"))
    async with ada.transaction() as tx:
        await tx.conversation("c").set("k", 1)
        await tx.set(C, "k", 1)
    assert (await ada.conversation("c").info()).owner == "ada"
    assert (await ada.global_state.info()).owner is None
    for touch in (lambda tx: tx.conversation("c").get("k"), lambda tx: tx.conversation("c").set("k", 2)):
        with pytest.raises(ContextNotFoundError):
            async with bob.transaction() as tx:
                await tx.set(C, "k", 2)
                await touch(tx)
    assert await ada.conversation("c").get("k") == await bob.get(C, "k") == 1


async def test_several_tasks_in_one_transaction(joint):
    """A transaction may be used by tasks of its own at once."""
    await joint.set_many(A, {f"k{n}": n for n in range(20)})
    async with joint.transaction() as tx:
        found = await asyncio.gather(*[tx.get(A, f"k{n}") for n in range(20)])
        await asyncio.gather(*[tx.set(B, f"k{n}", n) for n in range(20)])
    assert found == list(range(20))
    assert len(await joint.list(B)) == 20


async def test_cancelled_before_its_commit(joint):
    """A cancelled block stores nothing."""
    entered = asyncio.Event()

    async def block():
        async with joint.transaction() as tx:
            await tx.set(A, "k", 1)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await joint.exists(A)


@pytest.mark.parametrize("passes", range(6))
async def test_cancelled_at_its_commit(joint, passes):
    """Cancelled around its commit, a transaction is stored whole or not at all, and the cancellation goes on."""

    async def block():
        async with joint.transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.set(B, "k", 1)

    task = asyncio.create_task(block())
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    done = await asyncio.gather(task, return_exceptions=True)
    stored = [await joint.exists(A), await joint.exists(B)]
    assert stored in ([True, True], [False, False])
    assert stored[0] or isinstance(done[0], asyncio.CancelledError)


ACCOUNTS = [StateScope.agent(f"account-{n}") for n in range(20)]
TRANSFERS = 1000


async def test_transfers_while_a_reader_sums(joint):  # noqa: C901 - three tasks in one test
    """1,000 random transfers between 20 states, while a reader sums them: the sum is never wrong, nothing is lost."""
    for account in ACCOUNTS:
        await joint.set(account, "balance", 100)
    rng = random.Random(7)
    plan = [(*rng.sample(ACCOUNTS, 2), rng.randint(1, 50)) for _ in range(TRANSFERS)]
    expected = dict.fromkeys(ACCOUNTS, 100)
    for source, target, amount in plan:
        expected[source] -= amount
        expected[target] += amount
    running, sums, refused = True, [], 0
    at_once = joint.routes.of("agent").store.storage.capabilities.shared

    async def transfer(source, target, amount):
        while True:
            try:
                async with joint.transaction() as tx:
                    left, right = await tx.get(source, "balance"), await tx.get(target, "balance")
                    await asyncio.sleep(0)
                    await tx.set(source, "balance", left - amount)
                    await tx.set(target, "balance", right + amount)
            except ConflictError:
                continue
            return

    async def worker(mine):
        for one in mine:
            await transfer(*one)

    async def reader():
        nonlocal refused
        while running:
            try:
                async with joint.transaction() as tx:
                    if at_once:
                        found = await asyncio.gather(*[tx.get(account, "balance") for account in ACCOUNTS])
                    else:
                        found = [await tx.get(account, "balance") for account in ACCOUNTS]
            except ConflictError:
                refused += 1
            else:
                sums.append(sum(found))
            await asyncio.sleep(0.001)

    reading = asyncio.create_task(reader())
    await asyncio.gather(*[worker(plan[n::4]) for n in range(4)])
    running = False
    await reading
    async with joint.transaction() as tx:
        sums.append(sum([await tx.get(account, "balance") for account in ACCOUNTS]))
    assert {account: await joint.get(account, "balance") for account in ACCOUNTS} == expected
    assert set(sums) == {2000}
    print(f"{len(sums)} sums, {refused} refused")


TASKS = 64


async def test_many_tasks_on_one_counter_and_one_list(manager):
    """64 tasks count, append, add and update at once: nothing is lost, nothing comes twice."""
    rounds = 3

    async def work(number):
        for n in range(rounds):
            await manager.increment(A, "counter")
            await manager.append(A, "list", [number, n])
            await manager.update(A, "sum", lambda old: old + 1, 0)
            await manager.increment(A, "tree", path="/n")

    await asyncio.gather(*[work(number) for number in range(TASKS)])
    assert await manager.get(A, "counter") == await manager.get(A, "sum") == TASKS * rounds
    assert await manager.get(A, "tree") == {"n": TASKS * rounds}
    assert sorted(await manager.get(A, "list")) == [[number, n] for number in range(TASKS) for n in range(rounds)]


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_lost_connection_stores_all_or_nothing(joint, fault):
    """A storage that fails at the commit, or whose answer is lost, is a typed error, and nothing is half there."""
    faulty = FaultyStorage(joint.routes.of("agent").store.storage)
    faulty.fail_at(commit=1, fault=fault)
    with pytest.raises(StorageError):
        async with StateManager(faulty).transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.set(B, "k", 1)
    assert [await joint.exists(A), await joint.exists(B)] == [fault == "after"] * 2
