"""What type checkers make of stateful handlers: mypy and pyright must agree with the marks in ``handlers.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HANDLERS = HERE / "handlers.py"
ROOT = HERE.parent.parent
MYPY = (
    "--strict",
    "--allow-untyped-defs",
    "--allow-incomplete-defs",
    "--allow-untyped-calls",
    "--output=json",
    "--cache-dir=.mypy_cache/shapes",
)


def marked():
    """Return the lines that are marked as wrong."""
    return {n for n, line in enumerate(HANDLERS.read_text().splitlines(), 1) if "# wrong" in line}


def run(*command):
    """Run a type checker on its own and return what it prints."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_mypy():
    """mypy reports the marked lines and nothing else."""
    pytest.importorskip("mypy")
    found = [json.loads(line) for line in run("mypy", *MYPY, str(HANDLERS)).splitlines()]
    errors = {one["line"]: one["message"] for one in found if one["severity"] == "error"}
    assert set(errors) == marked(), errors
    assert {one["file"] for one in found} == {"tests/typing/handlers.py"}


def test_pyright():
    """Pyright reports the marked lines and nothing else."""
    pytest.importorskip("pyright")
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(HERE)))
    assert found["summary"]["filesAnalyzed"] == 1
    errors = {one["range"]["start"]["line"] + 1: one["message"] for one in found["generalDiagnostics"]}
    assert set(errors) == marked(), errors
