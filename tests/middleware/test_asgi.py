"""What a client has seen of a plain or streaming response is stored; what failed isn't."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import agentstate
from agentstate.context import ConversationContext
from agentstate.errors import (
    ConflictError,
    ContextIdError,
    ReadOnlyTurnError,
    StorageUnavailableError,
    TurnClosedError,
    TurnTimeoutError,
)
from agentstate.middleware import ASGIStateMiddleware
from agentstate.scope import StateScope
from agentstate.state.record import decode_record
from agentstate.storage import registry
from tests.servers import free_port

from .conftest import answer, body, for_id, http, never, outside, start


def conversation_of(scope):
    return scope["state"]["conversation"]


async def counting(scope, receive, send):
    """Count visits, answer in one piece."""
    visits = await conversation_of(scope).increment("visits")
    await send(start())
    await send(body(b"%d" % visits))


async def streaming(scope, receive, send):
    """Answer in three pieces, with a change before each."""
    conversation = conversation_of(scope)
    await send(start())
    for n in range(3):
        await conversation.add("assistant", f"chunk {n}")
        await send(body(b"chunk", more=True))
    await send(body())


async def test_state_is_there_for_the_next_request(memory, stored):
    """What one request stored, the next one reads."""
    app = ASGIStateMiddleware(counting, storage=memory)
    assert (await answer(app, for_id()))[1]["body"] == b"1"
    assert (await answer(app, for_id()))[1]["body"] == b"2"
    assert (await answer(app, for_id("other")))[1]["body"] == b"1"
    assert await stored.get_variable("c-1", "visits") == 2


@pytest.mark.parametrize("app", [counting, streaming])
async def test_the_last_message_waits_for_the_commit(storage, app):
    """When a client gets the end of the response, its change is stored; before, nothing of a turn is."""
    seen = []
    context = ConversationContext(storage)

    async def send(message):
        seen.append((message.get("more_body", True), await outside(context.exists("c-1"))))

    await ASGIStateMiddleware(app, storage=storage)(for_id(), never, send)
    assert seen[-1] == (False, True)
    if app is streaming:
        assert [there for more, there in seen if more] == [False] * 4


async def test_a_refused_commit_fails_the_request_before_it_began(memory, stored):
    """A conflict at the end of a plain response sends nothing, so that the server answers with an error."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("n", await conversation.get("n", 0) + 1)
        await outside(stored.set_variable("c-1", "n", 50))
        await send(start())
        await send(body(b"done"))

    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(ConflictError):
        await ASGIStateMiddleware(app, storage=memory)(for_id(), never, send)
    assert sent == []
    assert await stored.get_variable("c-1", "n") == 50


async def test_a_framework_that_hides_the_refusal_doesnt(memory, stored):
    """The error that leaves the middleware is why the commit was refused, not what a framework made of it."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("n", await conversation.get("n", 0) + 1)
        await outside(stored.set_variable("c-1", "n", 50))
        try:
            await send(start())
            await send(body(b"done"))
        except ConflictError as error:
            raise RuntimeError("Caught handled exception, but response already started.") from error

    with pytest.raises(ConflictError):
        await answer(ASGIStateMiddleware(app, storage=memory), for_id())


async def test_nothing_is_read_before_the_first_use(memory):
    """A request that doesn't use its conversation needs no id, no turn and no storage."""

    async def app(scope, receive, send):
        assert agentstate.current() is conversation_of(scope)
        await send(start())
        await send(body(b"ok"))

    await memory.close()
    sent = await answer(ASGIStateMiddleware(app, storage=memory), http())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failed_status_rolls_back(memory, stored, status):
    """A response of 500 or more stores nothing but a failed-turn record, and reaches the client."""

    async def app(scope, receive, send):
        await conversation_of(scope).add("user", "hello")
        await send(start(status))
        await send(body(b"sorry"))

    assert (await answer(ASGIStateMiddleware(app, storage=memory), for_id()))[0]["status"] == status
    assert not await stored.exists("c-1")
    (failure,) = await stored.failed_turns("c-1")
    assert failure["error"] == "agentstate.middleware.asgi.StatusError"
    assert [one["content"] for one in failure["messages"]] == ["hello"]


async def test_a_client_error_is_an_answer_like_any_other(memory, stored):
    """A status below 500 commits."""

    async def app(scope, receive, send):
        await conversation_of(scope).set("asked", value=True)
        await send(start(404))
        await send(body(b"no"))

    await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert await stored.get_variable("c-1", "asked") is True


