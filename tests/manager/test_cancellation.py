"""A caller that is cancelled leaves nothing half done, and nobody waiting for it."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from agentstate import StateScope
from agentstate.manager import calls

A = StateScope.agent("a")


async def started(call):
    """Return a task that runs a call, outside of this one's turns, once it has begun to wait."""
    task = asyncio.create_task(call, context=contextvars.Context())
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def cancelled(task):
    """Cancel a task, and return when it is gone."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def locked(manager, done):
    """Take a lock and note it."""
    async with manager.lock(A):
        done.append("locked")


async def test_waiting_for_a_lock(manager):
    """Who gives up waiting leaves the line; the next one gets the lock."""
    done = []
    async with manager.lock(A):
        first = await started(locked(manager, done))
        second = await started(locked(manager, done))
        await cancelled(first)
    await asyncio.wait_for(second, 10)
    assert done == ["locked"]
    await asyncio.wait_for(locked(manager, done), 10)


async def test_holding_a_lock(manager):
    """A cancelled holder gives the lock back."""

    async def hold():
        async with manager.lock(A) as held:
            await held.set("k", 1)
            entered.set()
            await asyncio.Event().wait()

    entered = asyncio.Event()
    task = await started(hold())
    await asyncio.wait_for(entered.wait(), 10)
    await cancelled(task)
    done = []
    await asyncio.wait_for(locked(manager, done), 10)
    assert await manager.get(A, "k") == 1


async def test_standing_in_line_with_an_update(manager, monkeypatch):
    """A cancelled update leaves the line of updates, wherever it stands in it."""
    running, go = asyncio.Event(), asyncio.Event()
    original = calls._in_units

    async def slowly(*args, **more):
        running.set()
        await go.wait()
        return await original(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(calls, "_in_units", slowly)
        tasks = [await started(manager.append(A, "l", n)) for n in range(3)]
        await asyncio.wait_for(running.wait(), 10)
        await cancelled(tasks[1])
        await cancelled(tasks[0])
        go.set()
        assert await asyncio.wait_for(tasks[2], 10) == 1
    assert await manager.append(A, "l", 9) == 2
    assert await manager.get(A, "l") == [2, 9]


@pytest.mark.parametrize("passes", range(8))
async def test_a_call_is_stored_or_not(manager, passes):
    """Cancelled anywhere, a call has happened as a whole or not at all."""
    await manager.set_many(A, {"k0": 0, "k1": 0})
    task = asyncio.create_task(manager.set_many(A, {"k0": 1, "k1": 1}))
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await manager.list(A)
    assert found in ({"k0": 0, "k1": 0}, {"k0": 1, "k1": 1})
    assert await manager.update(A, "k0", lambda old: old + 1) == found["k0"] + 1
