"""Runs the snippets of one page in order, in the working directory: ``python pages.py PAGE [URL]``.

A page is like a notebook. Its Python shares one namespace and may ``await`` at top level; its
shell commands run in the same directory. What a fence's first line may say, after the language:

``title=NAME``     the snippet is a file of that name; it is written, not run
``raises=ERROR``   the Python must end with that error
``error``          the configuration must be refused
``output``         (``text``) must be what the snippet before it printed; ``…`` stands for anything
``skip="REASON"``  it isn't run, and the reason is reported

YAML and TOML are read by the configuration reader. In ``console``, lines that begin with ``$``
are commands and the others their output. ``valkey://localhost:6379`` becomes URL.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^( *)```(\w+)([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHOWN_ONLY = {"text", "json", "diff", "ini", "http", "sql", "lua", "make"}
EXAMPLE_URL = "valkey://localhost:6379"


class Fence(NamedTuple):
    """One snippet: where it stands, its language, what its first line says, and its text."""

    where: str
    language: str
    options: dict[str, str]
    text: str


def fences(page: Path) -> list[Fence]:
    """Return the snippets of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        where = f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"
        options = dict(word.partition("=")[::2] for word in shlex.split(match[3]))
        found.append(Fence(where, match[2], options, textwrap.dedent(match[4])))
    return found


class Notebook:
    """Runs the snippets of a page, one after the other."""

    def __init__(self, url: str, loop: asyncio.Runner) -> None:
        self.url = url
        self.loop = loop
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, fence: Fence) -> None:
        text = fence.text.replace(EXAMPLE_URL, self.url) if self.url else fence.text
        if "skip" in fence.options:
            return
        if "title" in fence.options:
            Path(fence.options["title"]).write_text(text, encoding="utf-8")
        if fence.language in {"yaml", "toml"}:
            self.configuration(fence)
        elif fence.language == "python" and "title" not in fence.options:
            self.python(fence, text)
        elif fence.language == "bash":
            self.printed = self.shell(text)
        elif fence.language == "console":
            self.console(text)
        elif fence.language == "text" and "output" in fence.options:
            self.compare(fence.text)
        elif fence.language not in SHOWN_ONLY | {"python"}:
            raise AssertionError(f"nobody knows how to run {fence.language!r}")

    def python(self, fence: Fence, text: str) -> None:
        code = compile(text, fence.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        wanted = fence.options.get("raises")
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                result = eval(code, self.namespace)
                if inspect.iscoroutine(result):
                    self.loop.run(result)
        except Exception as error:
            if type(error).__name__ != wanted:
                raise
        else:
            assert wanted is None, f"should have raised {wanted}"
        self.printed = output.getvalue()

    def configuration(self, fence: Fence) -> None:
        from agentstate.config import Configuration
        from agentstate.config.check import check
        from agentstate.config.document import load
        from agentstate.storage import registry

        file = Path(f"snippet.{fence.language}")
        file.write_text(fence.text, encoding="utf-8")
        report = check(Configuration(load(file)), registry)
        file.unlink()
        errors = [one.message for one in report.findings if one.level == "error"]
        assert bool(errors) == ("error" in fence.options), errors or "should have been refused"

    def shell(self, text: str) -> str:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def console(self, text: str) -> None:
        commands = re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
        assert commands, "no line begins with '$ '"
        for command, output in commands:
            self.printed = self.shell(command)
            if output.strip():
                self.compare(output)

    def compare(self, wanted: str) -> None:
        pattern = ".*?".join(re.escape(" ".join(one.split())) for one in wanted.split("…"))
        got = " ".join(self.printed.split())
        assert re.fullmatch(pattern.strip(), got), f"printed {self.printed!r}"


def main() -> None:
    """Run a page; the message of a failure begins with where the snippet stands."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.path.insert(0, "")
    page, url = Path(sys.argv[1]), "".join(sys.argv[2:])
    with asyncio.Runner() as loop:
        notebook = Notebook(url, loop)
        for fence in fences(page):
            try:
                notebook.run(fence)
            except BaseException as error:
                raise SystemExit(f"{fence.where}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
