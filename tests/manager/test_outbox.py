"""Blind changes of states outside a transaction's commit: sent with it, applied once, whoever delivers them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from agentstate import StateManager, StateScope
from agentstate.errors import ConflictError
from agentstate.manager import outbox
from agentstate.storage import registry
from agentstate.storage.memory import MemoryStorage
from agentstate.testing.faults import FaultyStorage

A, B, C = StateScope.agent("a"), StateScope.team("b"), StateScope.user("c")


@pytest.fixture(params=("file", "valkey", "two memories"))
async def apart(request, storage_options):
    """Two faulty storages, for agents and for all the rest, or one that commits no two states as one."""
    if request.param == "two memories":
        pair = FaultyStorage(MemoryStorage()), FaultyStorage(MemoryStorage())
    else:
        pair = (FaultyStorage(registry.create(request.param, storage_options(request.param))),) * 2
    yield pair
    await pair[0].close()


def over(apart, **more):
    """Return a manager over the two."""
    return StateManager(storages={"agent": apart[0], "*": apart[1]}, **more)


async def send(manager):
    """Change one state, and two others by letters."""
    async with manager.transaction() as tx:
        await tx.set(A, "k", 1)
        to = tx.outbox(B)
        await to.set("k", {"n": 1})
        await to.increment("n", 2)
        await to.add_message("user", "hi")
        await tx.outbox(C).increment("n")
        await tx.outbox(B).increment("n", 3)


async def arrived(manager):
    """Return what came of it, and whether anything is left of the letters."""
    left = (await manager.info(A)).labels if await manager.exists(A) else {}
    history = [one.content for one in await manager.team("b").history()]
    return await manager.get(A, "k"), await manager.list(B), history, await manager.get(C, "n"), dict(left)


ALL = (1, {"k": {"n": 1}, "n": 5}, ["hi"], 1, {})


async def test_letters_arrive(apart):
    """What is sent with a transaction is applied after it."""
    manager = over(apart)
    await send(manager)
    assert await arrived(manager) == ALL
    assert await manager.sweep() == (0, 0, 0)


async def test_letters_of_a_transaction_that_fails(apart):
    """A transaction that is rolled back, or refused, sends nothing; neither does an undone savepoint."""
    manager = over(apart)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it ends the transaction's block
        async with manager.transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.outbox(B).increment("n")
            raise ZeroDivisionError
    with pytest.raises(ConflictError):  # noqa: PT012 - the end of the block raises
        async with manager.transaction() as tx:
            await tx.get(A, "k")
            await tx.outbox(B).increment("n")
            await manager.set(A, "k", 2)
    async with manager.transaction() as tx:
        await tx.set(A, "k", 3)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it ends the savepoint's block
            async with tx.savepoint() as inner:
                await inner.outbox(B).increment("n")
                raise ZeroDivisionError
    assert not await manager.exists(B)
    assert (await manager.sweep()).sent == 0


async def test_letters_arrive_in_order(apart):
    """Letters are applied in the order of their sending, also from savepoints and one transaction after the other."""
    manager = over(apart)
    async with manager.transaction() as tx:
        await tx.set(A, "k", 1)
        for n in range(3):
            await tx.outbox(B).set("k", n)
        async with tx.savepoint() as inner:
            await inner.outbox(B).set("k", 3)
        await tx.outbox(B).set("k", 4)
    assert await manager.get(B, "k") == 4


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("commits", range(2, 8))
async def test_wherever_delivery_stops(apart, fault, commits):
    """Delivery that stops anywhere, its reply lost or not, is finished by the next sweep, and nothing comes twice."""
    manager = over(apart)
    for storage in set(apart):
        storage.fail_at(commit=commits, fault=fault)
    await send(manager)  # which is done, whatever becomes of its letters
    for storage in set(apart):
        storage._faults.clear()
    await asyncio.gather(*[over(apart).sweep() for _ in range(3)])
    await over(apart).sweep()
    assert await arrived(manager) == ALL


async def test_many_deliver_at_once(apart, monkeypatch):
    """Letters that several find at once are applied once."""
    manager = over(apart)

    async def nothing(*_):
        return True

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "deliver", nothing)
        for _ in range(3):
            await send(manager)
    assert await manager.get(C, "n") is None
    await asyncio.gather(*[over(apart).sweep() for _ in range(4)])
    assert await arrived(manager) == (1, {"k": {"n": 1}, "n": 15}, ["hi"] * 3, 3, {})


async def test_letters_that_cant_be_delivered(apart):
    """What can't be applied is set aside with its reason, and doesn't stop the others."""
    manager = over(apart)
    await manager.set(C, "n", "a text")
    await send(manager)
    assert await arrived(manager) == (*ALL[:3], "a text", {})
    aside = [entry for (section, _), entry in (await _sections(manager)).items() if section == "undelivered"]
    assert len(aside) == 1
    assert "n" in aside[0]["error"]


async def _sections(manager):
    from agentstate import codec
    from agentstate.storage.protocol import Wants

    snapshot = await manager.routes.of("agent").store.storage.read(A, Wants())
    return {at: codec.decode(entry.value) for at, entry in snapshot.entries.items() if isinstance(entry.value, bytes)}


async def test_letters_to_what_belongs_to_others(apart):
    """A letter acts as who sent it, whoever delivers it."""
    bob = over(apart, principal="bob")
    await bob.set(C, "n", 5)
    await send(over(apart, principal="ada"))
    await over(apart).sweep()
    assert await bob.get(C, "n") == 5


async def test_where_all_can_be_one_commit(joint):
    """Where the engine can, what would be a letter is a part of the commit."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it ends the transaction's block
        async with joint.transaction() as tx:
            await tx.set(A, "k", 1)
            await tx.outbox(B).increment("n")
            assert await tx.get(B, "n") == 1
            raise ZeroDivisionError
    await send(joint)
    assert await arrived(joint) == ALL


KILLED = """
import asyncio, sys
from agentstate import StateManager, StateScope
from agentstate.storage import registry
from agentstate.testing.faults import FaultyStorage

async def main():
    storage = FaultyStorage(registry.create("file", {"storage_dir": sys.argv[1]}))
    storage.fail_at(commit=int(sys.argv[2]), fault="crash")
    async with StateManager(storage).transaction() as tx:
        await tx.set(StateScope.agent("a"), "k", 1)
        await tx.outbox(StateScope.team("b")).increment("n", 2)
        await tx.outbox(StateScope.user("c")).increment("n", 3)

asyncio.run(main())
"""


@pytest.mark.crash
@pytest.mark.parametrize("commits", [1, 2, 3, 4])
async def test_killed_in_mid_delivery(tmp_path, commits):
    """A process killed at any of its commits leaves nothing, or everything to the next sweep."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(commits)]
    done = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert done.returncode == -9
    manager = StateManager(registry.create("file", {"storage_dir": str(tmp_path)}))
    swept = await manager.sweep()
    found = [await manager.get(A, "k"), await manager.get(B, "n"), await manager.get(C, "n"), swept.sent]
    assert found == ([None, None, None, 0] if commits == 1 else [1, 2, 3, 1])
    assert (await manager.sweep()).sent == 0
    await manager.routes.of("agent").store.storage.close()
