"""FastAPI's dependency, with and without the middleware."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware

import agentstate
from agentstate import Conversation
from agentstate.errors import ConflictError, TurnClosedError
from agentstate.middleware import ASGIStateMiddleware
from agentstate.middleware.fastapi import conversation, conversation_for

from .conftest import answer, for_id, outside

WITH, WITHOUT = "with the middleware", "without it"


async def ask(app, path, context_id="c-1", **headers):
    """Return the response to a POST."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers={"x-context-id": context_id, **headers})


@pytest.fixture(params=[WITH, WITHOUT])
def wired(request, memory):
    """An application, what its endpoints depend on, and whether there is a middleware."""
    app = FastAPI()
    if request.param == WITH:
        app.add_middleware(ASGIStateMiddleware, storage=memory)
        return app, conversation
    return app, conversation_for(storage=memory)


async def test_an_endpoint_has_its_conversation(wired, stored):
    """Endpoints, their sub-dependencies and current() have one and the same turn."""
    app, dependency = wired

    async def visitor(here: Annotated[Conversation, Depends(dependency)]):
        return await here.increment("visits")

    @app.post("/")
    async def endpoint(
        here: Annotated[Conversation, Depends(dependency)], visits: Annotated[int, Depends(visitor)]
    ) -> dict[str, int]:
        await agentstate.current().set("last", visits)
        return {"visits": visits, "last": await here.get("last")}

    assert (await ask(app, "/")).json() == {"visits": 1, "last": 1}
    assert (await ask(app, "/")).json() == {"visits": 2, "last": 2}
    assert (await stored.get("c-1")).version == 2
    assert "here" not in str(app.openapi())


async def test_the_reply_waits_for_the_commit(wired, stored):
    """When the first byte of a reply is sent, its change is stored."""
    app, dependency = wired
    seen = []

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(dependency)]) -> None:
        await here.set("n", 1)

    async def send(message):
        seen.append((message["type"], await outside(stored.get_variable("c-1", "n"))))

    async def receive():
        return {"type": "http.request"}

    await app(for_id(query_string=b"", client=("127.0.0.1", 1), server=("x", 80), scheme="http"), receive, send)
    assert seen == [("http.response.start", 1), ("http.response.body", 1)]


async def test_synchronous_endpoints_reach_it_through_a_handler(wired, memory, stored):
    """An endpoint without async runs in a thread; a synchronous handler that it calls is in the request's turn."""
    app, dependency = wired

    @agentstate.stateful(storage=memory)
    def handler(task, context, context_id):
        return context.increment(context_id, "n")

    async def before(here: Annotated[Conversation, Depends(dependency)]) -> None:
        await here.set("n", 10)

    @app.post("/")
    def endpoint(_: Annotated[None, Depends(before)]) -> int:
        return handler({"context_id": "c-1"})

    async with asyncio.timeout(10):
        assert (await ask(app, "/")).json() == 11
    assert (await stored.get("c-1")).version == 1


@pytest.mark.parametrize("how", ["HTTPException", "another"])
async def test_an_exception_rolls_back(wired, stored, how):
    """What an endpoint raises leaves nothing, where the exception is what ends the request."""
    app, dependency = wired

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(dependency)]) -> None:
        await here.set("n", 1)
        raise HTTPException(503) if how == "HTTPException" else LookupError

    assert (await ask(app, "/")).status_code >= 500
    assert not await stored.exists("c-1")
    assert len(await stored.failed_turns("c-1")) == 1


async def test_a_refused_commit_is_no_success(wired, stored):
    """A conflict at the commit is the server's error, and nothing of the reply was sent."""
    app, dependency = wired

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(dependency)]) -> None:
        await here.set("n", await here.get("n", 0) + 1)
        await outside(stored.set_variable("c-1", "n", 50))

    assert (await ask(app, "/")).status_code == 500
    assert await stored.get_variable("c-1", "n") == 50


async def test_a_conflict_can_be_mapped(memory, stored):
    """An exception handler turns the dependency's conflict into an answer of its own."""
    app = FastAPI()

    @app.exception_handler(ConflictError)
    async def conflict(request, error):
        return JSONResponse({"try": "again"}, 409)

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(conversation_for(storage=memory))]) -> None:
        await here.set("n", await here.get("n", 0) + 1)
        await outside(stored.set_variable("c-1", "n", 50))

    assert (await ask(app, "/")).status_code == 409


