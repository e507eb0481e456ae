"""One connection that pipelines by itself: whoever calls in one pass of the event loop shares a packet.

Commands are packed as they come and written together when the loop's pass ends; replies
resolve their callers in order. One reply costs a caller one future and nothing else.

Cancellation: a command whose caller was cancelled before it was written is never sent; a
written one is carried out by the server, and its reply is thrown away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from agentstate.storage.valkey.dial import Command, connect, driver, greetings
from agentstate.storage.valkey.faults import LostError, ServerError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from agentstate.storage.valkey.options import Address, ValkeyOptions

__all__ = ["Pipeline", "dial"]

MOST_IN_FLIGHT = 1024
READ_BYTES = 128 * 1024
INCOMPLETE = object()


class Pipeline(asyncio.BufferedProtocol):
    """A connection of one event loop. `dial` makes it."""

    def __init__(self, sock: socket.socket, seconds: float, on_push: Callable[[Any], None] | None = None) -> None:
        """Serve ``sock``; give up when a reply takes longer than ``seconds``."""
        lib = driver()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._seconds = seconds
        self._on_push = on_push
        self._pack = lib.pack_command
        self._reader = lib.Reader(replyError=ServerError, notEnoughData=INCOMPLETE)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._garbage: type[Exception] = lib.ProtocolError
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._outbox: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._flushing = False
        self._paused = False
        self._timed_out = False
        self._reason = ""
        self._refusal: ServerError | None = None
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # -- sending -----------------------------------------------------------------------------

    def send(self, command: Command) -> asyncio.Future[Any]:
        """Return the future reply: bytes, int, list, ``None``, or a `ServerError` as a value.

        The future raises `LostError` when no reply came.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(LostError("the connection is closed", sent=False))
            return future
        self._outbox.append((self._pack(command), future))
        if not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flushing = False
        outbox, pending, chunks = self._outbox, self._pending, cast("list[bytes]", [])
        if self._transport is None:
            return
        if not pending:
            self._heard_at = self._loop.time()
        while outbox and len(pending) < MOST_IN_FLIGHT:
            packed, future = outbox.popleft()
            if not future.done():
                chunks.append(packed)
                pending.append(future)
        if chunks:
            self._transport.write(b"".join(chunks))
            if self._watch is None:
                self._watch = self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        # One timer per connection and not one per command, which would cost as much as the command.
        self._watch = None
        if not self._pending or self._transport is None:
            return
        left = self._heard_at + self._seconds - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self._timed_out = True
            self._reason = f"no reply in {self._seconds:g} s"
            self.abort()

    # -- called by the event loop ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Read into the same buffer always: another one for each packet would take longer than reading it."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Resolve the callers whose replies are complete."""
        self._heard_at = self._loop.time()
        try:
            self._resolve(nbytes)
        except self._garbage as error:
            self._reason = f"what answers there doesn't speak Valkey's protocol ({error})"
            self.abort()
        if self._outbox and not self._flushing and not self._paused:
            self._flush()

    def _resolve(self, size: int) -> None:
        reader, pending = self._reader, self._pending
        reader.feed(self._buffer, 0, size)
        while (reply := reader.gets()) is not INCOMPLETE:
            if pending:
                future = pending.popleft()
                if not future.done():
                    future.set_result(reply)
            elif self._on_push is not None:
                self._on_push(reply)
            elif type(reply) is ServerError:
                # Said before anything was asked: the server is about to close.
                self._refusal = reply

    def pause_writing(self) -> None:
        """Hold commands back: the server takes them slower than they come."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every caller that there will be no reply."""
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
        reason = self._reason or str(exc or "the server closed the connection")
        for future in self._pending:
            if self._refusal is not None and not future.done():
                future.set_result(self._refusal)
            elif not future.done():
                future.set_exception(LostError(reason, sent=True, timed_out=self._timed_out))
        for _, future in self._outbox:
            if not future.done():
                future.set_exception(LostError(reason, sent=False, timed_out=self._timed_out))
        self._pending.clear()
        self._outbox.clear()
        self._sock.close()
        if not self.closed.done():
            self.closed.set_result(None)

    # -- ending ------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    def abort(self) -> None:
        """Close at once, on the loop's own thread; what is under way is lost."""
        if self._transport is not None:
            self._transport.abort()

    def close_socket(self) -> None:
        """Close the socket and nothing else: for a loop that is gone, and in a forked child."""
        self._transport = None
        self._sock.close()


async def dial(
    address: Address,
    options: ValkeyOptions,
    tls: ssl.SSLContext | None,
    on_push: Callable[[Any], None] | None = None,
    *,
    sentinel: bool = False,
) -> Pipeline:
    """Connect to a server, or to a sentinel, log in, choose the database.

    Raises:
        OSError: the server can't be reached, or not in time (`TimeoutError`).
        ServerError: it refused the login or the database.
        LostError: it closed the connection.
    """
    loop = asyncio.get_running_loop()
    host = None if tls is None or isinstance(address, str) else address[0]
    async with asyncio.timeout(options.socket_connect_timeout):
        sock = await connect(loop, address, options)
        pipeline = Pipeline(sock, options.socket_timeout, on_push)
        try:
            await loop.create_connection(lambda: pipeline, sock=sock, ssl=tls, server_hostname=host)
            _refuse(await asyncio.gather(*map(pipeline.send, greetings(options, sentinel=sentinel))))
        except BaseException:
            pipeline.abort()
            sock.close()
            raise
    return pipeline


def _refuse(replies: list[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ServerError):
            raise reply
