"""Cancelling a call at its k-th await, for every k.

A call's awaits are where cancellation can strike, and a test that sleeps and cancels hits
one of them by luck. `CancelledAt` counts them: it passes everything through to the call and
cancels the running task exactly where the call suspends for the k-th time, as the event
loop itself would.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

__all__ = ["CancelledAt", "cancelled_at"]

Result = TypeVar("Result")
MOST_AWAITS = 200


class CancelledAt(Generic[Result]):
    """Awaits ``call``, cancelling the task at its ``at``-th suspension.

    Attributes:
        seen: how often the call has suspended.
    """

    def __init__(self, call: Coroutine[Any, Any, Result], at: int, *, again: bool = False) -> None:
        """Cancel at the ``at``-th suspension (from 1), and with ``again`` at each later one too."""
        self.seen = 0
        self._call = call
        self._at = at
        self._again = again

    def __await__(self) -> Generator[Any, Any, Result]:
        task = asyncio.current_task()
        assert task is not None
        step: Callable[[], Any] = lambda: self._call.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as done:
                return cast("Result", done.value)
            self.seen += 1
            if self.seen == self._at or (self._again and self.seen > self._at):
                task.cancel()
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the call's
                step = _thrower(self._call, error)
            else:
                step = lambda: self._call.send(None)  # noqa: E731


def _thrower(call: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: call.throw(error)


async def cancelled_at(call: Coroutine[Any, Any, Any], at: int, *, again: bool = False) -> bool:
    """Run a call cancelled at its ``at``-th suspension; return whether it suspended that often.

    Raises:
        AssertionError: the call hung, or swallowed its cancellation.
    """
    assert at < MOST_AWAITS, f"the call suspends {MOST_AWAITS} times and more"
    steered = CancelledAt(call, at, again=again)
    task = asyncio.ensure_future(_await(steered))
    done, _ = await asyncio.wait({task}, timeout=20.0)
    assert done, f"cancelled at await {at}, the call still hasn't ended after 20 s"
    if steered.seen < at:
        await task
        return False
    assert task.cancelled(), f"cancelled at await {at}, the call ended as if nothing had happened: {task}"
    return True


async def _await(steered: CancelledAt[Result]) -> Result:
    return await steered
