"""What the processes of `benchmarks.processes` run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from time import monotonic
from typing import Any

from agentstate import Conversation, stateful
from agentstate.storage import registry


async def queue(storage: Any, seconds: float) -> tuple[float, float]:
    """Take turns of 5 ms for a while; return how many, and the longest wait for one."""

    @stateful(storage=storage)
    async def handler(_: object, conversation: Conversation) -> None:
        await conversation.increment("n")
        await asyncio.sleep(0.005)

    end, turns, longest = monotonic() + seconds, 0, 0.0
    while (begun := monotonic()) < end:
        await handler({"context_id": "queued"})
        turns, longest = turns + 1, max(longest, monotonic() - begun)
    return turns, longest


async def contend(storage: Any, tasks: float) -> tuple[float, float]:
    """Change one conversation from many tasks; return how long that took."""

    @stateful(storage=storage, wait=120)
    async def handler(task: dict[str, str], conversation: Conversation) -> None:
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)
        await conversation.increment("count")
        await conversation.add("user", task["text"])

    begun = monotonic()
    texts = [f"{os.getpid()}-{n}" for n in range(int(tasks))]
    await asyncio.gather(*(handler({"context_id": "contended", "text": text}) for text in texts))
    return monotonic() - begun, 0.0


async def main(what: str, backend: str, options: str, argument: str) -> None:
    """Open the storage, say so, wait for the word, run, and print the figures."""
    storage = registry.create(backend, json.loads(options))
    await storage.open()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await {"queue": queue, "contend": contend}[what](storage, float(argument))), flush=True)
    await storage.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
