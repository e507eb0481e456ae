"""Lets one task at a time work on a state, in the order they came, whatever event loops and threads they run in."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Mutexes"]


class Mutexes:
    """One mutex for each name that somebody holds."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[None]:
        """Hold a mutex. Cancelled while waiting, one has not had it."""
        with self._lock:
            line = self._waiting.get(name)
            future: asyncio.Future[None] | None = None
            if line is None:
                self._waiting[name] = deque()
            else:
                future = asyncio.get_running_loop().create_future()
                line.append(future)
        if future is not None:
            try:
                await future
            except BaseException:
                self._give_up(name, future)
                raise
        try:
            yield
        finally:
            self._pass_on(name)

    def _give_up(self, name: str, future: asyncio.Future[None]) -> None:
        with self._lock:
            line = self._waiting.get(name)
            waiting = line is not None and future in line
            if line is not None and waiting:
                line.remove(future)
        if not waiting:
            self._pass_on(name)

    def _pass_on(self, name: str) -> None:
        with self._lock:
            line = self._waiting[name]
            while line:
                future = line.popleft()
                try:
                    future.get_loop().call_soon_threadsafe(_grant, future)
                except RuntimeError:
                    continue  # its loop was closed: nobody waits there any more
                return
            del self._waiting[name]


def _grant(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
