"""What type checkers make of handlers and states: mypy and pyright must agree with the marks in the files beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [HERE / "handlers.py", HERE / "states.py"]
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
    """Return the lines that are marked as wrong, by file."""
    return {
        file.name: {n for n, line in enumerate(file.read_text().splitlines(), 1) if "# wrong" in line} for file in FILES
    }


def run(*command):
    """Run a type checker on its own and return what it prints."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def by_file(errors):
    """Return the lines of errors by file."""
    return {file.name: {line for name, line, _ in errors if Path(name).name == file.name} for file in FILES}


def test_mypy():
    """mypy reports the marked lines and nothing else."""
    pytest.importorskip("mypy")
    found = [json.loads(line) for line in run("mypy", *MYPY, *map(str, FILES)).splitlines()]
    errors = [(one["file"], one["line"], one["message"]) for one in found if one["severity"] == "error"]
    assert by_file(errors) == marked(), errors
    assert {Path(one["file"]).parent for one in found} == {HERE.relative_to(ROOT)}


def test_pyright():
    """Pyright reports the marked lines and nothing else."""
    pytest.importorskip("pyright")
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(HERE)))
    assert found["summary"]["filesAnalyzed"] == len(FILES)
    errors = [(one["file"], one["range"]["start"]["line"] + 1, one["message"]) for one in found["generalDiagnostics"]]
    assert by_file(errors) == marked(), errors
