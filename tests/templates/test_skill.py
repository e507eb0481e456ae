"""The templates are what they look like: projects that run, and settings that hold."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentstate.cli.scaffold import NAME, TITLE, template_root
from agentstate.config import configure
from agentstate.storage import registry

TEMPLATES = Path(__file__).parents[2] / "templates"


def environment():
    """Return an environment without our variables and without the outer test run's."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("AGENTSTATE", "PYTEST"))}


def test_they_are_found_in_the_checkout():
    """Without a package of templates, those of the checkout are used."""
    assert template_root() == TEMPLATES


@pytest.mark.parametrize("variant", ["stateful", "stateless"])
def test_a_template_runs_as_it_is(tmp_path, variant):
    """Its own tests pass where it stands, before any name is put in."""
    project = tmp_path / "project"
    shutil.copytree(TEMPLATES / "skill" / variant, project)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((TEMPLATES / "skill").glob("*/**/*.py")), ids=lambda one: one.stem)
def test_names_are_filled_in_everywhere(path):
    """Every file of a template has the names that are replaced, where it has any of its own."""
    text = path.read_text()
    assert path.name == "__init__.py" or (NAME in path.name and NAME in text and text.startswith(f'"""{TITLE}'))


@pytest.mark.parametrize("backend", sorted(registry.BUILT_IN))
def test_every_backend_has_settings_that_hold(tmp_path, backend):
    """Each built-in backend has its settings, and they are accepted."""
    text = (TEMPLATES / "skill" / "state" / f"{backend}.yaml").read_text()
    path = tmp_path / "agent_config.yaml"
    path.write_text("state:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    try:
        settings = configure(path).effective(backends=registry).settings
        assert settings.backend == backend
        registry.create(backend, settings.options)
    finally:
        configure()
