"""What keeps the repository worth living in, beyond what linters check."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import grimp
import pytest

from agentstate.storage.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
LINES = 400
TEST_LINES = 700
IGNORES_PER_1000 = 2
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError\(\))")
# Absolute paths of somebody's machine, and relative ones that lead out of the repository.
ELSEWHERE = re.compile(rf"(?<![\w.])/(?:home|root|Users)/\w|(?<!\.)\.\./\.\./\.\./|{re.escape(str(ROOT))}\b")


def files(*suffixes):
    """Return the files of the repository, as git knows them, those that aren't committed yet as well."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no clone: which files belong to the repository isn't known")
    found = [ROOT / line for line in listed.stdout.splitlines()]
    return [one for one in found if one.suffix in suffixes and one.is_file()]


def test_no_module_is_too_long():
    """A module holds one idea; a long one holds two. Nothing is exempt."""
    long = []
    for file in files(".py"):
        limit = TEST_LINES if file.is_relative_to(ROOT / "tests") else LINES
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            long.append(f"{file.relative_to(ROOT)}: {lines}")
    assert long == []


def test_every_test_says_what_it_proves():
    """Each test has a docstring."""
    silent = []
    for file in files(".py"):
        if not file.is_relative_to(ROOT / "tests"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        tests = [node for node in nodes if node.name.startswith("test_")]
        silent += [f"{file.name}:{one.lineno} {one.name}" for one in tests if not ast.get_docstring(one)]
    assert silent == []


def test_checks_are_rarely_silenced_and_never_without_a_code():
    """Each ``ignore`` and ``noqa`` names what it silences, and type checkers are silenced rarely."""
    bare, ignores, lines = [], 0, 0
    for file in files(".py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"#\s*(type: ignore(?!\[)|pyright: ignore(?!\[)|noqa(?!: ?[A-Z]))", line):
                bare.append(f"{file.relative_to(ROOT)}:{number}")
            if file.is_relative_to(ROOT / "agentstate"):
                lines += 1
                ignores += bool(re.search(r"#.*(type|pyright): ignore\[", line))
    assert bare == []
    assert ignores * 1000 < IGNORES_PER_1000 * lines, f"{ignores} in {lines} lines"


def test_nothing_is_left_unfinished_or_points_elsewhere():
    """No marks of unfinished work, no merge conflicts, no paths of somebody's machine."""
    found = []
    for file in files(".py", ".md", ".toml", ".yaml", ".yml", ".lua", ".sh", ""):
        if file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line) or ELSEWHERE.search(line) or line.startswith(("<<<<<<< ", ">>>>>>> ")):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_backends_are_independent_of_each_other():
    """No backend imports another one's modules; what they share belongs to none of them."""
    graph = grimp.build_graph("agentstate", exclude_type_checking_imports=True)
    homes = {name: where.partition(":")[0] for name, where in BUILT_IN.items()}

    def backend(module):
        return next(
            (name for name, home in homes.items() if re.match(rf"{re.escape(home)}(_\w+|\..*)?$", module)), None
        )

    crossing = [
        f"{importer} -> {imported}"
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if backend(importer) and backend(imported) and backend(importer) != backend(imported)
    ]
    assert crossing == []


def test_the_version_is_the_same_everywhere():
    """The package, the distribution and the changelog name one version, or the changelog says Unreleased."""
    import agentstate

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert agentstate.__version__ == project["version"]
    heading = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert heading in (project["version"], "Unreleased")


def test_the_entry_points_are_the_built_in_backends():
    """What other packages find under the entry point group is what the registry knows by itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["agentstate.storage"] == BUILT_IN


def test_make_help_names_every_target():
    """Each target says what it does, and ``make`` alone prints it."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # not as make's own child
    printed = subprocess.run(["make"], cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in printed.splitlines()[1:]} == targets


def test_integrations_have_one_shape():
    """An integration is a distribution of its own: module, types, README, tests, and its own pyproject."""
    for here in (ROOT / "integrations").glob("*/"):
        module = f"agentstate_{here.name.replace('-', '_')}"
        project = tomllib.loads((here / "pyproject.toml").read_text())
        assert project["project"]["name"] == f"agentstate-{here.name}"
        assert set(project.get("tool", {})) <= {"hatch", "pyright", "uv"}
        wanted = ("README.md", "tests", f"{module}/py.typed")
        assert [name for name in wanted if not (here / name).exists()] == []
