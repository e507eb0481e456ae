"""Lines to a PostgreSQL server: one that counts and cuts, and one through a transaction pooler.

Both speak the frontend's protocol just as far as they must: a message is a letter and a length.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine

LENGTH = struct.Struct("!I")
SSL_REQUEST = 80877103
IDLE = b"Z\0\0\0\5I"


class Line:
    """Something that listens on a port of its own, in a thread and event loop of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._listen())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self.serve(reader, writer)
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close in the next passes of the loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()


async def startup_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the first real message of a client; TLS is declined."""
    while True:
        head = await reader.readexactly(4)
        body = await reader.readexactly(LENGTH.unpack(head)[0] - 4)
        if LENGTH.unpack(body[:4])[0] != SSL_REQUEST:
            return head + body
        writer.write(b"N")


async def message_of(reader: asyncio.StreamReader) -> bytes:
    """Return the next message."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(LENGTH.unpack(head[1:])[0] - 4)


class CountingLine(Line):
    """Counts round trips, and cuts the line where it is told to.

    ``trips`` counts what makes the server answer. While ``cut_requests`` or ``cut_replies`` is above
    zero, the line breaks before, or after, a request that holds ``marker`` reaches the server.
    """

    def __init__(self, port: int, marker: bytes = b"marked") -> None:
        self.marker = marker
        self.trips = 0
        self.cuts = 0
        self.cut_requests = 0
        self.cut_replies = 0
        super().__init__(port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await startup_of(reader, writer)
        answers, server = await asyncio.open_connection("127.0.0.1", self.target)
        server.write(startup)
        muted = asyncio.Event()
        replies = asyncio.create_task(self._replies(answers, writer, muted))
        try:
            batch = b""
            while True:
                batch += (message := await message_of(reader))
                if message[:1] in b"SQH":
                    self.trips += 1
                    if self.marker in batch and self.cut_requests:
                        self.cut_requests -= 1
                        self.cuts += 1
                        return
                    if self.marker in batch and self.cut_replies:
                        self.cut_replies -= 1
                        self.cuts += 1
                        muted.set()
                if message[:1] in b"SQHpX":
                    server.write(batch)
                    batch = b""
        finally:
            writer.close()
            server.close()
            await replies

    async def _replies(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await answers.read(65536):
                if muted.is_set():
                    break
                writer.write(data)
        writer.close()


class PoolingLine(Line):
    """A transaction pooler: no two transactions of a client meet the same session of the server.

    The server must trust whoever comes. Sessions are made when it starts.
    """

    def __init__(self, port: int, user: str, sessions: int = 3) -> None:
        self._user = user
        self._count = sessions
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._sessions: list[asyncio.StreamWriter] = []
        self._greeting = b""
        super().__init__(port)

    async def _listen(self) -> None:
        for _ in range(self._count):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
            told = LENGTH.pack(196608) + f"user\0{self._user}\0database\0postgres\0\0".encode()
            writer.write(LENGTH.pack(len(told) + 4) + told)
            self._greeting = b""
            while not self._greeting.endswith(IDLE):
                self._greeting += await message_of(reader)
            self._free.put_nowait((reader, writer))
            self._sessions.append(writer)
        await super()._listen()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await startup_of(reader, writer)
        writer.write(self._greeting)
        session = None
        while True:
            message = await message_of(reader)
            if message[:1] == b"X":
                return
            # The line of free sessions is long enough for another one every time.
            session = session or await self._free.get()
            session[1].write(message)
            # A description is answered at a flush, the end of a transaction at a sync or a query.
            ends = {b"H": b"TnE", b"S": b"Z", b"Q": b"Z"}.get(message[:1], b"")
            answer = b""
            while ends and (not answer or answer[:1] not in ends):
                writer.write(answer := await message_of(session[0]))
            if answer == IDLE:
                self._free.put_nowait(session)
                session = None

    async def _end(self) -> None:
        for writer in self._sessions:
            writer.close()
        await super()._end()
