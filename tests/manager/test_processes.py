"""Several processes, each with many tasks, on the same states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentstate import StateManager, StateScope
from agentstate.storage import registry

A = StateScope.agent("a")
PROCESSES, TASKS, ROUNDS = 4, 64, 1


@pytest.mark.parametrize("backend", ["sqlite", "file", "valkey"])
async def test_many_tasks_of_many_processes(storage_options, backend):
    """64 tasks in each of 4 processes count and append: nothing is lost, nothing comes twice, nobody gives up."""
    options = storage_options(backend)
    script = str(Path(__file__).with_name("counting.py"))
    given = [backend, json.dumps(options)]
    running = [
        subprocess.Popen(  # noqa: ASYNC220 - other processes are waited for at the end
            [sys.executable, script, *given, str(number), str(TASKS), str(ROUNDS)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, "\n".join(errors)
    storage = registry.create(backend, options)
    manager = StateManager(storage)
    assert await manager.get(A, "counter") == PROCESSES * TASKS * ROUNDS
    wanted = [[p, t, n] for p in range(PROCESSES) for t in range(TASKS) for n in range(ROUNDS)]
    assert sorted(await manager.get(A, "list")) == wanted
    await storage.close()
