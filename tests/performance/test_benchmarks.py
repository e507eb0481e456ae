"""The benchmarks run; what they measure is for people to read."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = """before
<!-- measured: begin -->
old
<!-- measured: end -->
after
"""


async def run(*arguments):
    """Run the benchmarks and return their exit code and output."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    out, _ = await running.communicate()
    return running.returncode, out.decode()


@pytest.mark.parametrize("backend", ["memory", "sqlite", "rocksdb", "valkey", "postgresql"])
async def test_a_quick_run(backend, tmp_path):
    """Each section gives a row for the backend, in the terminal and in the page."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    sections = ["turns", "many", "growth", "operations", "idle"]
    code, out = await run(*sections, "--quick", "--backends", backend, "--dir", tmp_path, "--write", page)
    assert code == 0, out
    written = page.read_text()
    assert written.startswith("before\n<!-- measured: begin -->\n`python -m benchmarks turns many")
    assert written.endswith("\n<!-- measured: end -->\nafter\n")
    assert "old" not in written
    assert sum(line.startswith(f"| {backend} | ") for line in written.splitlines()) == len(sections)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


async def test_an_unknown_section():
    """A name that is none says which there are."""
    code, out = await run("speed")
    assert code == 2
    assert "turns" in out
