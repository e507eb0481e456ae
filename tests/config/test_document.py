"""Files become trees with lines; what isn't ours is never judged."""

import pytest

from agentstate.config.document import Unreadable, load
from agentstate.errors import ConfigError


def parsed(tmp_path, text, name="agent_config.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path)


def lines(node, path=""):
    """Return ``{dotted path: line}``."""
    found = {path: node.line} if path else {}
    for key, child in (node.mapping or {}).items():
        found |= lines(child, f"{path}.{key}" if path else key)
    for index, child in enumerate(node.sequence):
        found |= lines(child, f"{path}[{index}]")
    return found


def test_yaml_lines(tmp_path):
    """A value has the line of its key, an element of a list its own."""
    document = parsed(
        tmp_path, "# top\nstate:\n  ttl: 1\n  config:\n    db: 2\nskills:\n  - name: a\n    state: {ttl: 3}\n"
    )
    assert lines(document.root) == {
        "state": 2,
        "state.ttl": 3,
        "state.config": 4,
        "state.config.db": 5,
        "skills": 6,
        "skills[0]": 7,
        "skills[0].name": 7,
        "skills[0].state": 8,
        "skills[0].state.ttl": 8,
    }


def test_toml_lines(tmp_path):
    """Headers, dotted keys, quoted keys and arrays of tables have their lines; inline tables their parent's."""
    text = """name = "agent"
[state]
backend = "valkey"
"ttl" = 3600
config = { db = 2 }
text = '''
ttl = 9
'''
[[skills]]
skill_id = "a"
[[skills]]
skill_id = "b"
[skills.state]
ttl = 5
[[skills.parts]]
x.y = 1
"""
    found = lines(parsed(tmp_path, text, "agent_config.toml").root)
    assert found["state"] == 2
    assert found["state.ttl"] == 4
    assert found["state.config.db"] == 5
    assert found["skills[0].skill_id"] == 10
    assert found["skills[1].state"] == 13
    assert found["skills[1].state.ttl"] == 14
    assert found["skills[1].parts[0].x.y"] == 16


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "a: b: c", "a.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a.yaml", "a: 1\nb: [1,", "a.yaml:2: not valid YAML"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "a.yaml:2: not valid YAML: expected a single document"),
        ("a.yaml", "a: *nobody", "undefined alias"),
        ("a.yaml", b"a: \x01", "a.yaml: not valid YAML: unacceptable character"),
        ("a.yaml", b"\xff\xfe\x00", "not valid YAML"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.toml", "a = 1\nb = ", "a.toml:2: not valid TOML: Invalid value"),
        ("a.toml", "[a]\nx=1\n[a]\n", "a.toml:3: not valid TOML"),
        ("a.toml", b"a = 1\nb = '\xff'", "a.toml:2: not valid TOML: not UTF-8"),
        ("a.toml", "a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_what_cannot_be_parsed(tmp_path, monkeypatch, name, text, said):
    """The error names the file and, where it is known, the line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parsed(tmp_path, text, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    """A missing file and a directory are named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"absent\.yaml: can't be read: No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"can't be read: Is a directory"):
        load(tmp_path)


def test_what_the_agent_writes_elsewhere_is_its_own(tmp_path):
    """Unknown tags, odd keys and impossible dates only matter to who reads them."""
    document = parsed(tmp_path, "a: !vault x\n? [1, 2]\n: odd\n3: number\nd: 2024-99-99\nm: !ref {b: 1}\n")
    root = document.root.mapping
    assert root is not None
    assert isinstance(root["a"].value, Unreadable)
    assert isinstance(root["d"].value, Unreadable)
    assert root["3"].value == "number"
    assert root["m"].mapping is not None


def test_python_objects_are_never_built(tmp_path):
    """A tag that names a Python object is just unreadable."""
    document = parsed(tmp_path, "a: !!python/object/apply:os.system ['touch /tmp/owned']\nb: !!python/name:os.system\n")
    assert [one.value for one in document.root.mapping["a"].sequence] == ["touch /tmp/owned"]
    assert isinstance(document.root.mapping["b"].value, Unreadable)


def test_aliases_and_merges(tmp_path):
    """``<<`` gives what isn't given beside it; keys given twice are remembered."""
    document = parsed(tmp_path, "base: &b {x: 1, y: 2}\nour: {<<: *b, x: 3}\ntwo:\n  k: 1\n  k: 2\n")
    root = document.root.mapping
    assert {key: node.value for key, node in root["our"].mapping.items()} == {"x": 3, "y": 2}
    assert root["our"].repeated == []
    assert root["two"].repeated == [("k", 5)]


def test_alias_bombs_stay_small(tmp_path):
    """Aliases of aliases of aliases are shared, not copied."""
    rows = ["a0: &a0 {k: v}"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    rows += ["m0: &m0 {k: v}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 40)]
    document = parsed(tmp_path, "\n".join([*rows, "loop: &loop [*loop]"]))
    assert document.root.mapping["m39"].mapping["k"].value == "v"
    assert document.root.mapping["loop"].sequence[0].value is document.root.mapping["loop"].value
