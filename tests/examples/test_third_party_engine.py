"""The example of an engine in a package of its own: installed, named by a URL, tested by the conformance suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_engine"
# A minute for all of it: here some cases of each kind, those of several processes and of kill -9 among them.
CHOSEN = "test_turn or stamp or check or label or damaged or killed or dead_holder or fork or kept or optimistic"
HANDLER = """
import asyncio, sys
from agentstate import stateful

@stateful(url=sys.argv[1])
async def handler(task, context, context_id):
    await context.add_to_history(context_id, "user", task["text"])
    return await context.increment(context_id, "n")

print(asyncio.run(handler({"context_id": "c-1", "text": "hi"})))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return an environment in which the package is installed, beside this one's packages."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(target), str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ours = {key: value for key, value in os.environ.items() if not key.startswith("AGENTSTATE_")}
    return {**ours, "PYTHONPATH": str(target)}


def run(environment, directory, *command):
    """Run a program of Python's in the environment, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_named_by_its_url(environment, tmp_path):
    """A handler names it by a URL, remembers over two runs, and the command line shows what it keeps."""
    url = f"folder://{tmp_path}/states"
    assert [run(environment, tmp_path, "-c", HANDLER, url) for _ in range(2)] == ["1\n", "2\n"]
    assert "c-1" in run(environment, tmp_path, "-m", "agentstate.cli", "ls", "--url", url)
    (tmp_path / "agent_config.yaml").write_text("state: {backend: folder, url: 'folder://./states'}\n")
    assert "c-1" in run(environment, tmp_path, "-m", "agentstate.cli", "ls")


def test_its_options_are_checked(environment, tmp_path):
    """A wrong option is an error of the configuration, with the nearest name."""
    code = "from agentstate.storage import registry; registry.create('folder', {'durabilty': 'full'})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "The backend 'folder' has no option 'durabilty'. Did you mean 'durability'?" in done.stderr


def test_it_keeps_the_contract(environment, tmp_path):
    """The package's own test, which inherits the conformance suite, passes."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", "-k", CHOSEN)
    printed = run(
        environment,
        tmp_path,
        *command,
        "--rootdir",
        str(EXAMPLE),
        "-c",
        str(EXAMPLE / "pyproject.toml"),
        str(EXAMPLE / "tests"),
    )
    assert int(printed.strip().splitlines()[-1].split(" passed")[0]) > 40
