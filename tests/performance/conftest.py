"""The turn that is counted, and what counts it. Nothing here looks at a clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentstate import ConversationContext, stateful

MESSAGE = "x" * 100


def workload(storage, **settings):
    """Return a handler that loads 10 messages, reads 2 variables, appends 2 messages and sets 1 variable."""

    @stateful(storage=storage, **settings)
    async def turn(task, context, context_id):
        seen = await context.get_history(context_id, limit=10)
        count = await context.get_variable(context_id, "count", 0)
        await context.get_variable(context_id, "other")
        await context.add_to_history(context_id, "user", task["text"])
        await context.add_to_history(context_id, "assistant", MESSAGE)
        await context.set_variable(context_id, "count", count + 1)
        return len(seen)

    return turn


async def seed(storage, context_id, messages):
    """Make a conversation with so many messages."""
    context = ConversationContext(storage)
    await context.set_variable(context_id, "other", MESSAGE)
    for start in range(0, messages, 500):
        many = [{"role": "user", "content": f"{n} {MESSAGE}"} for n in range(start, min(start + 500, messages))]
        await context.add_messages(context_id, many)


def task(context_id):
    """Return what the handler is called with."""
    return {"context_id": context_id, "text": MESSAGE}


class Wire:
    """Stands between a client and a server, and counts what passes.

    Attributes:
        packets: pieces that the client sent: with one caller, one for each round trip.
        sent: bytes that the client sent.
    """

    def __init__(self, port):
        self._port = port
        self._open = set()
        self.packets = self.sent = 0

    async def start(self):
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back, counted=True), self._pass_on(there, writer))

    async def _pass_on(self, reader, writer, *, counted=False):
        while data := await reader.read(2**20):
            if counted:
                self.packets, self.sent = self.packets + 1, self.sent + len(data)
            writer.write(data)
        writer.close()

    async def stop(self):
        """Close everything."""
        self._server.close()
        for writer in self._open:
            writer.close()
        await self._server.wait_closed()


@pytest.fixture
async def wire(valkey_server):
    """A wire to this test process's server; its ``port`` is where clients connect."""
    made = Wire(valkey_server.port)
    made.port = await made.start()
    yield made
    await made.stop()


def written():
    """Return how many bytes this process has written so far, to whatever."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])
