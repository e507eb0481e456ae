"""State for any ASGI application, whatever framework it is written in.

``scope["state"]["conversation"]`` and `agentstate.current` give the conversation of a request.

* **A plain or streaming response** has one turn, taken at the first use of the conversation. The
  last message of the response is held back until the commit, and of a response in one piece the
  first one too: what a client has seen is stored, and a commit that fails is a failed request,
  not a broken one. An exception or a status of 500 or more rolls back (``on_error=``). A
  client that leaves early is one case, however the server shows it (a cancelled task, a
  ``send`` that raises, an application that stops): ``on_cancel=``. A client that stops reading
  for ``idle=`` seconds doesn't keep the turn.
* **Websockets and server-sent events** never have one turn for their whole life: each call is
  atomic by itself, and ``async with conversation.turn()`` makes one turn of several.

Any number of requests may run at once; what a request keeps belongs to it alone. Ending a
turn is carried through when the task is cancelled, and the cancellation then goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConfigError
from agentstate.middleware.identity import HEADERS, SessionCookie, said
from agentstate.middleware.presence import Requests
from agentstate.state.settle import own_task, settle
from agentstate.stores import aclose

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Mapping, Sequence

    from agentstate.middleware.request import RequestContext

__all__ = ["ASGIStateMiddleware", "StatusError"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

START = "http.response.start"
BODIES = frozenset({"http.response.body", "http.response.zerocopysend", "http.response.pathsend"})
FAILED_STATUS = 500

log = logging.getLogger("agentstate.middleware")


class StatusError(Exception):
    """The response's status says that the request has failed; what failed turns of such requests record."""


class ASGIStateMiddleware:
    """Gives an ASGI application a conversation for each request.

    ::

        app = ASGIStateMiddleware(app, url="sqlite:///state.db")
        app.add_middleware(ASGIStateMiddleware, cookie="session")     # Starlette, FastAPI

        async def endpoint(request):
            visits = await request.state.conversation.increment("visits")

    Put it inside authentication: the conversation belongs to ``scope["user"]``, where there is one.

    Args:
        app: the application.
        key: the conversation's id: a function of the ASGI scope.
        headers: headers that hold the id, unless ``key`` does; the first that is sent counts.
        cookie: the name of a session cookie: the server makes the ids, and takes no others.
        secure: whether the cookie travels over HTTPS only.
        owner: whose conversation it is: a function of the ASGI scope, instead of ``scope["user"]``.
        name: what its turns are called in messages and the journal, and its block in the configuration file.
        settings: as for `stateful`: ``storage``, ``url``, ``ttl``, ``turns``, ``wait``, ``on_error``, …
    """

    def __init__(
        self,
        app: App,
        *,
        key: Callable[[Mapping[str, Any]], str] | None = None,
        headers: Sequence[str] = HEADERS,
        cookie: str | None = None,
        secure: bool = True,
        owner: Callable[[Mapping[str, Any]], str | None] | None = None,
        name: str = "asgi",
        **settings: Any,
    ) -> None:
        """Wrap an application; nothing is opened."""
        if key is not None and cookie is not None:
            raise ConfigError("key= and cookie= both say what the id is.", remedy="Keep one of them.")
        self.app = app
        self._cookie = SessionCookie(cookie, secure=secure) if cookie is not None else None
        choosing = self._cookie.chooser if self._cookie is not None else said(key, headers)
        self.requests = Requests(choosing, owner, name, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, _closing(send))
        else:
            await self.app(scope, receive, send)

    @contextmanager
    def _present(self, scope: Scope) -> Generator[RequestContext]:
        with self.requests.present(scope) as context:
            scope.setdefault("state", {})["conversation"] = context.here
            yield context

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._present(scope) as context:
            exchange = _Exchange(context, self._cookie, send)
            try:
                await self.app(scope, receive, exchange.send)
            except BaseException as error:
                await exchange.broke(error)
                raise
            await exchange.over()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._present(scope) as context:
            context.per_call = True

            async def told(message: Message) -> None:
                if self._cookie is not None and message["type"] == "websocket.accept":
                    chosen = await context.choose()
                    if chosen.made:
                        _tell(message, self._cookie, chosen.id)
                await send(message)

            await self.app(scope, receive, told)


class _Exchange:
    """One request and its response: messages are held back until what they say is stored."""

    def __init__(self, context: RequestContext, cookie: SessionCookie | None, send: Send) -> None:
        self._context = context
        self._late = context.late
        self._cookie = cookie
        self._pass_on = send
        self._held: Message | None = None
        self._status = 0
        self._seen = False
        self._gone = False
        self._refused: Exception | None = None

    async def send(self, message: Message) -> None:
        """Pass a message of the application on, when it is time."""
        if message["type"] == START:
            await self._starts(message)
            return
        if message["type"] in BODIES and not message.get("more_body", False):
            await self._commit()
        await self._flush()
        await self._pass(message)

    async def _starts(self, message: Message) -> None:
        self._status = message["status"]
        headers = {key.lower(): value for key, value in message.get("headers", ())}
        await self._tell_client(message, streams=b"content-length" not in headers)
        self._held = message
        if headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
            await self._commit()
            self._context.per_call = True
            await self._flush()

    async def _tell_client(self, message: Message, *, streams: bool) -> None:
        """Give the client its new id, which must be known before a response that may use the state later."""
        context = self._context
        if self._cookie is not None and (context.chosen is not None or streams):
            chosen = await context.choose()
            if chosen.made:
                _tell(message, self._cookie, chosen.id)
        context.begun = True

    async def _commit(self) -> None:
        failed = self._status >= FAILED_STATUS
        try:
            await self._late.end(StatusError(f"The response has status {self._status}.") if failed else None)
        except Exception as error:
            self._refused = error
            raise

    async def _flush(self) -> None:
        message, self._held = self._held, None
        if message is not None:
            await self._pass(message)

    async def _pass(self, message: Message) -> None:
        watch, seen = self._watch(), self._seen
        # While it is being sent, the client may have seen it already.
        self._seen = seen or (message["type"] in BODIES and message.get("body") != b"")
        try:
            await self._pass_on(message)
        except Exception:
            self._seen, self._gone = seen, True
            raise
        finally:
            if watch is not None:
                watch.cancel()

    def _watch(self) -> asyncio.TimerHandle | None:
        idle = self._context.settings.idle
        if not self._late.taken or math.isinf(idle):
            return None
        return asyncio.get_running_loop().call_later(idle, lambda: own_task(self._logged(self._end_early())))

    async def broke(self, error: BaseException) -> None:
        """End the turn of a request that raised.

        Raises:
            Exception: why the commit was refused, where the framework hid it behind an error of its own.
        """
        if isinstance(error, asyncio.CancelledError) or self._gone:
            await settle(self._logged(self._end_early()))
            return
        await self._late.end(error)
        if self._refused is not None and self._refused is not error:
            raise self._refused from None

    async def over(self) -> None:
        """End the turn of a request whose application has returned without the last message."""
        await self._end_early()

    async def _end_early(self) -> None:
        await self._late.end_early(seen=self._seen)

    async def _logged(self, ending: Coroutine[Any, Any, None]) -> None:
        try:
            await ending
        except Exception:  # nobody is left to hear it
            log.exception("what a client left behind couldn't be stored")


def _tell(message: Message, cookie: SessionCookie, session_id: str) -> None:
    message["headers"] = [*message.get("headers", ()), cookie.header(session_id)]


def _closing(send: Send) -> Send:
    """Close the stores before the server hears that the application has shut down."""

    async def closing(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await aclose()
        await send(message)

    return closing
