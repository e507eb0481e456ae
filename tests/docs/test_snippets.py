"""Every Python, YAML and shell snippet of README.md and docs/ runs; every link and target is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import EXAMPLE_URL, fences
from tests.servers import ValkeyServer

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("pages.py")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SKIPPED = [(fence.where, fence.options["skip"]) for page in PAGES for fence in fences(page) if "skip" in fence.options]


@pytest.fixture(scope="module")
def valkey():
    """Return the URL of this process's Valkey server."""
    with ValkeyServer(save="3600 1") as server:
        yield server.url


@pytest.fixture
def url(request, page):
    """Return what the example's address becomes, where a page names it."""
    return request.getfixturevalue("valkey") if EXAMPLE_URL in page.read_text(encoding="utf-8") else ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_snippets(page, url, tmp_path):
    """All snippets of a page run in order, as a reader would try them."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTSTATE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", RUNNER, page, url],
        cwd=tmp_path,
        env={**environment, "COLUMNS": "200", "VALKEY_URL": url or EXAMPLE_URL},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("where", "reason"), SKIPPED, ids=[where for where, _ in SKIPPED])
def test_skipped_snippet(where, reason):
    """A snippet that isn't run says why."""
    assert len(reason.split()) > 1
    pytest.skip(f"{where} isn't run: {reason}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page):
    """Every relative link of a page leads to a file of the project, and to a heading that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not heading or heading in anchors(file), target


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets(page):
    """Every ``make`` target that a page names is in the Makefile."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets
