"""The runner of pages finds what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("pages.py")
WRONG = {
    "python that raises": "```python\n1 / 0\n```\n",
    "an error that doesn't come": "```python raises=ValueError\npass\n```\n",
    "another error": "```python raises=ValueError\n1 / 0\n```\n",
    "another output": "```python\nprint('one two')\n```\n\n```text output\none … three\n```\n",
    "a command that fails": "```bash\nfalse\n```\n",
    "a command that prints something else": "```console\n$ echo one\ntwo\n```\n",
    "no command": "```console\necho one\n```\n",
    "a setting that doesn't exist": "```yaml\nstate: {backend: sqlite, tt: 5}\n```\n",
    "a right setting shown as wrong": "```yaml error\nstate: {backend: sqlite}\n```\n",
    "a language that nobody runs": "```perl\n1;\n```\n",
    "an indented snippet": "- so:\n\n  ```python\n  assert False\n  ```\n",
}
RIGHT = """
```python title=greeting.py
WORD = "hello"
```

```python
import asyncio
from greeting import WORD
await asyncio.sleep(0)
print(WORD, "world")
```

```text output
hello …
```

```console
$ echo one; echo two
one
…
```

```bash skip="it would fail"
false
```
"""


def run(page, text):
    """Run a page and return how it ended."""
    page.write_text(text)
    command = [sys.executable, RUNNER, page]
    return subprocess.run(command, cwd=page.parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found(tmp_path, text):
    """A page with a wrong snippet fails, and the message begins with where it stands."""
    done = run(tmp_path / "page.md", f"# Title\n\n{text}")
    assert done.returncode == 1
    assert done.stderr.startswith("page.md:")


def test_what_is_right_passes(tmp_path):
    """Files, top-level await, outputs, commands and skipped snippets are understood."""
    done = run(tmp_path / "page.md", RIGHT)
    assert (done.returncode, done.stderr) == (0, "")
