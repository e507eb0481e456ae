"""What ``${VAR:default}`` turns into."""

import pytest

from agentstate.config.interpolation import expand
from agentstate.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("x${A}y${A}z", "x1y1z"),
        ("${U:valkey://host:6379/0}", "valkey://host:6379/0"),
        ("${U:}", ""),
        ("${EMPTY:default}", ""),
        ("${U:${A}}", "1"),
        ("${U:${V:x:y}}", "x:y"),
        ("${U:${V:${A}-${A}}}!", "1-1!"),
        ("${A:${UNSET_BUT_UNUSED}}", "1"),
        ("${U:{app}:state:}", "{app}:state:"),
        ("$A ${LOOKS} $$ {A} %A%", "$A ${A} $$ {A} %A%"),
        ("${U: spaced }", " spaced "),
        ("${U:🎈}", "🎈"),
    ],
)
def test_expansion(text, expected):
    """The first colon splits, defaults nest, and nothing but ``${…}`` is touched."""
    assert expand(text, {"A": "1", "EMPTY": "", "LOOKS": "${A}"}, "f.yaml:1: k") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${MISSING}", "the environment variable MISSING is not set"),
        ("${A:${MISSING}}", "MISSING is not set"),
        ("${open", "never closed"),
        ("${A:{}", "never closed"),
        ("${}", "'' is no variable name"),
        ("${1A:x}", "'1A' is no variable name"),
        ("${A-B}", "'A-B' is no variable name"),
        ("${A:" * 30 + "}" * 30, "nested more than 20 deep"),
    ],
)
def test_what_cannot_be_expanded(text, said):
    """The error says where, and names the variable."""
    with pytest.raises(ConfigError) as caught:
        expand(text, {}, "f.yaml:7: state.url")
    assert str(caught.value).startswith("f.yaml:7: state.url: ")
    assert said in str(caught.value)
