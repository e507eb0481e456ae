"""``agentstate config check`` and ``config explain``."""

import sys

import pytest

GOOD = """\
state:
  backend: valkey
  url: "valkey://localhost:1"
  key_prefix: "app:"
  ttl: 3600
handlers:
  notes:
    state: {backend: memory}
"""


def write(directory, text, name="agent_config.yaml"):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_check_without_a_file(agentstate):
    """Defaults are fine; that there is no file is said."""
    result = agentstate("config", "check")
    assert result.code == 0
    assert "no configuration file: no errors." in result.out


def test_check_of_a_good_file(agentstate, directory):
    """Hints don't fail it."""
    write(directory, GOOD)
    result = agentstate("config", "check")
    assert result.code == 0
    assert "hint: agent_config.yaml:8 handlers.notes.state.backend: memory forgets" in result.out
    assert "hint: Context ids are trusted as they come" in result.out
    assert result.out.splitlines()[-1] == "agent_config.yaml: no errors."


def test_check_lists_all_errors(agentstate, directory):
    """With file, line, key and the nearest valid name; the code says configuration."""
    write(directory, "state:\n  tll: 3\nskills:\n  - name: a\n    state: {turns: quee}\nx: 1\n")
    result = agentstate("config", "check")
    assert result.code == 78
    assert "error: agent_config.yaml:2: state.tll: unknown setting 'tll'. Did you mean 'ttl'?" in result.out
    assert result.err == ""
    write(directory, "skills:\n  - name: a\n    state: {turns: quee}\n  - name: b\n    state: {ttl: x}\n")
    result = agentstate("config", "check", "--json")
    assert result.code == 78
    assert result.json["ok"] is False
    assert result.json["errors"] == 2
    assert result.json["file"] == "agent_config.yaml"
    assert result.json["count"] == len(result.json["findings"])
    assert {one["level"] for one in result.json["findings"]} == {"error", "hint"}


def test_check_of_another_file(agentstate, directory):
    """By --path; one that can't be parsed is one line on stderr."""
    path = write(directory, "state: {backend: file", "conf/x.yaml")
    result = agentstate("config", "check", "--path", path)
    assert result.code == 78
    assert result.err.startswith("agentstate: conf/x.yaml:1: not valid YAML")
    assert result.err.count("\n") == 1
    assert agentstate("config", "check", "--path", "absent.yaml").code == 78


def test_check_with_names(agentstate, directory):
    """Blocks that no handler uses are found once the handlers are known."""
    write(directory, GOOD)
    assert "no handler is called" not in agentstate("config", "check").out
    assert "no handler is called" not in agentstate("config", "check", "--handlers", "a, notes").out
    result = agentstate("config", "check", "--handlers", "a,b")
    assert "warning: agent_config.yaml:8 handlers.notes.state: no handler is called 'notes'." in result.out
    assert result.code == 0


@pytest.fixture
def module(directory):
    """A module with handlers, in the working directory."""
    (directory / "handlers_of_mine.py").write_text(
        "from agentstate.decorator import stateful\n"
        "@stateful(storage='memory', history=3)\n"
        "async def notes(task, context, context_id): ...\n"
        "class Agent:\n"
        "    @stateful\n"
        "    async def method(self, task, context, context_id): ...\n"
        "    @stateful\n"
        "    @staticmethod\n"
        "    async def static(task, context, context_id): ...\n"
    )
    yield "handlers_of_mine"
    sys.modules.pop("handlers_of_mine", None)


def test_check_with_a_module(agentstate, directory, module):
    """Its handlers are found, methods too, and checked with their decorators' arguments."""
    names = ("method", "static", "other")
    write(directory, GOOD + "".join(f"  {name}:\n    state: {{ttl: 7200}}\n" for name in names))
    result = agentstate("config", "check", "--module", module)
    assert "no handler is called 'other'" in result.out
    assert "'method'" not in result.out
    assert "'static'" not in result.out
    assert "'notes'" not in result.out


