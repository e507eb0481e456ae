"""``make demo``: the program behind it, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.mark.parametrize("state", ["sqlite", "file", "valkey"])
def test_the_agent_goes_on_after_it_was_killed(state, tmp_path):
    """A real A2A agent is killed and started again; its client finds name, preferences, task and history."""
    done = subprocess.run(
        [sys.executable, DEMO / "run.py", "--state", state, "--directory", "here"],
        cwd=tmp_path,
        env={**os.environ, "AGENTSTATE_BACKEND": "memory", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "kill -9" in done.stdout
    assert done.stdout.count("still known") == 4
    assert "async def assistant(task, context, context_id):" in done.stdout
    assert ("in the middle of a turn" in done.stdout) == (state != "valkey")
    assert [one.name for one in (tmp_path / "here").iterdir()] == [state]
