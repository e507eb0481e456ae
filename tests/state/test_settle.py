"""Work that is carried through: what its caller gets, and what becomes of it when the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextvars

import anyio
import pytest

from agentstate.state.settle import Errand, settle

number = contextvars.ContextVar("number", default=0)


@pytest.fixture(params=[True, False], ids=["taskless", "task"])
def taskless(request):
    """Both ways of doing the work."""
    return request.param


class Work:
    """Awaits futures that the test resolves, one after the other, and says what it saw."""

    def __init__(self, count=1):
        self.waits = [asyncio.get_running_loop().create_future() for _ in range(count)]
        self.seen = []

    async def run(self):
        for one in self.waits:
            self.seen.append(await one)
            await asyncio.sleep(0)
        return self.seen


async def passes(count=5):
    """Let the loop run a few passes."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_result(taskless):
    """The caller gets what the work returns, over any number of awaits."""
    work = Work(3)
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    for n, one in enumerate(work.waits):
        await passes()
        one.set_result(n)
    assert await waiting == [0, 1, 2]


async def test_result_at_once(taskless):
    """Work that never waits is done at once."""

    async def work():
        return 7

    assert await settle(work(), taskless=taskless) == 7


async def test_its_errors_are_its_callers(taskless):
    """An error that a future brings goes through the work, which may handle it, to the caller."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen = []

    async def work():
        try:
            await first
        except ValueError as error:
            seen.append(str(error))
        await second

    waiting = asyncio.create_task(settle(work(), taskless=taskless))
    await passes()
    first.set_exception(ValueError("one"))
    await passes()
    second.set_exception(KeyError("two"))
    with pytest.raises(KeyError, match="two"):
        await waiting
    assert seen == ["one"]


async def test_a_cancelled_caller_learns_the_outcome_first(taskless):
    """The work goes on; the cancellation is raised when it has ended, and not before."""
    work = Work(3)
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    await passes()
    waiting.cancel("enough")
    for n, one in enumerate(work.waits):
        await passes()
        assert not waiting.done()
        one.set_result(n)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.seen == [0, 1, 2]


@pytest.mark.parametrize("after", range(1, 8))
async def test_a_cancellation_at_any_pass(taskless, after):
    """Whenever it comes, the work is done whole, and the caller has its result or is cancelled."""
    work = Work(2)
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    for turn in range(16):
        if turn == after:
            waiting.cancel()
        if turn in (2, 4):
            work.waits[turn // 2 - 1].set_result(turn)
        await asyncio.sleep(0)
    result = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert work.seen == [2, 4]
    assert result == [2, 4] or isinstance(result, asyncio.CancelledError)


async def test_a_cancellation_beside_the_result(taskless):
    """A cancellation in the same pass as the last reply loses neither."""
    work = Work()
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    await passes()
    work.waits[0].set_result(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.seen == [1]


async def test_an_error_nobody_is_left_to_hear(taskless):
    """The caller goes down by its cancellation, whatever the work says; nothing is logged as never retrieved."""
    work = Work()
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    await passes()
    waiting.cancel()
    await passes()
    work.waits[0].set_exception(ValueError("late"))
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_repeated_cancellations(taskless):
    """Cancelling again and again changes nothing."""
    work = Work()
    waiting = asyncio.create_task(settle(work.run(), taskless=taskless))
    await passes()
    for _ in range(10):
        waiting.cancel()
        await asyncio.sleep(0)
    work.waits[0].set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.seen == [1]


async def test_anyio_scopes(taskless):
    """anyio cancels on every pass of the loop; the wait goes on without a storm of wake-ups."""
    work = Work()
    asyncio.get_running_loop().call_later(0.05, work.waits[0].set_result, 1)
    woken = 0

    async def count():
        nonlocal woken
        while True:
            await asyncio.sleep(0)
            woken += 1

    counting = asyncio.create_task(count())
    with anyio.move_on_after(0.001) as scope:
        await settle(work.run(), taskless=taskless)
    counting.cancel()
    assert scope.cancelled_caught
    assert work.seen == [1]


async def test_work_that_is_cancelled_from_within(taskless):
    """A future that the storage itself cancels is the work's affair; the caller isn't cancelled by it."""
    loop = asyncio.get_running_loop()
    waited = loop.create_future()

    async def work():
        try:
            await waited
        except asyncio.CancelledError:
            return "noticed"

    waiting = asyncio.create_task(settle(work(), taskless=taskless))
    await passes()
    waited.cancel()
    assert await waiting == "noticed"


async def test_the_context_is_empty(taskless):
    """The work sees no context variables of its caller, and sets none."""
    number.set(5)

    async def work():
        seen = number.get()
        number.set(6)
        await asyncio.sleep(0)
        return seen, number.get()

    assert await settle(work(), taskless=taskless) == (0, 6)
    assert number.get() == 5


async def test_a_timeout_around_it(taskless):
    """asyncio.timeout ends the wait after the outcome is known, as a timeout."""
    work = Work()
    asyncio.get_running_loop().call_later(0.02, work.waits[0].set_result, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await settle(work.run(), taskless=taskless)
    assert work.seen == [1]


async def test_timeouts_inside_need_a_task():
    """Work that asks for the current task gets one of its own unless its storage is taskless."""

    async def work():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        return asyncio.current_task()

    assert await settle(work(), taskless=False) is not asyncio.current_task()


async def test_an_errand_whose_caller_doesn_t_wait(taskless):
    """A cancelled caller that needs no outcome goes at once, and can ask the task that does the rest."""
    work = Work(2)
    errand = Errand(work.run(), taskless=taskless)

    async def caller():
        return await errand

    waiting = asyncio.create_task(caller())
    await passes()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert errand.task is not None
    work.waits[0].set_result(1)
    await passes()
    work.waits[1].set_result(2)
    assert await errand.task == [1, 2]


def test_the_end_of_the_loop(taskless):
    """A loop that ends cancels work that is left, and doesn't hang."""
    seen = []

    async def work():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main():
        errand = Errand(work(), taskless=taskless)

        async def caller():
            await errand

        waiting = asyncio.create_task(caller())
        await passes()
        waiting.cancel()
        await passes()

    asyncio.run(main())
    assert seen == ["cancelled"]
