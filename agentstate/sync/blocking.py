"""Waiting, in a thread without an event loop, for what runs on another thread's.

That is the loop of the turn that the caller is in, since a turn's buffers belong to it, else the process's
background loop. A `KeyboardInterrupt` cancels what was waited for.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from agentstate.state.turn import current
from agentstate.synchronous import background_loop, refuse_on_loop, wait_for

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

__all__ = ["Blocking", "blocking", "finish", "loop_here"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Blocking(Generic[T]):
    """Stands for an asynchronous object; ``loop`` is where its calls must run, ``None`` anywhere."""

    def __init__(self, target: T, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Wrap an object."""
        self.target = target
        self.loop = loop

    def __repr__(self) -> str:
        return repr(self.target)


def loop_here() -> asyncio.AbstractEventLoop:
    """Return the loop that the calls of this thread run on now."""
    frame = current.get()
    if frame is not None and not frame.turn.closed and frame.turn.loop.is_running():
        return frame.turn.loop
    return background_loop()


def finish(name: str, loop: asyncio.AbstractEventLoop | None, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine and return its result.

    Raises:
        TurnError: this thread runs an event loop.
    """
    refuse_on_loop(name)
    return wait_for(work(), loop or loop_here())


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Return the method of a `Blocking` that waits for a method of its target."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return finish(method.__name__, self.loop, lambda: method(self.target, *args, **kwargs))

    return call
