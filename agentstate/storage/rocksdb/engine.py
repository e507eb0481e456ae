"""An open RocksDB store: its rows, its lock, and the thread that syncs.

Whoever calls holds `Engine.lock`, unless said otherwise. What was written is in the operating
system's hands at once; `Engine.synced` lets those wait who must know it on the disk. All that
wait when a sync begins are served by it, and those who come meanwhile by the next.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import ConfigError, DamagedStateError, NewerFormatError, StateError
from agentstate.storage.oserrors import from_os_error
from agentstate.storage.rocksdb.errors import from_engine
from agentstate.storage.rocksdb.keys import FEED, META, NUMBER, after_prefix, head_key, place_of
from agentstate.storage.rocksdb.options import driver, engine_options
from agentstate.storage.rocksdb.rows import unpack_head
from agentstate.storage.rocksdb.workers import wake

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.options import RocksdbOptions
    from agentstate.storage.rocksdb.rows import State
    from agentstate.storage.rocksdb.workers import Workers

__all__ = ["Engine", "Row"]

Row = tuple[bytes, bytes]

FORMAT: Final = 1
FORMAT_KEY: Final = META + b"format"
NUMBER_KEY: Final = META + b"number"
MOST_KNOWN: Final = 1024

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Reads and writes rows.

    Attributes:
        lock: whoever uses the engine holds it.
        number: the last number that a state was given.
        place: the last place in the feed.
        unsynced: states whose last change waits for a sync, with its ticket. Only where somebody waits.
        forked: this process inherited it and can't use it.
    """

    def __init__(self, path: Path, options: RocksdbOptions, lock: threading.Lock, workers: Workers) -> None:
        """Open the store, or make it. Blocks; needs no lock.

        Raises:
            StoreInUseError: another process has it open.
            NewerFormatError: a newer release wrote it.
            ConfigError: it is another application's.
            DamagedStateError: the engine can't make sense of its files.
        """
        self._path = path
        self._rocks = driver()
        self.lock = lock
        self.forked = False
        self.unsynced: dict[StateScope, int] = {}
        self._heads: dict[StateScope, State | None] = {}
        self._workers = workers
        self._waiting: list[asyncio.Future[None]] = []
        self._syncing = False
        self._syncs = 0
        self._written = 0
        self._quick = self._rocks.WriteOptions()
        self._quick.no_slowdown = True
        self._db = _open(path, options)
        try:
            self._prepare()
            self.number = self._number(NUMBER_KEY)
            last = next(self.walk(FEED, after_prefix(FEED), reverse=True), None)
        except Exception as error:
            self._db.close()
            raise from_engine(error, path) from error
        self.place = place_of(last[0]) if last is not None else 0
        _engines.add(self)

    def _prepare(self) -> None:
        found = self._db.get(FORMAT_KEY)
        if found is None and next(self.walk(b"", b"\xff"), None) is not None:
            raise ConfigError(
                f"{self._path} is a RocksDB store of another application.", remedy="Choose another directory."
            )
        if found is None:
            self._db.put(FORMAT_KEY, b"%d" % FORMAT)
        elif not found.isdigit():
            raise DamagedStateError(f"The format number of {self._path} is none.", remedy="Restore it from a backup.")
        elif int(found) > FORMAT:
            raise NewerFormatError(
                f"{self._path} has format {int(found)}; this release knows {FORMAT}.",
                remedy="Upgrade agentstate-suite; the store was left as it is.",
            )

    def _number(self, key: bytes) -> int:
        found = self._db.get(key)
        return NUMBER.unpack(found)[0] if found is not None else 0

    # -- reading ---------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a row."""
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:
            raise from_engine(error, self._path) from error
        return found

    def walk(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """Return the rows with ``start <= key < end`` as they are now; they may be taken later and without the lock."""
        options = self._rocks.ReadOptions()
        options.set_iterate_upper_bound(end)
        try:
            rows = self._db.items(backwards=reverse, from_key=None if reverse else start, read_opt=options)
        except Exception as error:
            raise from_engine(error, self._path) from error
        return self._rows(rows, start, options)

    def rows(self, start: bytes, end: bytes) -> list[Row]:
        """Return the rows with ``start <= key < end``, where they are few: in half the time."""
        options = self._rocks.ReadOptions()
        options.set_iterate_upper_bound(end)
        try:
            return list(self._db.items(from_key=start, read_opt=options))
        except Exception as error:
            raise from_engine(error, self._path) from error

    def _rows(self, rows: Iterator[Row], start: bytes, options: Any) -> Iterator[Row]:
        try:
            for row in rows:
                # Backwards the driver takes a lower bound for an upper one: the end is found here.
                if row[0] < start:
                    return
                yield row
        except StateError:
            raise
        except Exception as error:
            raise from_engine(error, self._path) from error
        finally:
            # They hold the end, and the engine looks at it for as long as it walks.
            del options

    def head(self, scope: StateScope) -> State | None:
        """Return the head of a state, expired or not; it must not be changed."""
        if scope in self._heads:
            return self._heads[scope]
        key = head_key(scope)
        row = self.get(key)
        state = None if row is None else unpack_head(scope, key, row)
        self._know(scope, state)
        return state

    def _know(self, scope: StateScope, state: State | None) -> None:
        if len(self._heads) >= MOST_KNOWN:
            self._heads.clear()
        self._heads[scope] = state

    # -- writing ---------------------------------------------------------------------------

    def batch(self) -> Any:
        """Return an empty batch of writes."""
        return self._rocks.WriteBatch(raw_mode=True)

    def write(self, batch: Any, heads: dict[StateScope, State | None], *, awaited: bool) -> int:
        """Write all of a batch, or nothing; return the ticket for `synced`.

        Args:
            batch: from `batch`.
            heads: the states that it changes, as they are then.
            awaited: somebody waits until it is synced; whoever reads these states meanwhile must, too.

        Raises:
            StalledError: the engine is behind with its compactions; nothing was written.
        """
        try:
            self._db.write(batch, self._quick)
        except Exception as error:
            raise from_engine(error, self._path) from error
        self._written += 1
        for scope, state in heads.items():
            self._know(scope, state)
            if awaited:
                self.unsynced[scope] = self._written
        return self._written

    def next_number(self, batch: Any) -> int:
        """Return a number that no state ever had; ``batch`` takes it along."""
        self.number += 1
        batch.put(NUMBER_KEY, NUMBER.pack(self.number))
        return self.number

    # -- syncing ---------------------------------------------------------------------------

    async def synced(self) -> None:
        """Return when all that is written now is on the disk. Needs no lock.

        Raises:
            StorageError: the disk failed; what was written may be lost.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.lock:
            self._waiting.append(future)
            begin, self._syncing = not self._syncing, True
        if begin:
            self._workers.begin(self._sync)
        await future

    def _sync(self) -> None:
        while True:
            with self.lock:
                served, self._waiting = self._waiting, []
                self._syncing, upto = bool(served), self._written
            if not served:
                return
            error: Exception | None = None
            self._syncs += 1
            try:
                self._db.flush_wal(sync=True)
            except Exception as failure:  # noqa: BLE001 - handed to those who wait
                error = from_engine(failure, self._path)
            else:
                with self.lock:
                    for scope in [one for one, ticket in self.unsynced.items() if ticket <= upto]:
                        del self.unsynced[scope]
            wake(served, error)

    # -- the store as a whole --------------------------------------------------------------

    def ping(self) -> None:
        """Return if the store can be read."""
        self.get(FORMAT_KEY)

    def property(self, name: str) -> str | None:
        """Return what the engine says of itself, as in ``rocksdb.block-cache-capacity``."""
        value: str | None = self._db.property_value(name)
        return value

    def close(self) -> None:
        """Close the store. Blocks; nobody may be at work on it."""
        try:
            self._db.close()
        except Exception as error:
            raise from_engine(error, self._path) from error

    def inherited(self) -> None:
        """Note that this process is a fork of the one that opened the store.

        It must not close it, not even by forgetting it: the engine would wait for threads that a fork doesn't have.
        """
        self.forked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))


def _open(path: Path, options: RocksdbOptions) -> Any:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "make the store", path) from error
    try:
        return driver().Rdict(os.fspath(path), engine_options(options))
    except Exception as error:
        raise from_engine(error, path) from error


def _forked() -> None:
    for engine in list(_engines):
        engine.inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