@pytest.mark.parametrize(("on_error", "left"), [("rollback", []), ("keep_input", ["hi"]), ("commit", ["hi", "hm"])])
async def test_an_exception_does_what_on_error_says(memory, stored, on_error, left):
    """An exception goes on unchanged, and leaves what on_error= says."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.add("user", "hi")
        await conversation.add("assistant", "hm")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await answer(ASGIStateMiddleware(app, storage=memory, on_error=on_error), for_id())
    assert [one.content for one in await stored.get_history("c-1")] == left


@pytest.mark.parametrize(
    ("on_cancel", "chunks", "kept"),
    [("auto", 0, 0), ("auto", 2, 2), ("commit", 0, 1), ("rollback", 2, 0)],
)
@pytest.mark.parametrize("how", ["cancelled", "send raises", "stops"])
async def test_a_client_that_leaves_is_one_case(memory, stored, on_cancel, chunks, kept, how):
    """However the server shows that the client left, on_cancel= says what stays."""
    reached = asyncio.Event()

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await send(start())
        for n in range(chunks):
            await conversation.add("assistant", f"chunk {n}")
            await send(body(b"chunk", more=True))
        if not chunks:
            await conversation.add("assistant", "unseen")
        if how == "stops":
            return
        reached.set()
        if how == "cancelled":
            await never()
        await send(body(b"last", more=True))

    async def send(message):
        if message.get("body") == b"last":
            raise OSError("gone")

    wrapped = ASGIStateMiddleware(app, storage=memory, on_cancel=on_cancel)
    task = asyncio.create_task(wrapped(for_id(), never, send))
    if how == "cancelled":
        await reached.wait()
        task.cancel()
    await asyncio.wait([task])
    assert (
        task.cancelled()
        if how == "cancelled"
        else isinstance(task.exception(), OSError if how != "stops" else type(None))
    )
    assert len(await stored.get_history("c-1")) == kept


async def test_cancelled_in_the_middle_of_send_counts_as_seen(memory, stored):
    """A chunk whose sending was cancelled may have been seen, so what led to it stays."""
    sending = asyncio.Event()

    async def send(message):
        if message["type"] == "http.response.body":
            sending.set()
            await never()

    task = asyncio.create_task(ASGIStateMiddleware(streaming, storage=memory)(for_id(), never, send))
    await sending.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [one.content for one in await stored.get_history("c-1")] == ["chunk 0"]


async def test_a_client_that_stops_reading_doesnt_keep_the_turn(memory, stored):
    """A send that blocks for idle= seconds ends the turn; later use says so."""
    blocked = asyncio.Event()
    late = []

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("n", 1)
        await send(start())
        await send(body(b"chunk", more=True))
        with pytest.raises(TurnClosedError) as caught:
            await conversation.set("n", 2)
        late.append(caught.value)

    async def send(message):
        if message["type"] == "http.response.body":
            await blocked.wait()

    task = asyncio.create_task(ASGIStateMiddleware(app, storage=memory, idle=0.01)(for_id(), never, send))
    await asyncio.sleep(0)  # the request is first
    async with asyncio.timeout(5):
        async with stored.turn("c-1") as conversation:
            assert await conversation.get("n") == 1
        blocked.set()
        await task
    assert late


async def test_cancelled_while_waiting_gives_the_place_up(memory, stored):
    """A request that is cancelled while it waits for its turn leaves nothing behind."""
    app = ASGIStateMiddleware(counting, storage=memory)
    async with stored.turn("c-1"):
        task = asyncio.create_task(outside(answer(app, for_id())))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert (await answer(app, for_id()))[1]["body"] == b"1"


async def test_requests_on_one_conversation_take_turns(memory, stored):
    """Twenty requests at once that read and write one variable lose nothing."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)
        await send(start())
        await send(body(b"ok"))

    wrapped = ASGIStateMiddleware(app, storage=memory)
    await asyncio.gather(*(answer(wrapped, for_id()) for _ in range(20)))
    assert await stored.get_variable("c-1", "n") == 20


