"""FastAPI endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterable  # noqa: TC003 - FastAPI evaluates it
from typing import TYPE_CHECKING, Annotated

import pytest

from agentstate import ConversationContext, stateful

from .hidden import HiddenParameters

WHY = "FastAPI isn't here: tests/matrix/run has it"
fastapi = pytest.importorskip("fastapi", reason=WHY)
httpx = pytest.importorskip("httpx", reason=WHY)

if TYPE_CHECKING:
    from agentstate import Conversation

pytestmark = pytest.mark.matrix


def caller(request: fastapi.Request):
    """Who asks."""
    return request.headers["x-user"]


async def ask(app, method, path, **extra):
    """Return the response to a request, without a server."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **extra)


class TestHiddenParameters(HiddenParameters):
    """Each kind of handler as an endpoint."""

    def schema(self, handler):
        app = fastapi.FastAPI()
        app.post("/add")(handler)
        (operation,) = app.openapi()["paths"]["/add"].values()
        assert "requestBody" not in operation
        return {one["name"] for one in operation["parameters"]}, operation["description"]

    async def call(self, handler, **arguments):
        app = fastapi.FastAPI()
        app.post("/add")(handler)
        return (await ask(app, "POST", "/add", params=arguments)).json()


class TestEndpoints:
    """Endpoints that take from the request what they need."""

    @pytest.fixture
    def app(self, memory):
        """An application with one endpoint of each kind."""
        app = fastapi.FastAPI()
        state = stateful(storage=memory)

        @app.post("/rooms/{context_id}")
        @state
        async def bump(
            context_id: str,
            conversation: Conversation,
            user: Annotated[str, fastapi.Depends(caller)],
            amount: int = 1,
        ) -> dict[str, int]:
            return {user: await conversation.increment("n", amount)}

        @app.get("/rooms/{context_id}")
        @state
        async def stream(context_id: str, conversation: Conversation) -> AsyncIterable[int]:
            for _ in range(3):
                yield await conversation.increment("n")

        @app.delete("/rooms/{context_id}", status_code=204)
        @state
        async def clear(context_id: str, conversation: Conversation) -> None:
            await conversation.clear()

        return app

    async def test_a_path_names_the_state(self, app, memory):
        """A ``context_id`` beside a conversation is the caller's; dependencies and defaults go on working."""
        shown = app.openapi()["paths"]["/rooms/{context_id}"]["post"]["parameters"]
        assert [one["name"] for one in shown] == ["context_id", "amount"]
        for amount, total in ((3, 3), (4, 7)):
            response = await ask(app, "POST", "/rooms/a", params={"amount": amount}, headers={"x-user": "ann"})
            assert response.json() == {"ann": total}
        assert await ConversationContext(memory).get_variable("a", "n") == 7

    async def test_a_stream_is_one_turn(self, app, memory):
        """An endpoint that yields holds its turn until the last item."""
        assert (await ask(app, "GET", "/rooms/b")).text.split() == ["1", "2", "3"]
        state = await ConversationContext(memory).get("b")
        assert (state.version, state.variables) == (1, {"n": 3})

    async def test_an_endpoint_without_a_body(self, app, memory):
        """``-> None`` as text stays ``None``, as a status of 204 demands."""
        await ConversationContext(memory).set_variable("c", "n", 1)
        assert (await ask(app, "DELETE", "/rooms/c")).status_code == 204
        assert not await ConversationContext(memory).exists("c")
