"""What a check of the configuration finds."""

import pytest

from agentstate.config import Configuration
from agentstate.config.check import TRUST, Handler, check

GOOD = "state: {backend: valkey, url: 'valkey://localhost', key_prefix: p, ttl: 3600}\n"


@pytest.fixture
def findings(configured, backends):
    """Returns a function: YAML text to its findings, as text."""

    def run(text, handlers=None):
        report = check(configured(text), backends, handlers)
        return [f"{one.level}: {one.message}" for one in report.findings if one.message != TRUST]

    return run


def test_a_good_configuration_has_one_hint(findings, configured, backends):
    """That ids are trusted is always said."""
    assert findings(GOOD) == []
    assert [one.message for one in check(configured(GOOD), backends).findings] == [TRUST]


def test_without_a_file_the_defaults_are_checked(directory, backends):
    """Nothing to say about them."""
    report = check(Configuration(None), backends)
    assert [one.message for one in report.findings] == [TRUST]
    assert [one.settings.backend for one in report.effective] == ["sqlite"]


def test_all_errors_are_listed(findings):
    """Of the section and of every handler's block, each once, before warnings."""
    text = "handlers:\n  a: {state: {turns: x}}\n  b: {state: {history: y, wait: z}}\nstate: {backend: memory}\n"
    levels = [one.split(":")[0] for one in findings(text)]
    assert levels == ["error", "error", "error", "hint"]
    assert [one.split(": ")[2] for one in findings(text)[:3]] == [
        "handlers.a.state.turns",
        "handlers.b.state.wait",
        "handlers.b.state.history",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "state: {backend: valkey, key_prefix: p, ttl: 3600}",
            "warning: agent_config.yaml:1 state.backend: valkey without",
        ),
        (
            "state: {url: 'valkey://localhost', ttl: 3600}",
            "warning: agent_config.yaml:1 state.url: valkey without an explicit key",
        ),
        ("state: {ttl: 60}", "hint: agent_config.yaml:1 state.ttl: a ttl of 60 s; 1 to 24 hours"),
        ("state: {ttl: 864000}", "hint: agent_config.yaml:1 state.ttl: a ttl of 864000 s"),
        ("state: {backend: memory}", "hint: agent_config.yaml:1 state.backend: memory forgets"),
        ("state: {url: 'valkey://localhost', key_prefix: p}", "hint: agent_config.yaml:1 state.url: no ttl"),
        (
            "state: {url: 'valkey://h', key_prefix: p, ttl: 3600}",
            "hint: agent_config.yaml:1 state.url: h is used without a pass",
        ),
        (
            "state: {url: 'valkey://u:pw@h', key_prefix: p, ttl: 3600}",
            "warning: agent_config.yaml:1 state.url: a password in the file",
        ),
        (
            "state: {url: 'valkey://h', key_prefix: p, ttl: 3600, config: {password: pw}}",
            "warning: agent_config.yaml:1 state.config.password: a password in the file",
        ),
    ],
)
def test_advice(findings, text, expected):
    """Each practice that can be checked is, with its place."""
    found = findings(text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_secrets_from_variables_are_fine(findings):
    """And a connection with a password isn't called open."""
    text = "state: {url: 'valkey://u:${PW:x}@h', key_prefix: p, ttl: 3600}"
    assert findings(text) == []


def test_blocks_nobody_uses(findings):
    """Only when the handlers are known; plugins count by any of their names."""
    text = GOOD + "handlers: {a: {state: {ttl: 7200}}}\nskills:\n  - {skill_id: b, name: B, state: {ttl: 7200}}\n"
    assert findings(text) == []
    assert findings(text, [Handler(("x", "a"), {}), Handler(("B",), {})]) == []
    assert findings(text, [Handler(("a",), {})]) == [
        "warning: agent_config.yaml:4 skills[0].state: no handler is called 'b' or 'B'."
    ]


def test_equal_names(findings):
    """Two blocks for one name are an error, two handlers of one name a warning."""
    text = GOOD + "handlers: {a: {state: {ttl: 7200}}}\nskills:\n  - {skill_id: x, name: a, state: {ttl: 7200}}\n"
    (found,) = findings(text)
    assert found.startswith(
        "error: agent_config.yaml:2 handlers.a.state and agent_config.yaml:4 skills[0].state: both are"
    )
    (found,) = findings(GOOD, [Handler(("a",), {}), Handler(("a", "b"), {})])
    assert found == "warning: 2 handlers of the program are called 'a'; give them names of their own."


def test_decorators_are_checked_with_the_file(findings):
    """A handler whose arguments contradict the file."""
    (found,) = findings(GOOD, [Handler(("a",), {"storage_dir": "x"})])
    assert found.startswith("error: decorator: storage_dir: 'storage_dir' can't apply to the backend 'valkey'")


def test_misspelt_variables(findings, monkeypatch):
    """Near misses are warned about, others' variables aren't."""
    monkeypatch.setenv("AGENTSTATE_BACKND", "file")
    monkeypatch.setenv("AGENTSTATE_PORT_6379_TCP_ADDR", "10.0.0.1")
    assert findings("") == ["warning: environment AGENTSTATE_BACKND: not ours. Did you mean AGENTSTATE_BACKEND?"]
