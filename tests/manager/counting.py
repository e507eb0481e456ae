"""Run by test_processes: many tasks of one process change one counter, one list and one account book."""

from __future__ import annotations

import asyncio
import json
import sys

from agentstate import StateManager, StateScope
from agentstate.storage import registry

A = StateScope.agent("a")


async def main(backend, options, process, tasks, rounds):
    storage = registry.create(backend, json.loads(options))
    manager = StateManager(storage)

    async def work(task):
        for n in range(rounds):
            await manager.increment(A, "counter")
            await manager.append(A, "list", [process, task, n])

    await asyncio.gather(*[work(task) for task in range(tasks)])
    await storage.close()


asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
