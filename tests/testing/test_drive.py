"""`cancelled_at` cancels exactly at the k-th suspension, and sees what the call makes of it."""

import asyncio

import pytest

from agentstate.testing.drive import cancelled_at


async def steps(done, count=3):
    """Suspend ``count`` times and note how far it came."""
    for number in range(count):
        await asyncio.sleep(0)
        done.append(number)


@pytest.mark.parametrize(("at", "came"), [(1, []), (2, [0]), (3, [0, 1])])
async def test_at(at, came):
    """The call is cancelled while suspended for the k-th time: what follows is not run."""
    done = []
    assert await cancelled_at(steps(done), at)
    assert done == came


async def test_beyond():
    """A call that suspends less often gets through."""
    done = []
    assert not await cancelled_at(steps(done), 4)
    assert done == [0, 1, 2]


async def test_futures_are_cancelled():
    """What the call waits for is cancelled too, as by the event loop."""
    future = asyncio.get_running_loop().create_future()

    async def wait():
        await future

    assert await cancelled_at(wait(), 1)
    assert future.cancelled()


async def test_swallowed():
    """A call that swallows its cancellation is found out."""

    async def swallow():
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return

    with pytest.raises(AssertionError, match="as if nothing had happened"):
        await cancelled_at(swallow(), 1)


async def test_again():
    """Cancelled again and again, clean-up that awaits is interrupted too."""
    cleaned = []

    async def call():
        try:
            await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    assert await cancelled_at(call(), 1)
    assert cleaned == [True]
    assert await cancelled_at(call(), 1, again=True)
    assert cleaned == [True]


async def test_its_own_errors():
    """An error of the call's own is its own."""

    async def fail():
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await cancelled_at(fail(), 2)
