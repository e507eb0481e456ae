"""Which layer wins, what falls away, and what is refused."""

from pathlib import Path

import pytest

from agentstate.config import Configuration, HandlerSettings
from agentstate.errors import ConfigError, UnknownBackendError


def source_of(effective, key):
    """Return where a setting comes from."""
    return next(row.source for row in effective.explain if row.key == key)


VALKEY = """\
state:
  backend: valkey
  url: valkey://prod:6379
  key_prefix: "app:"
  ttl: 3600
  config:
    db: 2
"""


def test_without_anything_there_are_defaults(directory, backends):
    """No file, no variables: SQLite, for ever, one turn at a time."""
    effective = Configuration(None).effective(backends=backends)
    assert effective.settings == HandlerSettings(
        backend="sqlite", options={"url": f"sqlite:///{directory}/agentstate.db"}
    )
    assert effective.settings.ttl is None
    assert {row.source for row in effective.explain} == {"default"}


def test_each_layer_is_stronger_than_the_next(effective, monkeypatch):
    """Decorator, handler block, section, environment, default: each wins over those below it."""
    for name in ("TTL", "WAIT", "HISTORY", "MAX_WAITING"):
        monkeypatch.setenv(f"AGENTSTATE_{name}", "1")
    text = "state: {ttl: 2, wait: 2, history: 2}\nhandlers:\n  chat:\n    state: {ttl: 3, wait: 3}\n"
    found = effective(text, ["chat"], ttl=4)
    settings = found.settings
    assert (settings.ttl, settings.wait, settings.history, settings.max_waiting, settings.turn_timeout) == (
        4,
        3,
        2,
        1,
        600,
    )
    assert source_of(found, "ttl") == "decorator"
    assert source_of(found, "wait") == "agent_config.yaml:4 handlers.chat.state.wait"
    assert source_of(found, "history") == "agent_config.yaml:1 state.history"
    assert source_of(found, "max_waiting") == "environment AGENTSTATE_MAX_WAITING"
    assert source_of(found, "turn_timeout") == "default"


def test_connection_settings_merge_while_the_backend_is_the_same(effective):
    """A stronger layer that names the same backend, or none, keeps the weaker url, prefix and options."""
    found = effective(VALKEY, storage="valkey", key_prefix="mine:")
    assert found.settings.options == {"url": "valkey://prod:6379", "key_prefix": "mine:", "db": 2}
    assert found.settings.ttl == 3600
    assert source_of(found, "db") == "agent_config.yaml:7 state.config.db"
    assert effective(VALKEY, key_prefix="mine:").settings.options == found.settings.options


@pytest.mark.parametrize("given", [{"storage": "memory"}, {"url": "memory://"}, {"backend": "memory"}])
def test_another_backend_drops_the_weaker_connection_only(effective, given):
    """The url, prefix and options go; the lifetime stays."""
    found = effective(VALKEY, **given)
    assert found.settings.backend == "memory"
    assert found.settings.options.keys() <= {"url"}
    assert found.settings.ttl == 3600


def test_a_backend_in_the_handlers_block_counts_too(effective):
    """A handler that keeps files doesn't inherit the section's server, and its decorator builds on its block."""
    text = VALKEY + "handlers:\n  notes:\n    state: {backend: file, storage_dir: notes}\n"
    found = effective(text, ["notes"])
    assert found.settings.backend == "file"
    assert found.settings.options == {"storage_dir": str(Path.cwd() / "notes")}
    assert effective(text, ["notes"], storage="valkey").settings.options == {}


def test_two_backends_there_and_back_leave_nothing(effective):
    """Values of a layer whose backend was replaced don't come back when a third layer names it again."""
    text = VALKEY + "handlers:\n  a:\n    state: {backend: file}\n"
    assert effective(text, ["a"], storage="valkey").settings.options == {}


