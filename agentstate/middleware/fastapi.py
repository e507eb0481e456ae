"""FastAPI's dependency: ``Annotated[Conversation, Depends(conversation)]``.

Behind `ASGIStateMiddleware` it gives the middleware's conversation, and everything said there
holds. Without the middleware the endpoint has a turn of its own, taken at the first use and
committed when the endpoint has returned, before anything of the response is sent: what a client
has seen is stored. An exception that the endpoint raises, an ``HTTPException`` too, rolls back;
a response that it *returns* is an answer, whatever its status. A streaming response begins
after the commit: it can open turns of its own with ``async with conversation.turn()``, and to
hold one turn over the whole stream takes the middleware. On a websocket each call is atomic by
itself.
"""
# No `from __future__ import annotations` here: FastAPI must see the annotations themselves.

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

from agentstate.conversation import Conversation
from agentstate.errors import MissingDependencyError
from agentstate.middleware.identity import HEADERS, said
from agentstate.middleware.presence import Requests

try:
    from fastapi import Depends
    from starlette.requests import HTTPConnection
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette"):
        raise
    raise MissingDependencyError("FastAPI is not installed.", remedy="Run: pip install 'fastapi>=0.121'") from error

if "scope" not in inspect.signature(Depends).parameters:
    raise MissingDependencyError(
        "This FastAPI ends dependencies after the response was sent, when it is too late to commit.",
        remedy="Run: pip install 'fastapi>=0.121'",
    )

__all__ = ["conversation", "conversation_for"]

Dependency = Callable[..., Coroutine[Any, Any, Conversation]]


def conversation_for(
    *,
    key: Callable[[Mapping[str, Any]], str] | None = None,
    headers: Sequence[str] = HEADERS,
    owner: Callable[[Mapping[str, Any]], str | None] | None = None,
    name: str = "fastapi",
    **settings: Any,
) -> Dependency:
    """Return a dependency that gives an endpoint its conversation in a turn of its own.

    ::

        Support = Annotated[Conversation, Depends(conversation_for(url="sqlite:///support.db"))]

        @app.post("/support")
        async def support(conversation: Support) -> int:
            return await conversation.increment("questions")

    Args:
        key: the conversation's id: a function of the ASGI scope.
        headers: headers that hold the id, unless ``key`` does; the first that is sent counts.
        owner: whose conversation it is: a function of the ASGI scope, instead of ``scope["user"]``.
        name: what its turns are called in messages and the journal, and its block in the configuration file.
        settings: as for `stateful`: ``storage``, ``url``, ``ttl``, ``turns``, ``wait``, ``on_error``, …
    """
    return _dependency(Requests(said(key, headers), owner, name, settings), own=True)


def _dependency(requests: Requests, *, own: bool) -> Dependency:
    async def taken(connection: HTTPConnection) -> AsyncGenerator[Conversation]:
        there = connection.scope.get("state", {}).get("conversation")
        if isinstance(there, Conversation) and not own:
            yield there
            return
        with requests.present(connection.scope) as context:
            context.per_call = connection.scope["type"] == "websocket"
            try:
                yield context.here
            except BaseException as error:
                await context.late.end(error)
                raise
            await context.late.end()

    # Ends before the response is sent, however the endpoint declares the outer one.
    async def conversation(turn: Annotated[Conversation, Depends(taken, scope="function")]) -> Conversation:
        return turn

    return conversation


conversation = _dependency(Requests(said(None, HEADERS), None, "fastapi", {}), own=False)
"""The dependency: the middleware's conversation, else one of its own on the configured storage."""
