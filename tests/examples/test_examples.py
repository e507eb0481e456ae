"""Every example runs as it is, from an empty directory, and again: it then remembers the first time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("AGENTSTATE_", "VALKEY_"))}


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an example and returns what it printed."""

    def run_example(name, *arguments, said=""):
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    return run_example


def test_every_example_is_run_here():
    """No example is forgotten by these tests, or by the table of examples."""
    tests = "".join(one.read_text() for one in Path(__file__).parent.glob("test_*.py"))
    table = (EXAMPLES / "README.md").read_text()
    for one in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("config/*.yaml")]:
        assert one.name in table
        assert one.name in tests or one.name == "storage_checks.py"


def test_conversation_memory(run):
    """The skill recalls what was said, and the second run goes on with the first."""
    first, second = (run("demo_conversation_memory_skill.py") for _ in range(2))
    assert "I remember. Lately you said: I am planning a trip to Lisbon.; I would like to go by train." in first
    assert "message number 1." in first
    assert "message number 4." in second


def test_multi_session_task(run):
    """The task that one session began is continued by another one, in another process."""
    printed = run("demo_multi_session_task_skill.py")
    assert "[tuesday] status: The task begun on monday: 1 of 3 steps done, in_progress." in printed
    assert "[tuesday] status: The task begun on monday: 3 of 3 steps done, completed." in printed


@pytest.mark.parametrize("name", ["test_memory_storage.py", "test_file_storage.py", "test_valkey_storage.py"])
def test_storage_scripts(run, name):
    """Each storage script tries all operations, and all of them work."""
    printed = run(name)
    assert "FAILED" not in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("ok")][:5] == [
        "variables",
        "history",
        "metadata",
        "concurrency",
        "errors",
    ]
    assert ("ok      opened again" in printed) == (name == "test_file_storage.py")


def test_memory_assistant(run):
    """What one process is told, the next one knows; what it forgets is gone."""
    run("memory_assistant.py", said="remember name = Ada\nremember city = Lisbon\n")
    printed = run("memory_assistant.py", said="what is name?\nforget name\neverything\nhello\n")
    assert printed.splitlines()[1:4] == ["Ada.", "Forgotten.", "city is Lisbon"]
    assert "what is KEY?" in printed.splitlines()[4]


def test_preference_learner(run):
    """Users don't share what was learned, and keep it over runs."""
    first, second = (run("preference_learner.py") for _ in range(2))
    assert "interested in programming and travelling." in first
    assert "interested in baking." in first
    assert second.splitlines()[1] == "  -> Noted: programming, travelling."


def test_long_running_task(run):
    """The task goes on where it was paused, to its end."""
    ends = [run("long_running_task.py", *arguments).splitlines()[-1] for arguments in ([], [], [], ["--reset"])]
    assert ends == [
        "at the end: 3 of 7 done, paused",
        "at the end: 6 of 7 done, paused",
        "at the end: 7 of 7 done, completed",
        "at the end: 3 of 7 done, paused",
    ]


def test_turn_modes(run):
    """Each mode does to ten callers at once what it says."""
    lines = dict(line.split(maxsplit=1) for line in run("turn_modes.py").splitlines())
    assert lines["queue"] == "10 x counted"
    assert lines["reject"] == "1 x counted, 9 x TurnInProgressError"
    assert lines["optimistic"] == "1 x counted, 9 x ConflictError"
    assert lines["read"] == "10 x saw 0"


def test_asgi_chat(tmp_path):
    """Replies are streamed, each browser has its own conversation, and it survives the server's kill."""
    with ExitStack() as stack:
        ada, bob = (stack.enter_context(httpx.Client(timeout=20)) for _ in range(2))
        first, server = start(stack, tmp_path)
        assert "<form>" in ada.get(first).text
        with ada.stream("POST", f"{first}chat", content="I am Ada") as response:
            assert len(list(response.iter_text())) > 1
        assert "nothing" in bob.post(f"{first}chat", content="I am Bob").text
        server.kill()
        second, _ = start(stack, tmp_path)
        assert "Before that: I am Ada." in ada.post(f"{second}chat", content="Hello again").text
        assert "Before that: I am Bob." in bob.post(f"{second}chat", content="Hello again").text


def start(stack, directory):
    """Start the chat's server, to be killed at the end at the latest, and return its address and process."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, EXAMPLES / "asgi_chat.py", "--port", "0"],
            cwd=directory,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(process.kill)
    return re.fullmatch(r"(http://127\.0\.0\.1:\d+/)\n", process.stdout.readline())[1], process
