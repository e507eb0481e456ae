"""Turns between the processes of one machine: byte-range locks that the kernel keeps.

The kernel frees a lock when the last process that holds its descriptor dies, however it
dies, so a turn needs neither renewal nor clock here. Polling alone would let the one who has
just left barge in again, so every turn has two bytes, 'next' and 'turn': whoever holds 'next'
polls 'turn', and nobody else can take it.

Every attempt is non-blocking and takes microseconds, so it may run on an event loop. `wait`
is the only place that awaits; cancelled there, a waiter has left the line.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from agentstate.errors import StorageClosedError, StorageUnavailableError, UnsupportedError
from agentstate.storage.lockfiles import LockDirectory, Turn, Waiter, guard, resolve
from agentstate.storage.protocol import Holder

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Exclusive", "MachineLocks"]

BLOCKING_POLL: Final = (0.00005, 0.001)

_exclusive_nonces = count(1)


class MachineLocks:
    """The turns of one directory, exclusive between all tasks, threads and processes of this machine.

    An address is any text; a nonce is the caller's random number for one turn. Two objects for
    the same directory exclude each other like two processes do.
    """

    def __init__(
        self, directory: Path | str, *, allow_network_fs: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """Open, or make, the directory of lock files.

        Args:
            directory: for lock files only; private to its owner.
            allow_network_fs: don't refuse a network file system. Right only for one process.
            clock: seconds since the epoch, for what others are told of a holder.

        Raises:
            StorageAccessError: the directory can't be made or opened, or lies on a network.
        """
        if sys.platform == "win32":
            raise UnsupportedError("Turns between processes need POSIX file locks.", remedy="Use memory or a server.")
        self.directory = Path(directory)
        self._clock = clock
        self._mine: set[tuple[str, int]] = set()
        self._closed = False
        self._table = LockDirectory.join(self.directory, check=not allow_network_fs)

    def try_take(self, address: str, nonce: int, holder: str) -> bool:
        """Take the turn now if it is free, else join or keep the place in the line. Never blocks.

        Returns whether ``nonce`` holds the turn; it does when it did before.
        """
        return self.take(address, nonce, holder) != "waits"

    def take(self, address: str, nonce: int, holder: str) -> Literal["took", "held", "waits"]:
        """Do as `try_take`, and tell a turn just taken from one that was held before."""
        with guard:
            turn = self._turn(address)
            if turn.nonce == nonce:
                return "held"
            self._mine.add((address, nonce))
            if turn.advance(nonce):
                turn.nonce, turn.holder = nonce, holder
                if turn.line:
                    turn.line.pop(nonce, None)
                if holder:
                    turn.since = self._clock()
                    turn.write_note()
                return "took"
            turn.line.setdefault(nonce, Waiter(holder)).asked_at = time.monotonic()
            return "waits"

    async def wait(self, address: str, nonce: int, seconds: float) -> bool:
        """Return whether ``nonce`` holds the turn, after ``seconds`` at the latest.

        When it doesn't, it keeps its place for a second: wait again, or `leave`. Cancelled, it
        has left the line. A nonce that never asked by `try_take` has no place and gets no turn:
        for it this returns ``False`` as soon as the turn is free.
        """
        loop = asyncio.get_running_loop()
        asked = self._has_place(address, nonce)
        until = loop.time() + seconds
        try:
            while True:
                with guard:
                    turn = self._turn(address)
                    place = turn.line.get(nonce)
                    taken = self.try_take(address, nonce, place.holder if place else "")
                    left = until - loop.time()
                    if taken or left <= 0:
                        if not asked:
                            self.leave(address, nonce)
                        return taken and asked
                    place = turn.line[nonce]
                    place.future = loop.create_future()
                    timer = loop.call_later(min(left, turn.delay(nonce)), resolve, place.future)
                try:
                    await place.future
                finally:
                    timer.cancel()
                    place.future = None
        except BaseException:
            self.leave(address, nonce)
            raise

    def leave(self, address: str, nonce: int) -> None:
        """Give the turn back, or leave the line. A nonce that has neither is no error."""
        with guard:
            self._mine.discard((address, nonce))
            self._table.leave(address, nonce)

    def holds(self, address: str, nonce: int) -> bool:
        """Return whether ``nonce`` holds the turn."""
        with guard:
            turn = None if self._closed else self._table.find(address)
            return turn is not None and turn.nonce == nonce

    def holder(self, address: str) -> Holder | None:
        """Return who holds the turn, or held it last, as far as is known here."""
        with guard:
            self._check_open()
            turn = self._table.find(address)
            return Holder(turn.holder, turn.since) if turn is not None and turn.nonce else self._table.note(address)

    def exclusive(self, name: str, seconds: float) -> Exclusive:
        """Return a lock of this directory, to hold while inside. See `Exclusive`."""
        return Exclusive(self, name, seconds)

    def is_queued(self, address: str) -> bool:
        """Return whether this process is the next to get the turn."""
        with guard:
            return self._turn(address).queued

    def close(self) -> None:
        """Give back every turn and place taken through this object. Idempotent."""
        with guard:
            if self._closed:
                return
            for address, nonce in list(self._mine):
                self.leave(address, nonce)
            self._closed = True
            self._table.part()

    def _has_place(self, address: str, nonce: int) -> bool:
        with guard:
            turn = self._table.find(address)
            return turn is not None and (turn.nonce == nonce or nonce in turn.line)

    def _turn(self, address: str) -> Turn:
        if self._closed or self._table.closed:
            self._check_open()
        return self._table.turn(address)

    def _check_open(self) -> None:
        if self._closed or self._table.closed:
            raise StorageClosedError(
                f"The locks in {self.directory} were closed, or this is a forked child.",
                remedy="Open the storage again in this process.",
            )


class Exclusive:
    """A lock of a lock directory, held while inside; processes queue for it fairly. Blocks.

    For a thread of its own, never an event loop.
    """

    __slots__ = ("_address", "_locks", "_nonce", "_seconds")

    def __init__(self, locks: MachineLocks, name: str, seconds: float) -> None:
        """Name the lock; it is taken on entering, within ``seconds``."""
        self._locks = locks
        self._address = f"\0{name}"
        self._nonce = next(_exclusive_nonces)
        self._seconds = seconds

    def take(self) -> None:
        """Wait for the lock, and take it.

        Raises:
            StorageUnavailableError: it wasn't free in time.
        """
        try:
            if not self.take_now():
                self._wait()
        except BaseException:
            self.leave()
            raise

    def take_now(self) -> bool:
        """Take the lock if it is free, and return whether it was. Then `leave` gives it, or its place, back."""
        return self._locks.take(self._address, self._nonce, "") != "waits"

    def leave(self) -> None:
        """Give the lock back, or leave the line for it."""
        self._locks.leave(self._address, self._nonce)

    def __enter__(self) -> None:
        """Do as `take`."""
        self.take()

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""
        self.leave()

    def _wait(self) -> None:
        until, delay = time.monotonic() + self._seconds, BLOCKING_POLL[0]
        while not self.take_now():
            if time.monotonic() > until:
                raise StorageUnavailableError(
                    f"The {self._address[1:]} lock in {self._locks.directory} was not free for {self._seconds:g} s.",
                    remedy="Another process holds it: let it go on, or end it.",
                )
            if self._locks.is_queued(self._address):
                time.sleep(delay)
                delay = min(delay * 2, BLOCKING_POLL[1])
            else:
                time.sleep(random.uniform(*BLOCKING_POLL))  # noqa: S311
