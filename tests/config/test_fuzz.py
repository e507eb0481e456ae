"""Whatever a configuration holds, the answer is settings or a typed error."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentstate.config import Configuration
from agentstate.config.check import check
from agentstate.config.document import Document
from agentstate.config.interpolation import expand
from agentstate.config.tomlfile import parse as parse_toml
from agentstate.config.yamlfile import parse as parse_yaml
from agentstate.errors import ConfigError

NAMES = """
state state_management handlers skills plugins services state_override capabilities config
backend storage url service ttl turns history key_prefix db name skill_id x tll
"""
KEYS = st.sampled_from(NAMES.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["valkey", "file", "valkey://h?db=1", "sqlite:///x.db", "${X}", "${X:${Y:1}}", "${", "x", "redis://["]
    ),
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
        max_leaves=12,
    ),
    max_size=5,
)
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(tree=TREES)
def test_any_tree(tmp_path, backends, tree):
    """Of our own keys in any shape."""
    document = Document(tmp_path / "agent_config.yaml", parse_yaml(json.dumps(tree).encode(), "f.yaml"))
    configuration = Configuration(document)
    for names in ([], ["x"], ["name"]):
        effective, faults = configuration.settle(names, {"history": 1}, backends=backends)
        assert (effective is None) == bool(faults)
        assert all(isinstance(fault, ConfigError) and "\n" not in str(fault) for fault in faults)
    assert check(configuration, backends, []).findings


@QUICK
@given(
    raw=st.one_of(st.binary(max_size=60), st.text(alphabet="ab:-[]{}&*!|>#'\"\n\t ,?=.1", max_size=60).map(str.encode))
)
def test_any_bytes(raw):
    """As YAML and as TOML: a tree, or one line that begins with the file."""
    for parse in (parse_yaml, parse_toml):
        said = "f:"
        try:
            parse(raw, "f")
        except ConfigError as error:
            said = str(error)
        assert said.startswith("f:")
        assert "\n" not in said


@QUICK
@given(text=st.text(alphabet="${}:AB x", max_size=40))
def test_any_text_with_variables(text):
    """Text without ``${`` comes back as it is."""
    try:
        expanded = expand(text, {"A": "1"}, "f")
    except ConfigError:
        assert "${" in text
    else:
        assert expanded == text or "${" in text
