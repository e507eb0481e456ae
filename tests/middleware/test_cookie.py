"""Sessions that the server makes: ids nobody can guess, choose or take over."""

from __future__ import annotations

import re

import pytest

from agentstate.errors import ConfigError, ContextIdError
from agentstate.middleware import ASGIStateMiddleware

from .conftest import answer, body, http, start
from .test_asgi import conversation_of, counting
from .test_asgi_users import User

MADE = re.compile(rb"session=([\w-]{32}); Path=/; HttpOnly; SameSite=Lax; Secure")


def with_cookie(session, **more):
    return http([("cookie", f"theme=dark; session={session}; x=y")], **more)


def made_in(sent):
    """Return the id that a response makes, if it makes one."""
    found = [value for key, value in sent[0]["headers"] if key == b"set-cookie"]
    assert len(found) <= 1
    return MADE.fullmatch(found[0]).group(1).decode() if found else None


@pytest.fixture
def app(memory):
    return ASGIStateMiddleware(counting, storage=memory, cookie="session")


async def test_the_server_makes_the_id_and_knows_it_again(app):
    """A new client gets an id of 192 random bits, once, and its state with it."""
    sent = await answer(app, http())
    session = made_in(sent)
    again = await answer(app, with_cookie(session))
    assert made_in(again) is None
    assert again[1]["body"] == b"2"
    assert made_in(await answer(app, http())) not in (None, session)


@pytest.mark.parametrize("sent", ["A" * 32, "short", "../../etc/passwd", "", '"quoted"', "A" * 400])
async def test_an_id_that_was_not_made_here_is_not_taken(app, stored, sent):
    """A client can't choose its id: an unknown one is replaced by a new one."""
    first = await answer(app, with_cookie(sent))
    assert made_in(first) not in (None, sent)
    assert first[1]["body"] == b"1"
    assert not sent or not await stored.exists(sent)


async def test_headers_name_no_session(app):
    """Where the server makes the ids, a header doesn't say one."""
    session = made_in(await answer(app, http()))
    assert made_in(await answer(app, http([("x-context-id", session)]))) is not None


async def test_somebody_elses_session_is_unknown(app):
    """A session that belongs to a user is a new one for everybody else."""
    session = made_in(await answer(app, http(user=User("alice"))))
    assert made_in(await answer(app, with_cookie(session, user=User("alice")))) is None
    for other in ("mallory", ""):
        sent = await answer(app, with_cookie(session, user=User(other)))
        assert made_in(sent) is not None
        assert sent[1]["body"] == b"1"


async def test_an_anonymous_session_goes_on_after_signing_in(app):
    """Who signs in keeps what was said before."""
    session = made_in(await answer(app, http(user=User(""))))
    assert (await answer(app, with_cookie(session, user=User("alice"))))[1]["body"] == b"2"


async def test_an_unused_conversation_sets_no_cookie(memory):
    """A response that has nothing to do with state tells the client nothing."""

    async def app(scope, receive, send):
        await send(start(200, (b"content-length", b"2")))
        await send(body(b"ok"))

    assert made_in(await answer(ASGIStateMiddleware(app, storage=memory, cookie="session"), http())) is None


async def test_a_stream_tells_its_id_before_it_is_used(memory, stored):
    """A response that may use its conversation later gives the client the id at once."""

    async def app(scope, receive, send):
        await send(start())
        await send(body(b"chunk", more=True))
        await conversation_of(scope).set("n", 1)
        await send(body())

    session = made_in(await answer(ASGIStateMiddleware(app, storage=memory, cookie="session"), http()))
    assert await stored.get_variable(session, "n") == 1


async def test_too_late_for_a_new_id_is_an_error(memory):
    """State under an id that the client will never learn is refused."""

    async def app(scope, receive, send):
        await send(start(200, (b"content-length", b"2")))
        await send(body(b"o", more=True))
        await conversation_of(scope).set("n", 1)

    with pytest.raises(ContextIdError, match="without a cookie"):
        await answer(ASGIStateMiddleware(app, storage=memory, cookie="session"), http())


async def test_websockets_get_their_session_when_accepted(memory, stored):
    """The handshake's answer holds the cookie, and the conversation is its."""

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await conversation_of(scope).set("n", 1)

    wrapped = ASGIStateMiddleware(app, storage=memory, cookie="session")
    session = made_in(await answer(wrapped, http() | {"type": "websocket"}))
    assert await stored.get_variable(session, "n") == 1
    assert "headers" not in (await answer(wrapped, with_cookie(session) | {"type": "websocket"}))[0]


async def test_plain_http_is_asked_for(memory):
    """Only secure=False leaves the Secure attribute out."""
    app = ASGIStateMiddleware(counting, storage=memory, cookie="sid", secure=False)
    ((_, cookie),) = (await answer(app, http()))[0]["headers"]
    assert re.fullmatch(rb"sid=[\w-]{32}; Path=/; HttpOnly; SameSite=Lax", cookie)


def test_two_places_for_the_id_are_an_error(memory):
    """key= and cookie= contradict each other."""
    with pytest.raises(ConfigError, match="Keep one"):
        ASGIStateMiddleware(counting, storage=memory, cookie="session", key=lambda scope: "x")


@pytest.mark.parametrize("name", ["a b", "a;b", "a=b", "", "sess\r\nx"])
def test_a_name_that_is_no_cookies_is_an_error(memory, name):
    """A cookie's name can't break out of its header."""
    with pytest.raises(ConfigError, match="name of a cookie"):
        ASGIStateMiddleware(counting, storage=memory, cookie=name)
