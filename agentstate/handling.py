"""Runs a handler in a turn: enter, run once, commit or roll back.

What decides between committing and rolling back is here and nowhere else. A handler runs
exactly once; its exception goes on unchanged after its turn was given back.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from agentstate import codec
from agentstate.context import ConversationContext
from agentstate.errors import (
    AlreadyDone,
    CommitUnknownError,
    ConflictError,
    OnceMismatchError,
    StorageUnavailableError,
    UnsupportedError,
    UnsupportedValueError,
    ValueTooLargeError,
)
from agentstate.observability import bind_context, unbind_context, warning
from agentstate.state import failures, history
from agentstate.state.record import Origin
from agentstate.state.settle import own_task
from agentstate.state.store import Store
from agentstate.state.turn import Frame, Turn, current, new_id
from agentstate.storage.protocol import OnceRecord
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agentstate.conversation import Conversation
    from agentstate.scope import StateScope
    from agentstate.state.settings import TurnSettings

R = TypeVar("R")

ONCE_RESULT_BYTES = 64 * 1024


class Request(NamedTuple):
    """One call of a handler, as far as its turn is concerned.

    Attributes:
        once: the idempotency key of this call.
        fingerprint: of the input; the same key must come with the same.
        run_without: run on a state that is forgotten when the storage can't be reached, and answer
            when it can't be reached any more.
    """

    scope: StateScope
    handler: str
    settings: TurnSettings
    principal: str | None = None
    once: str | None = None
    fingerprint: str = ""
    run_without: bool = False
    correlation: str = ""


class Outcome(NamedTuple):
    """The stored result of an earlier delivery."""

    result: Any


async def in_turn(store: Store, ask: Callable[[], Request], run: Callable[[Frame], Awaitable[R]]) -> R:
    """Run a handler in a turn of its own, or in a frame of the turn it is called in.

    Args:
        store: where its state is.
        ask: says what the turn needs to know of the call.
        run: calls the handler.

    Raises:
        AlreadyDone: the idempotency key was served, and its result couldn't be stored.
        OnceMismatchError: the idempotency key came with another input before.
    """
    request = ask()
    joined = Frame.joined(store, request.scope)
    if joined is not None:
        return await in_child_frame(joined, request, run)
    turn = await enter(store, request)
    if isinstance(turn, Outcome):
        return turn.result  # type: ignore[no-any-return]
    tokens = begin(turn)
    try:
        try:
            result = await run(turn.frame)
        finally:
            end(tokens)
    except BaseException as error:
        await failed(turn, request, error)
        raise
    if request.once is None and request.settings.turns != "read" and not request.run_without:
        await turn.store.commit_turn(turn)  # not always the store that was asked: see `enter`
        return result
    return await conclude(turn, request, result)


async def in_child_frame(joined: Frame, request: Request, run: Callable[[Frame], Awaitable[R]]) -> R:
    """Run a nested handler in a frame: merged when it succeeds, dropped on its error."""
    async with joined.lock:
        frame = child(joined, request)
        token = current.set(frame)
        try:
            result = await run(frame)
            await joined.merge(frame)
        finally:
            frame.open = False
            current.reset(token)
    if joined is joined.turn.frame and joined.turn.settings.commit == "immediate":
        await joined.commit()
    return result


def child(joined: Frame, request: Request) -> Frame:
    """Return the frame of a nested handler.

    Raises:
        UnsupportedError: it has an idempotency key of its own, which this turn's commit couldn't keep.
    """
    if request.once is not None and request.once != joined.turn.once_key:
        raise UnsupportedError(
            f"{request.handler} runs inside another handler's turn of {request.scope}, and can't keep its key "
            f"{request.once!r} there.",
            scope=request.scope,
            remedy="Give the outer handler once= with the same key, or call this one outside of its turn.",
        )
    return joined.child(principal=request.principal, read_only=request.settings.turns == "read")


async def enter(store: Store, request: Request) -> Turn | Outcome:
    """Take the turn; an idempotency key that was served already gives its result instead."""
    turn_id = f"{new_id():016x}"
    outer = current.get()
    correlation = request.correlation or (outer.turn.origin.correlation if outer is not None else "") or turn_id
    origin = new(Origin, ("turn", request.handler, turn_id, request.principal or "", "", correlation, ""))
    try:
        turn = await store.enter(
            request.scope,
            request.settings,
            origin,
            principal=request.principal,
            once=request.once,
            parent=outer,
        )
    except StorageUnavailableError:
        if not request.run_without:
            raise
        return await _enter_forgotten(store, request, origin)
    if request.once is not None:
        known_once = turn.frame.buffers[request.scope].snapshot.once
        if known_once is not None:
            await store.abandon(turn)
            return outcome(known_once, request)
        turn.once_key = request.once
    return turn


_unavailable = 0


def ran_without() -> int:
    """Return how many turns of this process left nothing, because the storage was down and they could do without."""
    return _unavailable


def _without(store: Store, request: Request, what: str) -> None:
    global _unavailable  # noqa: PLW0603 - a count of this process
    _unavailable += 1
    warning(what, handler=request.handler, storage=store.storage.location)


async def _enter_forgotten(store: Store, request: Request, origin: Origin) -> Turn:
    from agentstate.storage.memory import MemoryStorage

    _without(store, request, "a handler runs without its state")
    return await Store(MemoryStorage()).enter(request.scope, request.settings, origin, parent=current.get())


def outcome(record: OnceRecord, request: Request) -> Outcome:
    """Return the stored result of an idempotency key."""
    if record.fingerprint and request.fingerprint and record.fingerprint != request.fingerprint:
        raise OnceMismatchError(
            f"{record.key!r} was used in {request.scope} with another input before.",
            scope=request.scope,
            remedy="An idempotency key names one input: use the id of the message or task.",
        )
    if record.result is None:
        raise AlreadyDone(
            f"{record.key!r} is done already in {request.scope}; its result wasn't storable.",
            commit_id=record.commit_id,
            scope=request.scope,
        )
    return Outcome(codec.decode(record.result))


async def conclude(turn: Turn, request: Request, result: R) -> R:
    """Commit a turn whose handler succeeded; return its result, or that of a delivery which was first."""
    store, frame = turn.store, turn.frame
    try:
        await finish(turn, request, result)
    except ConflictError as error:
        first = await _known(store, request) if request.once is not None else None
        if first is None:
            if request.once is not None:  # else it was recorded with the turn's end
                await failures.note(store, turn, error, failures.added(frame))
            raise
        return first.result  # type: ignore[no-any-return]
    return result


async def _known(store: Store, request: Request) -> Outcome | None:
    """Return what another delivery of the same key stored meanwhile."""
    from agentstate.storage.protocol import Wants

    snapshot = await store.storage.read(request.scope, Wants((), (), (), 0), once=request.once)
    return outcome(snapshot.once, request) if snapshot.once is not None else None


def begin(turn: Turn) -> Any:
    """Let the running code be inside a turn: for calls of the context, and for its log events."""
    keys = None
    if "structlog" in sys.modules:
        origin = turn.origin
        keys = bind_context(
            handler=origin.handler, scope=turn.scope.text, turn=origin.turn, correlation_id=origin.correlation
        )
    return current.set(turn.frame), keys


def end(tokens: Any) -> None:
    """Let the running code be outside again."""
    token, keys = tokens
    try:
        current.reset(token)
        unbind_context(keys)
    except ValueError:  # a coroutine that is being closed from elsewhere: what was set is out of reach
        return


async def failed(turn: Turn, request: Request, error: BaseException) -> None:
    """End a turn whose handler failed."""
    if isinstance(error, GeneratorExit):
        _let_go(turn)
        return
    mode = turn.settings.on_error
    if mode == "rollback" or turn.settings.turns == "read" or isinstance(error, asyncio.CancelledError):
        await failures.fail(turn.store, turn, error)
        return
    if mode == "keep_input":
        _keep_input(turn)
    try:
        await turn.store.commit_turn(turn)
    except Exception:  # noqa: BLE001 - the handler's own error is what the caller must see
        warning("what a failed handler left couldn't be stored", handler=request.handler, exc_info=True)


def _let_go(turn: Turn) -> None:
    """End a turn whose coroutine is being closed, which can't wait for anything.

    That happens to a task of a loop that nobody runs any more: then the lease ends by itself.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        turn.close()
    else:
        own_task(turn.store.abandon(turn))


