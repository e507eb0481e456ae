"""Floors on SQLite, synced: two hops to threads, and commits grouped into one transaction."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import apsw
import orjson

from benchmarks.workload import TAIL, TEXT, message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYOUT = """
CREATE TABLE IF NOT EXISTS items(scope TEXT, position INTEGER, value BLOB, PRIMARY KEY(scope, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries(scope TEXT, key TEXT, value BLOB, PRIMARY KEY(scope, key)) WITHOUT ROWID;
"""
Read = tuple[int, list[Any], dict[str, Any]]


def connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.execute(LAYOUT)
    return connection


def read(connection: apsw.Connection, scope: str) -> Read:
    """Load the tail and two variables."""
    head = connection.execute("SELECT max(position) FROM items WHERE scope = ?", (scope,)).fetchone()[0] or 0
    rows = connection.execute(
        "SELECT value FROM items WHERE scope = ? AND position > ?", (scope, head - TAIL)
    ).fetchall()
    found = connection.execute("SELECT key, value FROM entries WHERE scope = ? AND key IN ('count', 'other')", (scope,))
    return head, [orjson.loads(row[0]) for row in rows], {key: orjson.loads(value) for key, value in found}


def write(connection: apsw.Connection, scope: str, head: int, count: int) -> None:
    """Append two messages and set a variable, inside a transaction."""
    connection.executemany(
        "INSERT INTO items VALUES(?, ?, ?)",
        [(scope, head + 1, orjson.dumps(message(count))), (scope, head + 2, orjson.dumps(message(count, "assistant")))],
    )
    connection.execute("REPLACE INTO entries VALUES(?, 'count', ?)", (scope, orjson.dumps(count + 1)))


def fill(connection: apsw.Connection, scope: str, messages: int) -> None:
    with connection:
        rows = ((scope, n + 1, orjson.dumps(message(n))) for n in range(messages))
        connection.executemany("INSERT INTO items VALUES(?, ?, ?)", rows)
        connection.execute("REPLACE INTO entries VALUES(?, 'other', ?)", (scope, orjson.dumps(TEXT)))


class TwoHopFloor:
    """A read on one thread and a synced transaction on another: two hops a turn."""

    name = "floor: 2 hops, 1 read, 1 synced transaction"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "floor.db"
        self.reader, self.writer = connect(self.path), connect(self.path)
        self.threads = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    async def open(self) -> None:
        """Open already."""

    async def close(self) -> None:
        for thread in self.threads:
            thread.shutdown()
        self.reader.close()
        self.writer.close()

    async def seed(self, conversation: str, messages: int) -> None:
        fill(self.writer, conversation, messages)

    async def turn(self, conversation: str) -> None:
        loop = asyncio.get_running_loop()
        head, _, variables = await loop.run_in_executor(self.threads[0], read, self.reader, conversation)
        await loop.run_in_executor(self.threads[1], self._commit, conversation, head, variables.get("count", 0))

    def _commit(self, conversation: str, head: int, count: int) -> None:
        self.writer.execute("BEGIN IMMEDIATE")
        write(self.writer, conversation, head, count)
        self.writer.execute("COMMIT")


class GroupFloor:
    """One thread that does what waits together: reads, then all commits in one synced transaction."""

    name = "floor: group commit"

    def __init__(self, directory: Path) -> None:
        self.connection = connect(directory / "group.db")
        self.queue: SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...], bool] | None]
        self.queue = SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.connection.close()

    async def seed(self, conversation: str, messages: int) -> None:
        await self._ask(fill, conversation, messages, writes=False)

    async def turn(self, conversation: str) -> None:
        head, _, variables = await self._ask(read, conversation, writes=False)
        await self._ask(write, conversation, head, variables.get("count", 0), writes=True)

    def _ask(self, work: Callable[..., Any], *arguments: Any, writes: bool) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        self.queue.put((future, work, arguments, writes))
        return future

    def _run(self) -> None:
        while (first := self.queue.get()) is not None:
            batch = [first]
            while not self.queue.empty() and (one := self.queue.get()) is not None:
                batch.append(one)
            done = [(f, work(self.connection, *given)) for f, work, given, writes in batch if not writes]
            if len(done) < len(batch):
                self.connection.execute("BEGIN IMMEDIATE")
                done += [(f, work(self.connection, *given)) for f, work, given, writes in batch if writes]
                self.connection.execute("COMMIT")
            self.loop.call_soon_threadsafe(self._deliver, done)

    def _deliver(self, done: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, result in done:
            future.set_result(result)
