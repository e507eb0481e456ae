"""The configurations in examples/config/ load, and say what they are meant to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentstate.config import configure
from agentstate.config.check import check
from agentstate.storage import registry

CONFIGS = Path(__file__).parents[2] / "examples" / "config"


@pytest.fixture
def effective(monkeypatch):
    """Return a function that returns a handler's effective settings in an example."""
    ours = ("VALKEY_STATE_URL", "VALKEY_STATE_PASSWORD", "STATE_KEY_PREFIX")
    for name in (*ours, "STATE_DATABASE_URL", "STATE_DATABASE_USER", "STATE_DATABASE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)

    def settings(file, *names):
        configuration = configure(CONFIGS / file)
        assert [one.message for one in check(configuration, registry).findings if one.level == "error"] == []
        return configuration.effective(names, backends=registry).settings

    yield settings
    monkeypatch.undo()
    configure()


def test_development(effective):
    """Files, in a directory beside the configuration."""
    settings = effective("development.yaml")
    assert (settings.backend, settings.options["storage_dir"]) == ("file", str(CONFIGS / "dev_conversations"))


def test_testing(effective):
    """Memory."""
    assert effective("testing.yaml").backend == "memory"


def test_production(effective, monkeypatch):
    """Valkey; addresses from the environment; two handlers with settings of their own."""
    settings = effective("production.yaml")
    assert (settings.backend, settings.ttl, settings.options["key_prefix"]) == ("valkey", 7200, "agentup:state:")
    assert settings.options["url"] == "valkey://valkey-state:6379"
    monkeypatch.setenv("VALKEY_STATE_URL", "valkeys://state.internal:6380")
    monkeypatch.setenv("VALKEY_STATE_PASSWORD", "secret")
    settings = effective("production.yaml", "checkout")
    assert (settings.turns, settings.options["durability"]) == ("reject", "full")
    assert settings.options["url"] == "valkeys://state.internal:6380"
    assert settings.options["password"].get_secret_value() == "secret"
    assert effective("production.yaml", "status").turns == "read"


def test_multi_valkey(effective):
    """The state is on the server that is named, one handler on the other; the cache is nobody's."""
    settings, drafts = effective("multi_valkey.yaml"), effective("multi_valkey.yaml", "drafts")
    assert (settings.options["url"], settings.ttl) == ("valkey://persistent-valkey:6379", 86400)
    assert (drafts.options["url"], drafts.options["key_prefix"]) == ("valkey://fast-valkey:6379", "drafts:")
    assert "max_connections" not in settings.options


def test_postgresql(effective):
    """A schema of the agent's own, on a server named by the environment."""
    settings = effective("postgresql.yaml")
    assert (settings.backend, settings.ttl) == ("postgresql", 86400)
    assert (settings.options["url"], settings.options["database"]) == ("postgresql://postgres:5432", "agents")
    assert (settings.options["schema_name"], settings.options["pool_size"]) == ("agent_state", 10)
    assert effective("postgresql.yaml", "report").turns == "read"
