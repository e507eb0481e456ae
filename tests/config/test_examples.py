"""The configurations that agents of this kind are documented with."""

import pytest

SERVER = """\
services:
  valkey:
    type: cache
    config:
      url: "valkey://localhost:6379"

state:
  backend: valkey
  ttl: 3600  # 1 hour expiration
  url: "valkey://localhost:6379"
  key_prefix: "agentup:state:"
"""

PRODUCTION = """\
services:
  valkey:
    type: cache
    config:
      url: "${VALKEY_CACHE_URL:valkey://valkey-cache:6379}"
      db: 1
      max_connections: 20
      retry_on_timeout: true
      socket_keepalive: true

state:
  backend: valkey
  url: "${VALKEY_STATE_URL:valkey://valkey-state:6379}"
  key_prefix: "${STATE_KEY_PREFIX:agentup:state:}"
  ttl: 7200  # 2 hours
"""

MULTI = """\
services:
  valkey:
    type: cache
    config:
      url: "valkey://fast-valkey:6379"
      db: 0
      max_connections: 30
  valkey_state:
    type: database
    config:
      url: "valkey://persistent-valkey:6379"
      db: 0

state:
  backend: valkey
  url: "valkey://persistent-valkey:6379"
  key_prefix: "agentup:state:"
  ttl: 86400                  # 24 hours
"""

OVERRIDE = """\
state_management:
  enabled: true
  backend: memory
plugins:
  - plugin_id: ai_agent
    name: AI Agent
    state_override:
      enabled: true
      backend: valkey
      ttl: 7200
      config:
        url: "valkey://localhost:6379"
        db: 3
        key_prefix: "agentup:ai:"
"""

PREFIX = "agentup:state:"


@pytest.mark.parametrize(
    ("text", "names", "backend", "ttl", "options"),
    [
        (SERVER, [], "valkey", 3600, {"url": "valkey://localhost:6379", "key_prefix": PREFIX}),
        (PRODUCTION, [], "valkey", 7200, {"url": "valkey://valkey-state:6379", "key_prefix": PREFIX}),
        (MULTI, [], "valkey", 86400, {"url": "valkey://persistent-valkey:6379", "key_prefix": PREFIX}),
        ("state:\n  backend: valkey\n  ttl: 3600\n", [], "valkey", 3600, {}),
        ("state:\n  backend: memory\n  # fast\n", [], "memory", None, {}),
        (OVERRIDE, [], "memory", None, {}),
        (
            OVERRIDE,
            ["ai_agent"],
            "valkey",
            7200,
            {"url": "valkey://localhost:6379", "db": 3, "key_prefix": "agentup:ai:"},
        ),
    ],
)
def test_documented_configurations(effective, text, names, backend, ttl, options):
    """Each means what its comments say."""
    settings = effective(text, names).settings
    assert (settings.backend, settings.ttl, settings.options) == (backend, ttl, options)


def test_development_files(effective, directory):
    """A directory beside the configuration."""
    settings = effective('state:\n  backend: file\n  storage_dir: "./dev_conversations"\n').settings
    assert settings.options == {"storage_dir": f"{directory}/dev_conversations"}


@pytest.mark.parametrize(
    "given",
    [
        {"storage": "valkey", "url": "valkey://localhost:6379", "key_prefix": PREFIX, "ttl": 3600},
        {"storage": "file", "storage_dir": "./conversation_states"},
        {"storage": "memory"},
        {"storage": "sqlite", "url": "sqlite:///state.db"},
        {"url": "sqlite:///state.db"},
        {},
    ],
)
@pytest.mark.parametrize("text", ["", SERVER, MULTI])
def test_documented_decorators_on_any_configuration(effective, text, given):
    """The decorator's arguments win over whatever the file says, without a trace of another backend."""
    settings = effective(text, **given).settings
    expected = given.get("storage") or ("sqlite" if given or not text else "valkey")
    assert settings.backend == expected
    if expected == "memory":
        assert settings.options == {}
