"""A blocking connection of its own, for the thread that renews leases.

It doesn't need an event loop: a handler that blocks its loop must not lose its turn. Calls are
made one after the other; a broken connection is made anew once, since renewing twice is
renewing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from agentstate.storage.valkey.dial import Command, connect_blocking, driver, greetings, tls_context
from agentstate.storage.valkey.faults import ServerError, closed, from_server, unreachable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from agentstate.storage.valkey.options import ValkeyOptions
    from agentstate.storage.valkey.scripts import Script

__all__ = ["BlockingLink"]

INCOMPLETE = object()
READ_SIZE = 65536


class BlockingLink:
    """The connection. It is made when it is first used."""

    def __init__(self, options: ValkeyOptions) -> None:
        """Begin without a connection."""
        self._options = options
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._reader: Any = None
        self._closed = False

    def run_all(self, script: Script, calls: Sequence[tuple[bytes, tuple[str | float, ...]]]) -> list[Any]:
        """Run a script that may run twice for each key and its arguments, in one round trip.

        Raises:
            StorageError: the server can't be reached, or refused.
        """
        commands: list[Command] = [("EVALSHA", script.digest, 1, key, *rest) for key, rest in calls]
        with self._lock:
            replies = self._exchange(commands)
            if any(isinstance(reply, ServerError) and reply.code == "NOSCRIPT" for reply in replies):
                replies = self._exchange([("EVAL", script.body, *command[2:]) for command in commands])
        for reply in replies:
            if isinstance(reply, ServerError):
                raise from_server(reply, self._options.location) from reply
        return replies

    def _exchange(self, commands: list[Command]) -> list[Any]:
        try:
            try:
                return self._try(commands)
            except OSError:
                self._drop()
                return self._try(commands)
        except OSError as error:
            self._drop()
            raise unreachable(self._options.location, error) from error

    def _try(self, commands: list[Command]) -> list[Any]:
        if self._closed:
            raise closed(self._options.location)
        if self._socket is None:
            connect_blocking(self._options, tls_context(self._options), self._keep)
            for reply in self._talk(greetings(self._options)):
                if isinstance(reply, ServerError):
                    self._drop()
                    raise from_server(reply, self._options.location) from reply
        return self._talk(commands)

    def _keep(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = driver().Reader(replyError=ServerError, notEnoughData=INCOMPLETE)

    def _talk(self, commands: list[Command]) -> list[Any]:
        assert self._socket is not None
        self._socket.sendall(b"".join(map(driver().pack_command, commands)))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is not INCOMPLETE:
                replies.append(reply)
            elif data := self._socket.recv(READ_SIZE):
                self._reader.feed(data)
            else:
                raise ConnectionError("the server closed the connection")
        return replies

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        with self._lock:
            self._drop()

    def forget_inherited(self) -> None:
        """Drop what a forked child inherited."""
        self._lock = threading.Lock()
        self._drop()
