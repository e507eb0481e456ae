"""The conformance suite finds storages that break the contract, and hides none of its own cases."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from agentstate.testing import conformance

MUTANTS = Path(__file__).with_name("mutants.py")


def pytest_says(*args: str) -> list[str]:
    """Run pytest in a process of its own and return the lines it printed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=MUTANTS.parents[2])
    return done.stdout.splitlines()


def test_mutants_are_found() -> None:
    """Each storage with one fault fails a case of the class that is about it."""
    names = {
        f"Test{line.split('(')[0].removeprefix('class ')}"
        for line in MUTANTS.read_text().splitlines()
        if "(MemoryStorage)" in line
    }
    failed = {line.split("::")[1] for line in pytest_says("--tb=no", "-rfE", str(MUTANTS)) if line.startswith("FAILED")}
    assert len(names) > 25
    assert sorted(names - failed) == [], "these mutants live"


def test_no_case_hides_another() -> None:
    """Every case has a name of its own: in the combined class one would replace the other."""
    bases = conformance.StorageConformance.__bases__
    names = Counter(name for base in bases for name in vars(base) if name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_everything_is_combined() -> None:
    """The combined class holds every class of the suite."""
    classes = {getattr(conformance, name) for name in conformance.__all__ if name.endswith("Tests")}
    assert set(conformance.StorageConformance.__bases__) == classes


def test_many_cases() -> None:
    """Each backend has hundreds of cases to pass."""
    backend = MUTANTS.parents[1] / "storage" / "test_conformance_memory.py"
    assert sum("::test_" in line for line in pytest_says("--collect-only", str(backend))) > 500
