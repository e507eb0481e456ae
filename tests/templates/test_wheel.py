"""What is installed from a wheel brings its templates with it."""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    """Run a command and return what it prints."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("AGENTSTATE", "PYTEST", "PYTHON"))
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The ``bin`` of a fresh environment: our wheel, and the dependencies that the tests run with."""
    pytest.importorskip("pip")
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    here = ("--no-build-isolation",) if find_spec("hatchling") else ()
    run(*pip, "wheel", "--no-deps", *here, "--wheel-dir", place, ROOT)
    (wheel,) = place.glob("agentstate_suite-*.whl")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_a_skill_from_the_wheel(installed, tmp_path):
    """The command finds its templates, and the test that it writes passes."""
    where = run(installed / "python", "-c", "import agentstate; print(agentstate.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    run(installed / "agentstate", "skill", "create", "--name", "Notes", "--backend", "file", cwd=tmp_path)
    run(installed / "agentstate", "skill", "create", "--name", "Echo", "--no-state", cwd=tmp_path)
    assert "skill_id: notes" in (tmp_path / "agent_config.yaml").read_text()
    out = run(installed / "python", "-m", "pytest", "-q", "-W", "ignore::DeprecationWarning", cwd=tmp_path)
    assert "3 passed" in out


def test_the_wheel_holds_no_leftovers(installed):
    """Templates are there, byte code and caches of the checkout aren't."""
    (package,) = installed.parent.glob("lib/python*/site-packages/agentstate")
    packaged = {
        str(one.relative_to(package / "_templates")) for one in (package / "_templates").rglob("*") if one.is_file()
    }
    of_checkout = {
        str(one.relative_to(ROOT / "templates"))
        for one in (ROOT / "templates").rglob("*")
        if one.is_file() and "cache" not in str(one)
    }
    assert {one for one in packaged if "__pycache__" not in one} == of_checkout
