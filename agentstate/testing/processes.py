"""Worker processes for tests: forked warm, spoken to over a socket, killed at will.

A worker opens the storage that a `ProcessSpec` describes and runs one job of
`agentstate.testing.worker`. Everything it says arrives as JSON lines; its death is the end
of the stream. One nursery per test process forks them all and dies with it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ProcessSpec", "Worker", "WorkerDiedError", "start_worker"]

PATIENCE = 60.0
FAILED = b'{"failed":'


class ProcessSpec(NamedTuple):
    """How another process opens the same data: what `agentstate.storage.registry.create` takes.

    Attributes:
        backend: the backend's registered name.
        options: its options; must be JSON.
        preload: modules to import before forking, such as the driver.
    """

    backend: str
    options: Mapping[str, Any]
    preload: tuple[str, ...] = ()


class WorkerDiedError(Exception):
    """The worker ended, or failed; the message has its error."""


class _Nursery:
    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "agentstate.testing.nursery", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603 - our own module
        self._lock = threading.Lock()
        atexit.register(self.close)

    def fork(self, request: Mapping[str, Any]) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
            answer = self._control.recv(64)
        if not answer:
            raise WorkerDiedError("The nursery of worker processes has died.")
        return int(answer), ours

    def close(self) -> None:
        self._control.close()
        self._process.wait()


@functools.cache
def _nursery(parent: int) -> _Nursery:
    del parent  # a forked test process needs a nursery of its own
    return _Nursery()


@dataclass
class Worker:
    """A running worker process."""

    pid: int
    socket: socket.socket
    unread: bytearray = field(default_factory=bytearray)
    # A number may be given to another process once ours is dead; a descriptor can't.
    descriptor: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):
                self.descriptor = os.pidfd_open(self.pid)

    async def receive(self, seconds: float = PATIENCE) -> Any:
        """Return what the worker says next.

        Raises:
            WorkerDiedError: it ended, or its job failed.
            TimeoutError: it said nothing for ``seconds``.
        """
        async with asyncio.timeout(seconds):
            while b"\n" not in self.unread:
                more = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                if not more:
                    raise WorkerDiedError("The worker has ended.")
                self.unread += more
        line, _, rest = bytes(self.unread).partition(b"\n")
        self.unread = bytearray(rest)
        said: Any = json.loads(line)
        if line.startswith(FAILED):
            raise WorkerDiedError(said["failed"])
        return said

    async def rest(self) -> list[Any]:
        """Return everything it has said, when it has ended (or was killed)."""
        said: list[Any] = []
        with suppress(WorkerDiedError, ConnectionError):
            while True:
                said.append(await self.receive())
        return said

    async def tell(self, message: object) -> None:
        """Say something to the worker."""
        await asyncio.get_running_loop().sock_sendall(self.socket, json.dumps(message).encode() + b"\n")

    def kill(self) -> None:
        """Kill it as hard as it gets (``kill -9``)."""
        with suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it where it is (SIGSTOP); it doesn't notice."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped worker go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.descriptor is not None:
            signal.pidfd_send_signal(self.descriptor, number)
        elif not hasattr(os, "pidfd_open"):
            os.kill(self.pid, number)

    def close(self) -> None:
        """Kill it if it still runs and close the line to it."""
        self.kill()
        self.socket.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_worker(spec: ProcessSpec, job: str, **arguments: object) -> Worker:
    """Start a worker process that runs ``job`` (see `agentstate.testing.worker`) on the data of ``spec``."""
    request: dict[str, Any] = {"backend": spec.backend, "options": dict(spec.options), "job": job}
    request |= {"arguments": arguments, "preload": ["agentstate.storage.registry", *spec.preload]}
    pid, line = _nursery(os.getpid()).fork(request)
    line.setblocking(False)
    return Worker(pid, line)