def test_explain_with_a_module(agentstate, directory, module):
    """The decorator's arguments are the strongest layer."""
    write(directory, GOOD)
    rows = {
        one["key"]: one
        for one in agentstate("config", "explain", "notes", "--module", module, "--json").json["settings"]
    }
    assert rows["history"] == {"key": "history", "value": 3, "source": "decorator"}
    assert rows["backend"]["source"] == "decorator"


@pytest.mark.parametrize("text", ["raise RuntimeError('no')", "import not_there_at_all", "x = ("])
def test_a_module_that_cannot_be_imported(agentstate, directory, text):
    """Whatever it raises is one line."""
    (directory / "broken_module.py").write_text(text)
    result = agentstate("config", "check", "--module", "broken_module")
    sys.modules.pop("broken_module", None)
    assert result.code == 78
    assert result.err.startswith("agentstate: --module broken_module: can't be imported: ")
    assert result.err.count("\n") == 1


def test_check_connects(agentstate, directory):
    """Each storage is opened and pinged; one that isn't there fails the check, with its place."""
    write(directory, "state: {backend: memory}\nhandlers: {a: {state: {ttl: 7200}}}\n")
    result = agentstate("config", "check", "--connect")
    assert result.code == 0
    assert result.out.count("ok: memory:// answers.") == 1
    write(directory, GOOD)
    result = agentstate("config", "check", "--connect", "--json")
    assert result.code == 69
    assert [one["ok"] for one in result.json["storages"]] == [False, True]
    assert "localhost:1" in result.json["storages"][0]["location"]


def test_explain(agentstate, directory, monkeypatch):
    """Each setting of a handler with where it comes from; passwords are masked."""
    monkeypatch.setenv("AGENTSTATE_WAIT", "5")
    write(directory, "state: {url: 'valkey://bob:hunter2@h:6379/2'}\nhandlers: {a: {state: {ttl: 60}}}\n")
    result = agentstate("config", "explain", "a")
    assert result.code == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.out.splitlines()}
    assert rows["backend"] == ["valkey", "agent_config.yaml:1 state.url"]
    assert rows["ttl"] == ["60.0", "agent_config.yaml:2 handlers.a.state.ttl"]
    assert rows["wait"] == ["5.0", "environment AGENTSTATE_WAIT"]
    assert rows["turns"] == ["queue", "default"]
    assert rows["db"] == ["2", "agent_config.yaml:1 state.url"]
    assert rows["username"] == ["bob", "agent_config.yaml:1 state.url"]
    assert rows["password"] == ["***", "agent_config.yaml:1 state.url"]
    assert "hunter2" not in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("valkey://h:port", "The port in valkey://h:port is no port."),
        ("sqlite://state.db", "'sqlite://state.db' is no SQLite URL"),
        ("valkey://h/two", "agent_config.yaml:1: state"),
    ],
)
def test_explain_of_a_wrong_url(agentstate, directory, url, said):
    """What the backend itself says of it comes with the place."""
    write(directory, f"state: {{url: '{url}'}}\n")
    result = agentstate("config", "explain")
    assert result.code == 78
    assert result.err.startswith("agentstate: agent_config.yaml:1: state")
    assert said in result.err
    assert result.err.count("\n") == 1


def test_explain_says_when_there_is_no_block(agentstate, directory):
    """And which handlers have one."""
    write(directory, "handlers: {a: {state: {ttl: 60}}}\n")
    result = agentstate("config", "explain", "b")
    assert result.code == 0
    assert "No block of its own for 'b'. Those that have: a." in result.err
    assert agentstate("config", "explain").err == ""


def test_explain_of_a_wrong_configuration(agentstate, directory):
    """One line, and the code for configuration."""
    write(directory, "state:\n  ttl: soon\n")
    result = agentstate("config", "explain")
    assert result.code == 78
    assert result.err.startswith("agentstate: agent_config.yaml:2: state.ttl: should be a valid number")
    assert result.err.count("\n") == 1
