"""Runs turns of peers, in an environment that has them and not agentstate; asked by `benchmarks.peers`.

Each line of input is a JSON list ``[measure, peer, turns]``; each line of output is the figure.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

CALLERS = 64
TAIL, STORED = 10, 100
TEXT = "The quick brown fox jumps over the lazy dog, and then it does so again, for a message of usual length. "


class AgentUp:
    """AgentUp's ``ConversationContext`` on one of its storages."""

    def __init__(self, storage):
        from agent.state.context import ConversationContext

        self.context = ConversationContext(storage)

    async def seed(self, name):
        await self.context.get_or_create(name)
        await self.context.set_variable(name, "other", TEXT)
        for _ in range(STORED):
            await self.context.add_to_history(name, "user", TEXT)

    async def turn(self, name):
        context = self.context
        await context.get_history(name, limit=TAIL)
        count = await context.get_variable(name, "count", 0)
        await context.get_variable(name, "other")
        await context.add_to_history(name, "user", TEXT)
        await context.add_to_history(name, "assistant", TEXT)
        await context.set_variable(name, "count", count + 1)


class OpenAI:
    """OpenAI Agents' ``SQLiteSession``: it has no variables, so its turn is load 10, add 2."""

    def __init__(self, directory):
        self.path = directory / "openai.db"
        self.sessions = {}

    async def seed(self, name):
        from agents import SQLiteSession

        self.sessions[name] = SQLiteSession(name, self.path)
        await self.sessions[name].add_items([{"role": "user", "content": TEXT} for _ in range(STORED)])

    async def turn(self, name):
        session = self.sessions[name]
        await session.get_items(limit=TAIL)
        await session.add_items([{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}])


def peer(name, directory, port):
    """Return a peer by its name."""
    if name == "openai sqlite":
        return OpenAI(directory)
    from agent.state import context

    if name == "agentup memory":
        return AgentUp(context.InMemoryStorage())
    if name == "agentup file":
        return AgentUp(context.FileStorage(str(directory / "agentup")))
    return AgentUp(context.ValkeyStorage(url=f"valkey://127.0.0.1:{port}"))


async def latency(one, turns):
    """Return one caller's median turn in µs."""
    times = []
    for _ in range(turns):
        begun = perf_counter()
        await one.turn("c-0")
        times.append(perf_counter() - begun)
    return median(times) * 1e6


async def throughput(one, turns):
    """Return the turns per second of 64 callers."""

    async def caller(name):
        for _ in range(turns):
            await one.turn(name)

    begun = perf_counter()
    await asyncio.gather(*(caller(f"c-{n}") for n in range(CALLERS)))
    return CALLERS * turns / (perf_counter() - begun)


async def main(directory, port):
    """Answer what is asked until the input ends."""
    logging.disable()
    answers, sys.stdout = sys.stdout, sys.stderr  # where peers may log
    peers = {}
    for line in iter(sys.stdin.readline, ""):
        measure, name, turns = json.loads(line)
        if name not in peers:
            peers[name] = peer(name, Path(directory), port)
            for n in range(CALLERS):
                await peers[name].seed(f"c-{n}")
        print(
            await {"latency": latency, "throughput": throughput}[measure](peers[name], turns), file=answers, flush=True
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