def test_an_option_without_a_backend_waits_for_a_stronger_one(effective, monkeypatch):
    """AGENTSTATE_KEY_PREFIX counts for the valkey that the file names, and is nothing to a file backend."""
    monkeypatch.setenv("AGENTSTATE_KEY_PREFIX", "env:")
    assert effective("state: {backend: valkey}").settings.options == {"key_prefix": "env:"}
    assert effective("state: {backend: file}").settings.options.keys() == {"storage_dir"}


def test_environment_alone(effective, monkeypatch):
    """AGENTSTATE_URL decides the backend; an empty variable is none; others' variables are ignored."""
    monkeypatch.setenv("AGENTSTATE_URL", "valkey://env:6379")
    monkeypatch.setenv("AGENTSTATE_DB", "3")
    monkeypatch.setenv("AGENTSTATE_TTL", "")
    monkeypatch.setenv("AGENTSTATE_PORT_6379_TCP", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("AGENTSTATE_PASSWORD", "p${HOME}")
    found = effective("")
    assert found.settings.backend == "valkey"
    assert found.settings.options["db"] == 3
    assert found.settings.options["password"].get_secret_value() == "p${HOME}"
    assert found.settings.ttl is None
    assert source_of(found, "url") == "environment AGENTSTATE_URL"
    monkeypatch.setenv("AGENTSTATE_BACKEND", "file")
    with pytest.raises(ConfigError, match=r"environment: AGENTSTATE_BACKEND: 'file' disagrees with the url"):
        effective("")


def test_storage_is_another_name_for_backend(effective, monkeypatch):
    """In the file and the environment as in the decorator."""
    assert effective("state: {storage: memory}").settings.backend == "memory"
    monkeypatch.setenv("AGENTSTATE_STORAGE", "file")
    assert effective("").settings.backend == "file"


def test_the_url_decides_the_backend(effective):
    """By its scheme, alone or beside the same backend."""
    assert effective("state: {url: 'redis://h:6379'}").settings.backend == "valkey"
    assert effective("state: {backend: valkey, url: 'valkeys://h'}").settings.backend == "valkey"


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        (
            "state: {backend: file, url: 'valkey://h'}",
            {},
            "agent_config.yaml:1: state.backend: 'file' disagrees with the url",
        ),
        (
            "state: {backend: sqlite, key_prefix: x}",
            {},
            "agent_config.yaml:1: state.key_prefix: 'key_prefix' can't apply to",
        ),
        (
            "state:\n  backend: valkey\n  storage_dir: x\n",
            {},
            "agent_config.yaml:3: state.storage_dir: 'storage_dir' can't",
        ),
        (
            "state: {key_prefix: x}",
            {},
            "'key_prefix' can't apply to the backend 'sqlite' (default). It belongs to valkey.",
        ),
        (
            "state: {backend: file}",
            {"key_prefix": "x"},
            "decorator: key_prefix: 'key_prefix' can't apply to the backend 'file'",
        ),
        ("state: {backend: file, key_prefix: x}", {"storage": "memory"}, "state.key_prefix: 'key_prefix' can't apply"),
        ("state:\n  tll: 3\n", {}, "agent_config.yaml:2: state.tll: unknown setting 'tll'. Did you mean 'ttl'?"),
        ("state: {backend: valkey, keyprefix: x}", {}, "unknown setting 'keyprefix'. Did you mean 'key_prefix'?"),
        ("state: {config: {max_conections: 5}, backend: valkey}", {}, "state.config.max_conections: unknown setting"),
        ("state: {histry: 5}", {"storage": "memory"}, "Did you mean 'history'?"),
        ("", {"tll": 5}, "decorator: tll: unknown setting 'tll'. Did you mean 'ttl'?"),
        ("state: {backend: valky}", {}, "state.backend: There is no backend 'valky'. Did you mean 'valkey'?"),
        ("state: {backend: valky}", {"storage": "memory"}, "state.backend: There is no backend 'valky'"),
        ("state: {url: 'mysql://h'}", {}, "state.url: No backend has the scheme of 'mysql://h'"),
        ("state: {url: localhost}", {}, "state.url: No backend has the scheme"),
        ("state: {url: 5}", {}, "state.url: must be text, not a number"),
        ("state: {backend: [a]}", {}, "state.backend: must be text, not a list"),
        (
            "state: {url: 'valkey://h?db=1', config: {db: 2}}",
            {},
            "state.config.db: disagrees with the query of the url",
        ),
        ("state: {url: 'valkey://h?db=1&db=2'}", {}, "stands twice in the query"),
        ("state: {url: 'valkey://h?dbb=1'}", {}, "unknown setting 'dbb'"),
        ("state: {ttl: 1, config: {ttl: 2}}", {}, "state.config.ttl: disagrees with agent_config.yaml:1 state.ttl"),
        ("state:\n  ttl: 1\n  ttl: 2\n", {}, "agent_config.yaml:3: state.ttl: the key stands twice"),
        ("state: {ttl: 1}\nx: 1\nstate: {ttl: 2}\n", {}, "agent_config.yaml:3: state: the key stands twice"),
        ("handlers:\n  a: {state: {}}\n  a: {}\n", {}, "agent_config.yaml:3: handlers.a: the key stands twice"),
        (
            "skills:\n  - name: a\n    state: {ttl: 1}\n    state: {}\n",
            {},
            "agent_config.yaml:4: skills[0].state: the key",
        ),
        (
            "state: {storage: valkey, backend: file}",
            {},
            "state.backend: disagrees with agent_config.yaml:1 state.storage",
        ),
        ("state: [ttl]", {}, "agent_config.yaml:1: state: must be a mapping of settings, not a list"),
        ("state: memory", {}, "must be a mapping of settings, not text"),
        ("state: {config: 3}", {}, "state.config: must be a mapping of settings, not a number"),
        ("state: {ttl: !seconds 3}", {}, "state.ttl: can't be read"),
        (
            "state: {ttl: 1}\nstate_management: {ttl: 2}\n",
            {},
            "agent_config.yaml:1 state and agent_config.yaml:2 state_management",
        ),
        (
            "state: {url: '${NOWHERE_SET}'}",
            {},
            "agent_config.yaml:1: state.url: the environment variable NOWHERE_SET is not set",
        ),
    ],
)
def test_what_is_refused(effective, text, given, said):
    """Each mistake is named with its file, line and key, and the nearest valid name."""
    with pytest.raises(ConfigError) as caught:
        effective(text, **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_backends_have_their_own_error(effective):
    """So that a caller can tell them apart."""
    with pytest.raises(UnknownBackendError):
        effective("state: {backend: bogus}")
    with pytest.raises(UnknownBackendError):
        effective("state: {url: 'bogus://x'}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ttl", "soon", "should be a valid number"),
        ("ttl", "0", "greater than 0"),
        ("ttl", "-1", "greater than 0"),
        ("ttl", "true", "yes and no are no numbers"),
        ("ttl", ".inf", "state.ttl"),
        ("ttl", "1e300", "less than or equal"),
        ("ttl", "[1]", "should be a valid number"),
        ("ttl_mode", "slide", "should be 'fixed' or 'sliding'"),
        ("turns", "quee", "should be 'queue', 'reject', 'optimistic' or 'read'"),
        ("history", "2.5", "integer"),
        ("history", "-1", "greater than or equal to 0"),
        ("autosave", "maybe", "should be a valid boolean"),
        ("wait", "null", "should be a valid number"),
        ("url", "'valkey://h', max_connections: none", "state.max_connections: should be a valid integer"),
        ("url", "'valkey://h', key_prefix: 12", "state.key_prefix: should be a valid string"),
    ],
)
def test_wrong_types_are_refused(effective, key, value, said):
    """Settings and options have types; a wrong value is shown with its place."""
    with pytest.raises(ConfigError) as caught:
        effective(f"x: 1\nstate: {{{key}: {value}}}")
    assert str(caught.value).startswith("agent_config.yaml:2: state.")
    assert said in str(caught.value)


