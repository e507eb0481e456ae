"""A client that speaks ASGI message by message, and what is stored after it has."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from agentstate.context import ConversationContext


def http(headers=(), **more):
    """Return the ASGI scope of a request."""
    pairs = [(key.encode(), value.encode()) for key, value in headers]
    return {"type": "http", "method": "POST", "path": "/", "headers": pairs, **more}


def for_id(context_id="c-1", **more):
    """Return the scope of a request that names its conversation."""
    return http([("x-context-id", context_id)], **more)


async def never():
    """Receive nothing: the client stays."""
    await asyncio.Event().wait()


async def answer(app, scope, receive=never):
    """Return the messages that an application sends."""
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def start(status=200, *headers):
    """Return the first message of a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    """Return a piece of a response."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def outside(work):
    """Await something as another request would: not in the turn of the code that asks."""
    return await asyncio.create_task(work, context=contextvars.Context())


@pytest.fixture
def stored(memory):
    """A context that sees what is really stored."""
    return ConversationContext(memory)
