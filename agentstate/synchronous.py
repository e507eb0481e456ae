"""Synchronous handlers: the same turns, reached from a thread without an event loop.

One background loop per process serves them all, in a daemon thread that starts on first
use. The handler itself runs in the caller's thread; each of its calls hops to the loop of
its turn. On a thread that runs an event loop this would block that loop, so it raises.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.context import ConversationContext
from agentstate.errors import TurnError
from agentstate.handling import Outcome, child, conclude, enter, failed
from agentstate.state.turn import Frame, Turn, current

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agentstate.call import Call
    from agentstate.conversation import Conversation
    from agentstate.handling import Request
    from agentstate.state.store import Store

R = TypeVar("R")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the process's background loop, started on first use."""
    global _loop  # noqa: PLW0603 - one per process
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="agentstate-loop", daemon=True).start()
        return _loop


def _forget_in_child() -> None:
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)


def wait_for(work: Coroutine[Any, Any, R], loop: asyncio.AbstractEventLoop | None = None) -> R:
    """Run a coroutine on a loop of another thread and return its result."""
    running = asyncio.run_coroutine_threadsafe(work, loop or background_loop())
    try:
        return running.result()
    except KeyboardInterrupt:
        running.cancel()
        raise


def refuse_on_loop(what: str) -> None:
    """Raise `TurnError` on a thread that runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise TurnError(
        f"{what} is synchronous and was called on a running event loop, which it would block.",
        remedy="Make it 'async def', or call it with await asyncio.to_thread(...).",
    )


def run_sync(call: Call) -> Any:
    """Run a synchronous handler in its turn."""
    refuse_on_loop(call.plan.handler)
    request = call.request()
    store = call.bound.store
    joined = Frame.joined(store, request.scope)
    if joined is not None:
        return _run_joined(call, request, joined)
    turn = _enter(store, request)
    if isinstance(turn, Outcome):
        return turn.result
    try:
        result = _run_handler(call, turn.frame)
    except BaseException as error:
        wait_for(failed(turn, request, error))
        raise
    return wait_for(conclude(turn, request, result))


def _enter(store: Store, request: Request) -> Turn | Outcome:
    entered: list[Turn | Outcome] = []

    async def entering() -> None:
        entered.append(await enter(store, request))

    async def give_back() -> None:
        if entered and isinstance(entered[0], Turn):
            await store.abandon(entered[0])

    try:
        wait_for(entering())
    except KeyboardInterrupt:  # it may have got the turn in that very moment
        wait_for(give_back())
        raise
    return entered[0]


def _run_joined(call: Call, request: Request, joined: Frame) -> Any:
    loop = joined.turn.loop

    async def begin() -> Frame:
        await joined.lock.acquire()
        try:
            return child(joined, request)
        except BaseException:
            joined.lock.release()
            raise

    async def end(frame: Frame, *, merge: bool) -> None:
        try:
            if merge:
                await joined.merge(frame)
        finally:
            frame.open = False
            joined.lock.release()

    frame = wait_for(begin(), loop)
    try:
        result = _run_handler(call, frame)
    except BaseException:
        wait_for(end(frame, merge=False), loop)
        raise
    wait_for(end(frame, merge=True), loop)
    return result


def _run_handler(call: Call, frame: Frame) -> Any:
    context = SyncConversationContext(ConversationContext.in_frame(frame), frame.turn.loop)
    scope = frame.turn.scope
    args, kwargs = call.arguments(context, scope.id)  # type: ignore[arg-type]
    inside = copy_context()
    inside.run(current.set, frame)
    return inside.run(call.wrapped, *args, **kwargs)


class _Blocking:
    """Turns each coroutine method of an object into a blocking one."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            refuse_on_loop(name)
            return wait_for(found(*args, **kwargs), self._loop)

        return call


class SyncConversation(_Blocking):
    """A `Conversation` whose methods block: what a synchronous handler gets."""

    def __init__(self, target: Conversation, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a conversation."""
        super().__init__(target, loop)


class SyncConversationContext(_Blocking):
    """A `ConversationContext` whose methods block: what a synchronous handler gets."""

    def __init__(self, target: ConversationContext, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a context."""
        super().__init__(target, loop)

    def conversation(self, context_id: str) -> SyncConversation:
        """Return the conversation, bound to its id."""
        return SyncConversation(self._target.conversation(context_id), self._loop)
