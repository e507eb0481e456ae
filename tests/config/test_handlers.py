"""Which block of the file is whose."""

import pytest

from agentstate.config.handlers import handler_blocks
from agentstate.errors import ConfigError

PLUGINS = """\
handlers:
  a: {state: {ttl: 1}}
  b: {other: 1}
skills:
  - {skill_id: c, name: Skill C, state: {ttl: 3}}
  - {name: d, state: {ttl: 4}}
  - plain text
  - {skill_id: e}
plugins:
  - plugin_id: p
    name: Plugin
    state_override: {ttl: 10, history: 10}
    capabilities:
      - {capability_id: p, state_override: {ttl: 11}}
      - {capability_id: q}
  - plugin_id: r
    state_override: {ttl: 12}
state: {ttl: 100}
"""


@pytest.mark.parametrize(
    ("names", "ttl"),
    [
        (["a"], 1),
        (["b"], 100),
        (["c"], 3),
        (["Skill C"], 3),
        (["d"], 4),
        (["e"], 100),
        (["p"], 11),
        (["Plugin"], 10),
        (["q"], 10),
        (["r"], 12),
        (["nobody"], 100),
        (["nobody", "a"], 1),
        (["c", "a"], 3),
        ([], 100),
    ],
)
def test_handlers_find_their_block(effective, names, ttl):
    """Under ``handlers:``, ``skills:`` and ``plugins:``, by the first of their names that has one."""
    assert effective(PLUGINS, names).settings.ttl == ttl


def test_a_capability_builds_on_its_plugin(effective):
    """What the capability doesn't say, its plugin's block does."""
    assert effective(PLUGINS, ["p"]).settings.history == 10


def test_plugins_may_be_a_mapping(effective):
    """As newer agents write them."""
    text = """\
plugins:
  pkg:
    state_override: {ttl: 1}
    capabilities: {cap: {state_override: {ttl: 2}}, other: {}}
"""
    assert [effective(text, [name]).settings.ttl for name in ("pkg", "cap", "other")] == [1, 2, 1]


def test_two_blocks_for_one_name_are_refused(effective):
    """Whoever asks for that name learns where both stand."""
    text = "handlers: {a: {state: {ttl: 1}}}\nskills:\n  - {name: a, state: {ttl: 2}}\n"
    with pytest.raises(ConfigError) as caught:
        effective(text, ["a"])
    assert "agent_config.yaml:1 handlers.a.state and agent_config.yaml:3 skills[0].state" in str(caught.value)
    assert effective(text, ["b"]).settings.ttl is None


@pytest.mark.parametrize(
    "text", ["skills: text", "plugins: 3", "handlers: [1, 2]", "handlers: {a: text}", "services: []"]
)
def test_other_shapes_are_the_agents_own(effective, configured, text):
    """Sections of the same name that look different are no mistake."""
    assert effective(text, ["a"]).settings.backend == "sqlite"
    assert handler_blocks(configured(text).document) == ()
