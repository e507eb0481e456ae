"""Whose request it is: the user of the ASGI scope owns the conversation, and nobody else sees it."""

from __future__ import annotations

import pytest

import agentstate
from agentstate.errors import (
    ConfigError,
    ContextNotFoundError,
    TurnError,
)
from agentstate.middleware import ASGIStateMiddleware
from agentstate.principal import principal

from .conftest import answer, for_id
from .test_asgi import counting


class User:
    """What authentication middleware puts into the scope."""

    def __init__(self, name):
        self.is_authenticated = bool(name)
        self.display_name = self.identity = name


async def test_a_conversation_belongs_to_the_user_of_the_scope(memory, stored):
    """Somebody else gets what an unknown id gets; so does somebody who hasn't signed in."""
    app = ASGIStateMiddleware(counting, storage=memory)
    await answer(app, for_id(user=User("alice")))
    assert (await stored.get("c-1")).user_id == "alice"
    for other in ("mallory", ""):
        with pytest.raises(ContextNotFoundError):
            await answer(app, for_id(user=User(other)))
    assert (await answer(app, for_id(user=User("alice"))))[1]["body"] == b"2"


async def test_handlers_inside_know_the_user(memory):
    """The principal of the request is that of the handlers it calls, and of nobody afterwards."""
    seen = []

    async def app(scope, receive, send):
        seen.append(principal.get())
        await counting(scope, receive, send)

    await answer(ASGIStateMiddleware(app, storage=memory), for_id(user=User("alice")))
    await answer(ASGIStateMiddleware(app, storage=memory, owner=lambda scope: "bob"), for_id("c-2"))
    await answer(ASGIStateMiddleware(app, storage=memory), for_id("c-3"))
    assert seen == ["alice", "bob", None]
    assert principal.get() is None
    with pytest.raises(TurnError):
        agentstate.current()


async def test_authentication_inside_is_refused(memory):
    """A user who appears only inside would be unknown to the handlers: that is an error, not a hole."""

    async def authenticating(scope, receive, send):
        scope["user"] = User("alice")
        await counting(scope, receive, send)

    with pytest.raises(ConfigError, match="authentication around it"):
        await answer(ASGIStateMiddleware(authenticating, storage=memory), for_id())