def test_variables_take_the_type_of_the_setting(effective, monkeypatch):
    """Text from ``${…}`` becomes a number, a flag, a path or stays text."""
    monkeypatch.setenv("DB", "4")
    text = """\
state:
  backend: ${BACKEND:valkey}
  url: "${STATE_URL:valkey://valkey-state:6379}"
  key_prefix: ${KEY_PREFIX:}
  ttl: ${TTL:7200}
  autosave: ${AUTOSAVE:true}
  config: {db: "${DB}", retry_on_timeout: "${RETRY:no}", max_connections: "${POOL:${DB}0}"}
"""
    found = effective(text)
    assert found.settings.ttl == 7200
    assert found.settings.autosave is True
    assert found.settings.options == {
        "url": "valkey://valkey-state:6379",
        "key_prefix": "",
        "db": 4,
        "retry_on_timeout": False,
        "max_connections": 40,
    }


def test_variables_in_the_decorator(effective, monkeypatch):
    """They are filled in there too."""
    monkeypatch.setenv("STATE_URL", "valkey://there:1")
    assert effective("", url="${STATE_URL}").settings.options == {"url": "valkey://there:1"}


def test_a_variable_that_is_not_needed_may_be_unset(effective):
    """A handler with its own backend doesn't need the variables of the section's connection."""
    text = "state: {url: '${NOWHERE_SET}', key_prefix: '${NEITHER}', ttl: 60}"
    assert effective(text, storage="memory").settings.ttl == 60
    with pytest.raises(ConfigError, match="NOWHERE_SET"):
        effective(text)
    with pytest.raises(ConfigError, match="NOWHERE"):
        effective("state: {backend: '${NOWHERE}'}")