async def test_tasks_of_one_request_share_its_turn(memory, stored):
    """First use from several tasks at once takes one turn."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await asyncio.gather(*(conversation.increment("n") for _ in range(10)))
        await send(start())
        await send(body(b"ok"))

    await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert (await stored.get("c-1")).version == 1
    assert await stored.get_variable("c-1", "n") == 10


async def test_current_and_nested_handlers_are_in_the_turn(memory, stored):
    """current() is the request's conversation, and a handler called inside runs in a frame of its turn."""

    @agentstate.stateful(storage=memory)
    async def handler(task, conversation: agentstate.Conversation):
        await conversation.set("nested", await conversation.get("n"))
        assert await agentstate.current().get("n") == 1

    async def app(scope, receive, send):
        await agentstate.current().set("n", 1)
        await asyncio.create_task(handler({"context_id": "c-1"}))
        assert await conversation_of(scope).get("nested") == 1
        await send(start())
        await send(body(b"ok"))

    async with asyncio.timeout(5):
        await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert (await stored.get("c-1")).version == 1
    assert await stored.get_variable("c-1", "nested") == 1


async def test_first_use_in_another_task_is_seen_by_all(memory):
    """A turn that a task of the request took is joined by handlers that other tasks of it call."""

    @agentstate.stateful(storage=memory)
    async def handler(task, conversation: agentstate.Conversation):
        return await conversation.get("n")

    async def app(scope, receive, send):
        await asyncio.create_task(conversation_of(scope).set("n", 7))
        assert await handler({"context_id": "c-1"}) == 7
        await send(start())
        await send(body(b"ok"))

    async with asyncio.timeout(5):
        await answer(ASGIStateMiddleware(app, storage=memory), for_id())


async def test_an_app_called_inside_a_turn_joins_it(memory, stored):
    """A handler that calls its own application in process doesn't wait for itself."""
    app = ASGIStateMiddleware(counting, storage=memory)
    async with asyncio.timeout(5), stored.turn("c-1") as conversation:
        await conversation.set("visits", 4)
        assert (await answer(app, for_id()))[1]["body"] == b"5"
        assert await conversation.get("visits") == 5
    assert await stored.get_variable("c-1", "visits") == 5


async def test_commit_publishes_and_goes_on(memory, stored):
    """commit() in the middle keeps what was done, whatever happens then."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("paid", value=True)
        await conversation.commit()
        await ConversationContext(memory).commit()
        await conversation.set("shipped", value=True)
        raise LookupError

    with pytest.raises(LookupError):
        await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert await stored.get_variables("c-1") == {"paid": True}


async def test_work_after_the_response_needs_a_turn_of_its_own(memory, stored):
    """After the last message plain calls raise, and a turn of its own works."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("n", 1)
        await send(start())
        await send(body(b"ok"))
        with pytest.raises(TurnClosedError, match="turn of its own"):
            await conversation.get("n")
        async with conversation.turn() as later:
            await later.set("later", value=True)

    await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert await stored.get_variables("c-1") == {"n": 1, "later": True}


async def test_all_turns_of_a_request_have_one_correlation_id(memory, stored):
    """The journal tells what belongs to one request, also where it has several turns."""

    @agentstate.stateful(storage=memory, key="other")
    async def handler(request, conversation: agentstate.Conversation):
        await conversation.set("n", 1)

    async def app(scope, receive, send):
        await handler({})
        await counting(scope, receive, send)
        async with conversation_of(scope).turn() as later:
            await later.set("later", value=True)

    await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    records = [
        decode_record(one.record)["correlation"]
        for name in ("other", "c-1")
        for one in await memory.journal(StateScope.conversation(name))
    ]
    assert len(records) == 3
    assert len(set(records)) == 1


async def test_other_conversations_join_the_turn(memory, stored):
    """What a request changes elsewhere is committed with its own change."""

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.context.set_variable("other", "n", 1)
        raise LookupError

    with pytest.raises(LookupError):
        await answer(ASGIStateMiddleware(app, storage=memory), for_id())
    assert not await stored.exists("other")


async def test_server_sent_events_hold_no_turn(memory, stored):
    """What was done before an event stream is stored when it begins; in it each call is atomic."""
    seen = []

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await conversation.set("before", 1)
        await send(start(200, (b"Content-Type", b"text/event-stream; charset=utf-8")))
        for n in range(2):
            async with conversation.turn() as turn:
                await turn.set("n", n)
                assert await agentstate.current().get("n") == n
            await conversation.increment("events")
            await send(body(b"data: x\n\n", more=True))
        await send(body())

    async def look(message):
        async with asyncio.timeout(5), stored.turn("c-1") as conversation:
            seen.append((message["type"], await conversation.variables()))

    async def send(message):
        await outside(look(message))

    await ASGIStateMiddleware(app, storage=memory)(for_id(), never, send)
    assert seen == [
        ("http.response.start", {"before": 1}),
        ("http.response.body", {"before": 1, "n": 0, "events": 1}),
        ("http.response.body", {"before": 1, "n": 1, "events": 2}),
        ("http.response.body", {"before": 1, "n": 1, "events": 2}),
    ]


