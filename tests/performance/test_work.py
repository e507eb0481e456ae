"""How much the interpreter does in a turn, counted: calls of Python functions, and garbage."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import structlog  # noqa: F401 - where it is loaded, turns bind their keys for its events

from tests.performance.conftest import seed, task, workload

MOST_CALLS = 220


async def calls_of(handler, context_id):
    """Return the names of the Python functions that a turn calls, its handler included."""
    for _ in range(20):
        await handler(task(context_id))
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        await handler(task(context_id))
    finally:
        sys.setprofile(None)
    return called


async def test_a_turn_calls_few_functions(memory):
    """In memory, where nothing else takes time, every call counts: who adds some should notice."""
    await seed(memory, "c", 50)
    called = await calls_of(workload(memory), "c")
    assert len(called) <= MOST_CALLS, sorted(called)


async def test_calls_do_not_grow(memory):
    """A turn does the same on a long conversation as on a short one."""
    await seed(memory, "short", 10)
    await seed(memory, "long", 5000)
    handler = workload(memory)
    assert await calls_of(handler, "short") == await calls_of(handler, "long")


async def test_turns_leave_no_garbage(storage):
    """Nothing that belongs to a turn waits for the garbage collector."""
    handler = workload(storage)
    await seed(storage, "c", 50)
    for _ in range(20):
        await handler(task("c"))
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await handler(task("c"))
        found = gc.collect()
    finally:
        gc.enable()
    assert found < 50, found


async def test_what_memory_keeps_of_a_turn(memory):
    """Two messages, a journal record and their places: the encoder's spare room isn't kept with them."""
    handler = workload(memory)
    for _ in range(20):
        await handler(task("c"))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            await handler(task("c"))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 200 < 3000
