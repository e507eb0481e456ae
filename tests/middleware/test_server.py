"""A real server, real sockets: what a client that left has seen is stored, and its turn is free."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from agentstate import ConversationContext
from agentstate.middleware import ASGIStateMiddleware
from agentstate.storage import registry

HEADERS = {"x-context-id": "c-1"}


async def visit(request):
    return JSONResponse({"visits": await request.state.conversation.increment("visits")})


async def stream(request):
    conversation = request.state.conversation

    async def chunks():
        for n in range(1000):
            await conversation.add("assistant", str(n))
            yield f"{n}\n"
            await asyncio.sleep(0.005)

    return StreamingResponse(chunks())


async def failing(request):
    await request.state.conversation.set("n", 1)
    raise LookupError


@contextlib.asynccontextmanager
async def serving(app):
    """Serve an application on a free port; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture(params=["memory", "sqlite"])
async def service(request, tmp_path):
    """An address, and what is stored behind it."""
    options = {"url": f"sqlite:///{tmp_path}/state.db"} if request.param == "sqlite" else {}
    storage = registry.create(request.param, options)
    routes = [
        Route("/visit", visit, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/failing", failing, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(ASGIStateMiddleware, storage=storage)
    async with serving(app) as address:
        yield address, ConversationContext(storage)
    await storage.close()


async def test_requests_at_once(service):
    """Thirty clients at once count to thirty."""
    address, stored = service
    async with httpx.AsyncClient(base_url=address, headers=HEADERS) as client:
        replies = await asyncio.gather(*(client.post("/visit") for _ in range(30)))
    assert sorted(reply.json()["visits"] for reply in replies) == list(range(1, 31))
    assert await stored.get_variable("c-1", "visits") == 30


async def test_a_client_that_hangs_up(service):
    """A client that leaves a stream finds what it has seen, and the conversation is free."""
    address, stored = service
    async with httpx.AsyncClient(base_url=address, headers=HEADERS) as client:
        async with client.stream("POST", "/stream") as reply:
            seen = await anext(reply.aiter_lines())
        async with asyncio.timeout(10):
            assert (await client.post("/visit")).json() == {"visits": 1}
    assert seen == "0"
    kept = [message.content for message in await stored.get_history("c-1")]
    assert kept[:1] == ["0"]
    assert len(kept) < 1000
    assert await stored.failed_turns("c-1") == []


async def test_an_exception_is_a_500_and_leaves_nothing(service):
    """The server answers 500, and the next request starts from what was."""
    address, stored = service
    async with httpx.AsyncClient(base_url=address, headers=HEADERS) as client:
        assert (await client.post("/failing")).status_code == 500
        assert not await stored.exists("c-1")
        assert (await client.post("/visit")).json() == {"visits": 1}
    assert json.dumps(await stored.failed_turns("c-1"))