def test_none_means_never_for_lifetimes_and_nothing_for_connections(effective):
    """``ttl: null`` in a block lifts the section's ttl; ``url: null`` gives no url."""
    text = "state: {ttl: 60, url: null, backend: null}\nhandlers: {a: {state: {ttl: null}}}\n"
    found = effective(text, ["a"])
    assert found.settings.ttl is None
    assert source_of(found, "ttl").endswith("handlers.a.state.ttl")
    assert found.settings.backend == "sqlite"


def test_the_query_of_a_url_goes_with_the_url(effective):
    """Its options count like any other, until a stronger layer brings another url."""
    text = "state: {url: 'valkey://a?db=2&max_connections=5', key_prefix: p}\n"
    assert effective(text).settings.options == {"url": "valkey://a", "key_prefix": "p", "db": 2, "max_connections": 5}
    assert effective(text, db=7).settings.options["db"] == 7
    assert effective(text, url="valkey://b").settings.options == {"url": "valkey://b", "key_prefix": "p"}


def test_state_management_is_read_like_state(effective):
    """With its ``enabled`` and ``config``."""
    text = """\
state_management:
  enabled: false
  backend: valkey
  ttl: 3600
  config: {url: "valkey://localhost:6379", db: 2, key_prefix: "agentup:state:", max_connections: 5}
"""
    found = effective(text, name="agentup.yml")
    assert found.settings.enabled is False
    assert found.settings.options["key_prefix"] == "agentup:state:"
    assert source_of(found, "ttl") == "agentup.yml:4 state_management.ttl"


def test_toml(effective):
    """The same settings in TOML."""
    text = """[state]
backend = "valkey"
ttl = 60
[state.config]
db = 2
[[skills]]
skill_id = "a"
[skills.state]
ttl = 5
"""
    found = effective(text, ["a"], name="agent_config.toml")
    assert (found.settings.ttl, found.settings.options) == (5, {"db": 2})
    assert source_of(found, "ttl") == "agent_config.toml:9 skills[0].state.ttl"


def test_all_errors_can_be_had_at_once(configured, backends):
    """For a check that lists them."""
    configuration = configured("state: {ttl: x, wait: y, tll: 3, urk: 4}")
    _, faults = configuration.settle(backends=backends)
    assert [str(one).split(":")[2].strip() for one in faults] == ["state.tll", "state.urk"]
    _, faults = configured("state: {ttl: x, wait: y, db: z, backend: valkey}").settle(backends=backends)
    assert len(faults) == 3
