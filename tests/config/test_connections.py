"""Services, paths, secrets, and which settings mean the same store."""

import pytest

from agentstate.errors import ConfigError


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


SERVICES = """\
services:
  valkey:
    type: cache
    config: {url: "valkey://cache:6379", db: 1, max_connections: 20, eviction: lru, password: "${CACHE_PASSWORD:pw}"}
  direct: {type: database, url: "valkey://direct:6379", username: u}
  nourl: {type: cache, config: {db: 1}}
  tagged: {url: "valkey://h", db: !vault x}
"""


def test_services_are_not_the_states_unless_it_says_so(effective):
    """``services.valkey`` is a cache; ``service:`` makes it the state's connection, without what isn't ours."""
    assert effective(SERVICES + "state: {backend: valkey}").settings.options == {}
    found = effective(SERVICES + "state: {service: valkey, key_prefix: p, config: {db: 5}}")
    assert found.settings.backend == "valkey"
    options = dict(found.settings.options)
    assert options.pop("password").get_secret_value() == "pw"
    assert options == {"url": "valkey://cache:6379", "db": 5, "max_connections": 20, "key_prefix": "p"}
    assert source_of(found, "url") == "agent_config.yaml:4 services.valkey.config.url"
    assert effective(SERVICES + "state: {service: direct}").settings.options == {
        "url": "valkey://direct:6379",
        "username": "u",
    }


def test_another_url_leaves_the_services_password_behind(effective):
    """What came with a service isn't sent to another server."""
    found = effective(SERVICES + "state: {service: valkey}", url="valkey://other")
    assert found.settings.options == {"url": "valkey://other"}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{service: valky}", "state.service: there is no service 'valky'. Did you mean 'valkey'?"),
        ("{service: tagged}", "services.tagged.db: can't be read: could not determine a constructor"),
        ("{service: nourl}", "services.nourl.config: has no url, which agent_config.yaml:8 state.service needs"),
        ("{service: valkey, url: 'valkey://h'}", "state.service: a service and a url"),
        ("{service: valkey, backend: file}", "disagrees with the url"),
        ("{service: 3}", "must be text"),
    ],
)
def test_services_that_do_not_fit(effective, block, said):
    """A service that isn't there, has no url, or contradicts what stands beside it."""
    with pytest.raises(ConfigError) as caught:
        effective(f"{SERVICES}state: {block}")
    assert said in str(caught.value)


def test_relative_paths_count_from_the_file_that_names_them(effective, directory, monkeypatch):
    """Directories, database files and certificates of a file in another directory; arguments count from here."""
    text = "state: {backend: file, storage_dir: ./states}"
    assert effective(text, name="agent/a.yaml").settings.options == {"storage_dir": f"{directory}/agent/states"}
    text = "state: {url: 'sqlite:///data/a b.db'}"
    assert effective(text, name="agent/a.yaml").settings.options["url"] == f"sqlite:///{directory}/agent/data/a%20b.db"
    text = "state: {url: 'valkeys://h', config: {ssl_ca_certs: ca.pem}}"
    assert effective(text, name="agent/a.yaml").settings.options["ssl_ca_certs"] == directory / "agent" / "ca.pem"
    text = "state: {backend: file, storage_dir: /var/x/../states}"
    assert effective(text, name="agent/a.yaml").settings.options == {"storage_dir": "/var/states"}
    text = "state: {backend: file, storage_dir: states}"
    assert effective(text, name="agent/a.yaml", storage_dir="mine").settings.options == {
        "storage_dir": f"{directory}/mine"
    }
    assert effective("state: {backend: file, storage_dir: ''}").settings.options["storage_dir"] == ""
    text = "state: {url: 'file://../states'}"
    assert effective(text, name="agent/a.yaml").settings.options == {"url": f"file://{directory}/states"}
    for url in ("sqlite:////abs/x.db", "file:///abs/x"):
        monkeypatch.setenv("AGENTSTATE_URL", url)
        assert effective("").settings.options == {"url": url}


def test_same_settings_same_store(effective):
    """Two handlers share a store exactly when everything about it is equal, defaults included."""
    text = (
        "state: {url: 'valkey://h', key_prefix: p, ttl: 5}\nhandlers:\n  a: {state: {ttl: 9}}\n  b: {state: {db: 1}}\n"
    )
    store = effective(text).store
    assert effective(text, ["a"]).store == store
    assert effective(text, max_connections="50").store == store
    assert effective(text, ["b"]).store != store
    assert hash(store) == hash(effective(text, ["a"]).store)
    assert (
        effective("", storage="file").store == effective("", storage_dir="./conversation_states", storage="file").store
    )
    assert effective("").store == effective("", url="sqlite:///./agentstate.db").store


def test_a_storage_object_needs_no_connection(effective):
    """The layers below give settings only, and options beside the object are refused."""

    class Own:
        name = "own"

    own = Own()
    found = effective(VALKEY, storage=own, history=3)
    assert (found.settings.backend, found.settings.options, found.settings.ttl) == ("own", {}, 3600)
    with pytest.raises(ConfigError, match=r"decorator: url: 'url' can't apply to the backend 'own'"):
        effective(VALKEY, storage=own, url="valkey://h")


def test_secrets_are_not_shown(effective):
    """Neither in explanations nor in errors."""
    found = effective("state: {url: 'valkey://bob:hunter2@h:1/2?password=hunter2', username: u}")
    assert "hunter2" not in repr(found.explain) + repr(found.settings)
    row = {one.key: one.value for one in found.explain}
    assert row["url"] == "valkey://bob:***@h:1/2"
    assert row["password"] == "***"
    for text in (
        "state: {url: 'valkey://bob:hunter2@h', backend: file}",
        "state: {url: 'valky://bob:hunter2@h'}",
        "state: {url: 'valkey://bob:hunter2@h', db: x}",
        "state: {url: 'valkey://h', password: [hunter2]}",
        "state: {url: 'valkey://h?password=hunter2', password: hunter3}",
    ):
        with pytest.raises(ConfigError) as caught:
            effective(text)
        assert "hunter" not in str(caught.value), text