def _keep_input(turn: Turn) -> None:
    """Keep only the messages of role user that were added before the error."""
    from agentstate.state.buffer import Buffer

    old = turn.frame.buffers[turn.scope]
    kept = Buffer(old.snapshot)
    if isinstance(old.owner, str):
        kept.touch(old.owner)
    found = old.logs.get(history.LOG)
    if found is not None:
        for one in found.pending:
            if codec.decode(one.value).get("role") == "user":
                kept.log(history.LOG).append(one)
    turn.frame.buffers = {turn.scope: kept}


async def finish(turn: Turn, request: Request, result: object) -> None:
    """Commit a turn whose handler succeeded, and end it."""
    if turn.settings.turns == "read":
        await turn.store.abandon(turn)
        return
    if request.once is not None:
        turn.once = OnceRecord(request.once, request.fingerprint, 0, _storable(result))
    try:
        await turn.store.commit_turn(turn)
    except (StorageUnavailableError, CommitUnknownError) as error:
        if not request.run_without:
            raise
        known = "lost" if isinstance(error, StorageUnavailableError) else "stored or lost, which nobody knows"
        _without(turn.store, request, f"its storage went away meanwhile: what a handler changed is {known}")


def _storable(result: object) -> bytes | None:
    try:
        data = codec.encode(result)
    except (UnsupportedValueError, ValueTooLargeError):
        return None
    return data if len(data) <= ONCE_RESULT_BYTES else None


@asynccontextmanager
async def open_turn(context: ConversationContext, context_id: str, name: str) -> AsyncGenerator[Conversation]:
    """Open a turn for a block: committed at its end, rolled back when it raises."""
    scope = context.scope_of(context_id)
    request = Request(scope, name, context.settings, context.principal)
    joined = Frame.joined(context.store, scope)
    if joined is not None:
        async with joined.lock:
            frame = child(joined, request)
            token = current.set(frame)
            try:
                yield ConversationContext.in_frame(frame).conversation(context_id)
                await joined.merge(frame)
            finally:
                frame.open = False
                current.reset(token)
        return
    turn = await enter(context.store, request)
    assert isinstance(turn, Turn)
    tokens = begin(turn)
    try:
        yield ConversationContext.in_frame(turn.frame).conversation(context_id)
    except BaseException as error:
        await failed(turn, request, error)
        raise
    finally:
        end(tokens)
    await finish(turn, request, None)
