"""Streaming handlers: the turn lasts as long as the stream, however it ends."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import TurnTimeoutError

TASK = {"context_id": "c-1", "text": "hi"}


def streaming(storage, **settings):
    """A handler that streams three chunks and stores each."""

    @stateful(storage=storage, **settings)
    async def handler(_, conversation: Conversation):
        for number in range(3):
            await conversation.add("assistant", str(number))
            yield number

    return handler


async def stored(storage):
    """The contents of the conversation."""
    return [message.content for message in await ConversationContext(storage).get_history("c-1")]


async def turn_is_free(storage):
    """Return when the turn can be taken at once."""
    async with asyncio.timeout(5):
        while True:
            try:
                async with ConversationContext(storage).turn("c-1"):
                    return
            except TimeoutError:
                continue


async def test_a_stream_commits_at_its_end(storage):
    """All chunks come, then everything is stored as one version."""
    assert [chunk async for chunk in streaming(storage)(TASK)] == [0, 1, 2]
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, len(state.history)) == (1, 3)


async def test_nothing_happens_before_the_first_pull(memory):
    """Calling a streaming handler takes no turn."""
    stream = streaming(memory)(TASK)
    assert await stored(memory) == []
    await stream.aclose()


@pytest.mark.parametrize(("on_cancel", "kept"), [("auto", ["0"]), ("commit", ["0"]), ("rollback", [])])
async def test_closing_a_stream_early(storage, on_cancel, kept):
    """on_cancel= says what a closed stream leaves; the turn is free afterwards."""
    stream = streaming(storage, on_cancel=on_cancel)(TASK)
    assert await anext(stream) == 0
    await stream.aclose()
    assert await stored(storage) == kept
    await turn_is_free(storage)


async def test_a_stream_nobody_holds_any_more_ends(storage):
    """Garbage collection ends the turn, too."""
    stream = streaming(storage)(TASK)
    assert await anext(stream) == 0
    del stream
    gc.collect()
    await turn_is_free(storage)
    assert await stored(storage) == ["0"]


async def test_a_stream_nobody_pulls_ends_after_idle(storage):
    """idle= ends the turn of a consumer that went away without a word."""
    stream = streaming(storage, idle=0.02)(TASK)
    assert await anext(stream) == 0
    await turn_is_free(storage)
    assert await stored(storage) == ["0"]
    with pytest.raises(TurnTimeoutError, match="pulled"):
        await anext(stream)


async def test_a_cancelled_consumer_ends_the_stream(storage):
    """Cancelling the task that pulls is an early end like any other."""
    entered = asyncio.Event()

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.add("assistant", "0")
        yield 0
        entered.set()
        await asyncio.Event().wait()

    async def consume():
        async for _ in handler(TASK):
            pass

    consumer = asyncio.create_task(consume())
    await entered.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await turn_is_free(storage)
    assert await stored(storage) == ["0"]


async def test_an_error_in_a_stream_rolls_back_and_arrives(storage):
    """The consumer gets the handler's own error."""

    @stateful(storage=storage)
    async def handler(_, conversation: Conversation):
        await conversation.add("assistant", "0")
        yield 0
        raise KeyError("boom")

    stream = handler(TASK)
    assert await anext(stream) == 0
    with pytest.raises(KeyError, match="boom"):
        await anext(stream)
    assert await stored(storage) == []
    await turn_is_free(storage)


async def test_the_consumer_is_not_inside_the_turn(storage):
    """Between two chunks the consumer's own calls are calls from outside."""
    outside = ConversationContext(storage)
    async for chunk in streaming(storage)(TASK):
        await outside.set_variable("c-1", "seen", chunk)
    assert await outside.get_variable("c-1", "seen") == 2


async def test_context_variables_hold_across_chunks(memory):
    """The generator keeps its own context variables, whoever pulls."""
    mark: ContextVar[int] = ContextVar("mark", default=0)

    @stateful(storage=memory)
    async def handler(_, conversation: Conversation):
        mark.set(7)
        yield mark.get()
        yield mark.get()

    stream = handler(TASK)
    assert await asyncio.create_task(anext_of(stream)) == 7
    assert await asyncio.create_task(anext_of(stream)) == 7
    assert mark.get() == 0
    await stream.aclose()


async def anext_of(stream):
    """Pull once, as a coroutine that a task can run."""
    return await anext(stream)


async def test_asend_and_athrow_reach_the_generator(memory):
    """A stream is an async generator in full."""

    @stateful(storage=memory)
    async def handler(_, conversation: Conversation):
        got = yield "first"
        try:
            yield got
        except ValueError:
            yield "caught"

    stream = handler(TASK)
    assert await anext(stream) == "first"
    assert await stream.asend("sent") == "sent"
    assert await stream.athrow(ValueError()) == "caught"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_nested_stream_runs_in_a_frame(storage):
    """A handler may consume another's stream on the same state."""
    inner = streaming(storage)

    @stateful(storage=storage)
    async def outer(task, conversation: Conversation):
        chunks = [chunk async for chunk in inner(task)]
        await conversation.set("chunks", chunks)

    await asyncio.wait_for(outer(TASK), 5)
    state = await ConversationContext(storage).get("c-1")
    assert (state.version, state.variables, len(state.history)) == (1, {"chunks": [0, 1, 2]}, 3)


async def test_a_pull_that_comes_while_the_stream_ends_is_answered(storage):
    """A consumer that comes back just as idle= ends the turn gets chunks or an error, never silence."""
    for delay in (0, 0.001, 0.002, 0.003):
        stream = streaming(storage, idle=0.002)(TASK)
        assert await anext(stream) == 0
        await asyncio.sleep(delay)
        async with asyncio.timeout(5):
            rest = []
            try:
                async for chunk in stream:
                    rest.append(chunk)  # noqa: PERF401 - what came before the error counts
            except TurnTimeoutError:
                assert rest in ([], [1])
            else:
                assert rest == [1, 2]
