"""What the processes of test_processes.py run: handlers on a state that they share."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from agentstate import Conversation, stateful
from agentstate.storage import registry


async def contend(backend, options, name, tasks):
    """Call one handler from many tasks at once; each reads, changes and appends."""
    storage = registry.create(backend, options)

    @stateful(storage=storage, wait=120)
    async def handler(task, conversation: Conversation):
        seen = await conversation.get("n", 0)
        await asyncio.sleep(0)
        await conversation.set("n", seen + 1)
        await conversation.increment("count")
        await conversation.add("user", task["text"])

    await asyncio.gather(*(handler({"context_id": "shared", "text": f"{name}-{n}"}) for n in range(tasks)))
    await storage.close()


async def queue(backend, options, seconds):
    """Take turns of 5 ms on one conversation for a while; print how many, and the longest wait."""
    storage = registry.create(backend, options)

    @stateful(storage=storage)
    async def handler(task, conversation: Conversation):
        await conversation.increment("n")
        await asyncio.sleep(0.005)

    await storage.open()
    print("ready", flush=True)
    sys.stdin.readline()
    end, turns, longest = time.monotonic() + seconds, 0, 0.0
    while (begun := time.monotonic()) < end:
        await handler({"context_id": "shared"})
        turns, longest = turns + 1, max(longest, time.monotonic() - begun)
    print(json.dumps([turns, longest]), flush=True)
    await storage.close()


if __name__ == "__main__":
    what, backend, options, *rest = sys.argv[1:]
    if what == "contend":
        asyncio.run(contend(backend, json.loads(options), rest[0], int(rest[1])))
    else:
        asyncio.run(queue(backend, json.loads(options), float(rest[0])))
