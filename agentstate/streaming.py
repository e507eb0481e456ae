"""Streaming handlers: an async generator that holds its turn until it ends.

The generator runs in a task of its own, so that its context variables and cancel scopes hold
across chunks whoever pulls them, and from whichever task. The turn is taken at the first
pull. It ends when the generator does; when the stream is closed, collected as garbage or
cancelled; or when nobody pulls for ``idle=`` seconds. What ends it early is one case, and
``on_cancel=`` says what it leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.context import ConversationContext
from agentstate.errors import AlreadyDone, TurnTimeoutError
from agentstate.handling import Outcome, Request, begin, end, enter, failed, finish, in_child_frame
from agentstate.observability import warning
from agentstate.state.failures import fail
from agentstate.state.turn import Frame

if TYPE_CHECKING:
    from types import TracebackType

    from agentstate.call import Call
    from agentstate.state.turn import Turn


class _Pull(NamedTuple):
    """One step asked of the generator: a value to send, or an exception to throw."""

    value: Any
    error: BaseException | None
    reply: asyncio.Future[Any]


class _Early(BaseException):
    """The stream was ended before the generator was."""


class _Pump:
    """The task that drives one generator inside its turn."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.pulls: asyncio.Queue[_Pull | None] = asyncio.Queue()
        self.chunks = 0
        self.ending = False
        self.idled = False
        self.idle_error: TurnTimeoutError | None = None
        self.unheard: BaseException | None = None
        self._pulled: _Pull | None = None
        self.task = self.loop.create_task(self._run(), context=contextvars.copy_context())

    def end(self) -> None:
        """End the stream early; from any thread, any number of times."""
        self.ending = True
        with suppress(RuntimeError):  # the loop was closed, and the task with it
            self.loop.call_soon_threadsafe(self.pulls.put_nowait, None)

    async def _run(self) -> None:
        self._pulled = await self.pulls.get()
        ended: BaseException = StopAsyncIteration()
        try:
            if self._pulled is not None:
                await self._run_turn()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever pulls
            ended = error
        heard = self._answer_rest(ended)
        if heard or isinstance(ended, StopAsyncIteration | asyncio.CancelledError):
            return
        self.unheard = ended  # whoever pulls or closes next is told
        warning("a stream ended with an error while nobody pulled", handler=self.call.plan.handler, exc_info=ended)

    def _answer_rest(self, error: BaseException) -> bool:
        heard = False
        waiting: list[_Pull | None] = [self._pulled]
        while not self.pulls.empty():
            waiting.append(self.pulls.get_nowait())
        for pull in waiting:
            if pull is not None and not pull.reply.done():
                pull.reply.set_exception(error)
                heard = True
        return heard

    async def _run_turn(self) -> None:
        request = self.call.request()
        store = self.call.bound.store
        joined = Frame.joined(store, request.scope)
        if joined is not None:
            with suppress(_Early):
                await in_child_frame(joined, request, lambda frame: self._drive_nested(frame, request))
            self._say_idled(request)
            return
        turn = await enter(store, request)
        if isinstance(turn, Outcome):
            raise AlreadyDone(f"{request.once!r} was streamed already in {request.scope}.", commit_id=0)
        await self._in_own_turn(turn, request)

    async def _in_own_turn(self, turn: Turn, request: Request) -> None:
        tokens = begin(turn)
        try:
            await self._drive(turn.frame, request)
        except _Early as early:
            if not self._keeps(request):
                await fail(turn.store, turn, early.__cause__ or asyncio.CancelledError("stream ended early"))
                self._say_idled(request)
                return
        except BaseException as error:
            await failed(turn, request, error)
            raise
        finally:
            end(tokens)
        await finish(turn, request, None)
        self._say_idled(request)

    def _keeps(self, request: Request) -> bool:
        """Whether a stream that ended early leaves what it did."""
        mode = request.settings.on_cancel
        return mode == "commit" or (mode == "auto" and self.chunks > 0)

    def _say_idled(self, request: Request) -> None:
        """Raise: whoever pulls now must not take this for the end of the stream."""
        if self.idled:
            self.idle_error = TurnTimeoutError(
                f"{self.call.plan.handler}'s stream wasn't pulled for {request.settings.idle:g} s: its turn ended.",
                scope=request.scope,
                remedy="Raise idle=, or pull the stream faster.",
            )
            raise self.idle_error

    async def _drive_nested(self, frame: Frame, request: Request) -> None:
        try:
            await self._drive(frame, request)
        except _Early:
            if not self._keeps(request):
                raise

    async def _drive(self, frame: Frame, request: Request) -> None:
        context = ConversationContext.in_frame(frame)
        args, kwargs = self.call.arguments(context, request.scope.id)
        generator: AsyncGenerator[Any, Any] = self.call.wrapped(*args, **kwargs)
        try:
            while self._pulled is not None:
                await self._step(generator, self._pulled)
                if self._pulled.reply.cancelled():
                    break
                self._pulled = await self._next_pull(request.settings.idle)
        except StopAsyncIteration:
            return
        except asyncio.CancelledError:
            if not self.ending:
                raise
            self.task.uncancel()
        finally:
            await generator.aclose()
        raise _Early

    async def _step(self, generator: AsyncGenerator[Any, Any], pull: _Pull) -> None:
        step = generator.asend(pull.value) if pull.error is None else generator.athrow(pull.error)
        chunk = await step
        if not pull.reply.done():
            self.chunks += 1
            pull.reply.set_result(chunk)

    async def _next_pull(self, idle: float) -> _Pull | None:
        try:
            async with asyncio.timeout(idle if idle < 1e9 else None):  # noqa: PLR2004 - for ever
                return await self.pulls.get()
        except TimeoutError:
            self.idled = True
            return None


class StatefulStream(AsyncGenerator[Any, Any]):
    """What a streaming handler returns: an async generator that runs in a turn."""

    def __init__(self, call: Call) -> None:
        """Take nothing yet: the turn begins at the first pull."""
        self._call = call
        self._pump: _Pump | None = None
        self._closed = False

    async def __anext__(self) -> Any:
        return await self.asend(None)

    async def asend(self, value: Any) -> Any:
        """Return the next chunk, sending a value into the generator."""
        return await self._pull(value, None)

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """Raise an exception inside the generator, and return its next chunk."""
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        return await self._pull(None, error.with_traceback(tb) if tb is not None else error)

    async def aclose(self) -> None:
        """End the stream, and return when its turn has ended."""
        self._closed = True
        pump = self._pump
        if pump is None:
            return
        pump.end()
        await asyncio.wait((pump.task,))
        if pump.unheard is not None and pump.unheard is not pump.idle_error:
            raise pump.unheard

    async def _pull(self, value: Any, error: BaseException | None) -> Any:
        if self._closed:
            raise StopAsyncIteration
        if self._pump is None:
            self._pump = _Pump(self._call)
            weakref.finalize(self, self._pump.end).atexit = False
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._pump.task.done():
            self._closed = True
            raise self._pump.unheard or StopAsyncIteration
        self._pump.pulls.put_nowait(_Pull(value, error, reply))
        try:
            return await reply
        except asyncio.CancelledError:
            self._closed = True
            self._pump.end()
            self._pump.task.cancel()
            raise
        except BaseException:
            self._closed = True
            raise
