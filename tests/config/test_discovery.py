"""Where the file is looked for, and when it is read."""

import subprocess
import sys

import pytest

from agentstate.config import configure, current
from agentstate.errors import ConfigError


def ttl(backends):
    return current().effective(backends=backends).settings.ttl


@pytest.mark.parametrize("name", ["agent_config.yaml", "agentup.yml", "agent_config.toml"])
def test_the_working_directory_is_looked_at(directory, backends, name):
    """Under each of the three names."""
    (directory / name).write_text("[state]\nttl = 5\n" if name.endswith("toml") else "state: {ttl: 5}\n")
    assert ttl(backends) == 5


def test_two_files_side_by_side_are_refused(directory):
    """The error names both; naming one settles it."""
    (directory / "agent_config.yaml").write_text("state: {ttl: 5}\n")
    (directory / "agentup.yml").write_text("state: {ttl: 6}\n")
    with pytest.raises(ConfigError, match=r"agent_config\.yaml and agentup\.yml stand side by side"):
        current()
    assert configure("agentup.yml").document.name == "agentup.yml"


def test_argument_then_variable_then_directory(directory, backends, monkeypatch):
    """`configure(path=)` is stronger than AGENTSTATE_CONFIG, which is stronger than the working directory."""
    (directory / "agent_config.yaml").write_text("state: {ttl: 1}\n")
    (directory / "two.yaml").write_text("state: {ttl: 2}\n")
    (directory / "three.conf").write_text("state: {ttl: 3}\n")
    assert ttl(backends) == 1
    monkeypatch.setenv("AGENTSTATE_CONFIG", "two.yaml")
    assert ttl(backends) == 1
    configure()
    assert ttl(backends) == 2
    configure(directory / "three.conf")
    assert ttl(backends) == 3


def test_a_named_file_must_be_there(directory, monkeypatch):
    """No falling back to defaults when the file that was named is missing; what was in force stays."""
    before = current()
    with pytest.raises(ConfigError, match=r"absent\.yaml: can't be read"):
        configure("absent.yaml")
    assert current() is before
    monkeypatch.setenv("AGENTSTATE_CONFIG", str(directory / "gone.yaml"))
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        configure()


def test_read_once_and_again_on_request(directory, backends):
    """Identity tells whether what was derived from it still holds."""
    (directory / "agent_config.yaml").write_text("state: {ttl: 1}\n")
    first = current()
    (directory / "agent_config.yaml").write_text("state: {ttl: 2}\n")
    assert current() is first
    assert ttl(backends) == 1
    assert configure() is current() is not first
    assert ttl(backends) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "state:\n", "name: agent\n"])
def test_files_without_settings(directory, backends, text):
    """Nothing said means defaults."""
    (directory / "agent_config.yaml").write_text(text)
    assert current().effective(backends=backends).settings.backend == "sqlite"


def test_importing_configuration_is_cheap():
    """Neither YAML nor TOML nor pydantic is loaded before it is used."""
    code = "import sys, agentstate.config; print(*[m for m in ('yaml', 'tomllib', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