async def test_invalid_requests_take_no_turn(wired, stored):
    """A request that doesn't validate leaves no trace."""
    app, dependency = wired

    @app.post("/{number}")
    async def endpoint(number: int, here: Annotated[Conversation, Depends(dependency)]) -> None:
        await here.set("n", number)

    assert (await ask(app, "/one")).status_code == 422
    assert await stored.failed_turns("c-1") == []


async def test_streams(wired, stored):
    """With the middleware a stream has the request's turn; without it, turns of its own."""
    app, dependency = wired
    held = dependency is conversation
    closed = []

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(dependency)]) -> StreamingResponse:
        await here.set("asked", value=True)

        async def chunks():
            yield b"one"
            if not held:
                with pytest.raises(TurnClosedError, match="turn of its own"):
                    await here.get("asked")
                closed.append(True)
            async with here.turn() as turn:
                await turn.add("assistant", "one two")
            yield b"two"

        return StreamingResponse(chunks())

    assert (await ask(app, "/")).text == "onetwo"
    assert bool(closed) is not held
    assert (await stored.get("c-1")).version == (1 if held else 2)
    assert len(await stored.get_history("c-1")) == 1


@pytest.mark.parametrize("kind", [WITH, WITHOUT])
async def test_websockets(memory, stored, kind):
    """On a websocket nothing is held between messages."""
    app = FastAPI()
    if kind == WITH:
        app.add_middleware(ASGIStateMiddleware, storage=memory)
    dependency = conversation if kind == WITH else conversation_for(storage=memory)

    @app.websocket("/")
    async def endpoint(socket: WebSocket, here: Annotated[Conversation, Depends(dependency)]) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            async with here.turn() as turn:
                await turn.add("user", text)
            await socket.send_text(str(await here.increment("n")))

    inbox = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": "hi"} for _ in range(2))]

    async def look():
        async with asyncio.timeout(5), stored.turn("c-1"):
            return inbox.pop(0) if inbox else {"type": "websocket.disconnect", "code": 1000}

    async def receive():
        return await outside(look())

    sent = await answer(app, for_id(query_string=b"") | {"type": "websocket"}, receive)
    assert [one["text"] for one in sent if "text" in one] == ["1", "2"]
    assert len(await stored.get_history("c-1")) == 2


async def test_dependencies_with_settings_are_their_own(memory, tmp_path):
    """conversation_for() uses its own storage also behind a middleware."""
    app = FastAPI()
    app.add_middleware(ASGIStateMiddleware, storage=memory)
    other = conversation_for(url=f"sqlite:///{tmp_path}/other.db", key=lambda scope: "fixed")

    @app.post("/")
    async def endpoint(
        request: Request,
        here: Annotated[Conversation, Depends(conversation)],
        there: Annotated[Conversation, Depends(other)],
    ) -> list[int]:
        assert request.state.conversation is here
        return [await here.increment("n"), await there.increment("n", 10)]

    assert (await ask(app, "/", "a")).json() == [1, 10]
    assert (await ask(app, "/", "b")).json() == [1, 20]
    await agentstate.aclose()


async def test_without_a_middleware_the_configured_storage_is_used(tmp_path, monkeypatch):
    """Depends(conversation) alone keeps its state where the configuration says."""
    monkeypatch.setenv("AGENTSTATE_URL", f"sqlite:///{tmp_path}/state.db")
    app = FastAPI()

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(conversation)]) -> int:
        return await here.increment("n")

    assert [(await ask(app, "/")).json() for _ in range(2)] == [1, 2]
    assert (tmp_path / "state.db").exists()
    await agentstate.aclose()


class Basic(AuthenticationBackend):
    """Whoever says a name is that user."""

    async def authenticate(self, conn):
        name = conn.headers.get("x-user")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


async def test_starlettes_authentication_is_the_principal(wired):
    """The signed-in user owns the conversation; others get what an unknown id gets."""
    app, dependency = wired
    app.add_middleware(AuthenticationMiddleware, backend=Basic())

    @app.post("/")
    async def endpoint(here: Annotated[Conversation, Depends(dependency)]) -> int:
        return await here.increment("n")

    assert (await ask(app, "/", **{"x-user": "alice"})).json() == 1
    assert (await ask(app, "/", **{"x-user": "mallory"})).status_code == 500
    assert (await ask(app, "/")).status_code == 500
    assert (await ask(app, "/", **{"x-user": "alice"})).json() == 2