async def test_websockets_take_a_turn_for_each_message(memory, stored):
    """A websocket holds no turn between its messages."""
    inbox = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": str(n)} for n in range(3))]

    async def app(scope, receive, send):
        conversation = conversation_of(scope)
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                async with conversation.turn() as turn:
                    await turn.add("user", message["text"])
                    await turn.set("n", await turn.get("n", 0) + 1)

    async def look():
        async with asyncio.timeout(5), stored.turn("c-1"):
            return inbox.pop(0) if inbox else {"type": "websocket.disconnect"}

    async def receive():
        return await outside(look())

    await answer(ASGIStateMiddleware(app, storage=memory), for_id() | {"type": "websocket"}, receive)
    assert await stored.get_variable("c-1", "n") == 3
    assert len(await stored.get_history("c-1")) == 3


async def test_lifespan_closes_the_stores(tmp_path):
    """When the server shuts down, stores are closed before it hears that the application has."""
    url = f"sqlite:///{tmp_path}/state.db"
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await counting(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def receive():
        return inbox.pop(0)

    wrapped = ASGIStateMiddleware(app, url=url)
    await answer(wrapped, for_id())
    store = wrapped.requests.binding.resolve().store
    sent = await answer(wrapped, {"type": "lifespan"}, receive)
    assert [one["type"] for one in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(agentstate.errors.StorageClosedError):
        await store.storage.ping()


async def test_settings_reach_the_turn(memory, stored):
    """turns= and wait= are those of the request's turn."""
    with pytest.raises(ReadOnlyTurnError):
        await answer(ASGIStateMiddleware(counting, storage=memory, turns="read"), for_id())
    async with stored.turn("c-1"):
        with pytest.raises(TurnTimeoutError):
            await outside(answer(ASGIStateMiddleware(counting, storage=memory, wait=0.01), for_id()))


@pytest.mark.parametrize("declared", [False, True])
async def test_an_unreachable_storage(declared):
    """Without its storage a request fails, unless it was declared to run without."""
    storage = registry.create("valkey", {"url": f"valkey://127.0.0.1:{free_port()}", "key_prefix": "test:"})
    app = ASGIStateMiddleware(counting, storage=storage, on_unavailable="run_without" if declared else "raise")
    if declared:
        assert (await answer(app, for_id()))[1]["body"] == b"1"
    else:
        with pytest.raises(StorageUnavailableError):
            await answer(app, for_id())
    await storage.close()


async def test_ids_come_from_headers_or_key_never_from_the_url(memory, stored):
    """The first header that is sent counts, key= instead of all; without any a typed error names them."""
    app = ASGIStateMiddleware(counting, storage=memory)
    await answer(app, http([("X-Session-Id", "grüße")]))
    assert await stored.get_variable("grüße", "visits") == 1
    with pytest.raises(ContextIdError, match="x-context-id or x-session-id"):
        await answer(app, http(query_string=b"context_id=c-1", path="/c-1"))
    with pytest.raises(ContextIdError, match="2 different"):
        await answer(app, http([("x-context-id", "a"), ("x-context-id", "b")]))
    with pytest.raises(ContextIdError, match="UTF-8"):
        await answer(app, http() | {"headers": [(b"x-context-id", b"\xff")]})
    keyed = ASGIStateMiddleware(counting, storage=memory, key=lambda scope: scope["path"].strip("/"))
    await answer(keyed, http([("x-context-id", "c-1")], path="/keyed"))
    assert await stored.get_variable("keyed", "visits") == 1
    assert not await stored.exists("c-1")


async def test_anyio_cancellation_carries_the_commit_through(tmp_path):
    """anyio cancels again on every pass of the loop; what the client has seen is stored all the same."""
    import anyio

    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})
    app = ASGIStateMiddleware(streaming, storage=storage)
    async with anyio.create_task_group() as group:

        async def send(message):
            if message["type"] == "http.response.body":
                group.cancel_scope.cancel()
                await anyio.sleep_forever()

        group.start_soon(app, for_id(), never, send)
    assert len(await ConversationContext(storage).get_history("c-1")) == 1
    await storage.close()


def test_no_web_framework_is_imported():
    """The middleware needs neither Starlette nor FastAPI."""
    code = (
        "import sys, agentstate.middleware.asgi, agentstate.middleware;"
        "sys.exit(any(name.partition('.')[0] in ('starlette', 'fastapi', 'yaml', 'apsw') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
