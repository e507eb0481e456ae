"""``agentstate skill create``: what it asks, what it writes, what it refuses."""

import errno
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

TITLE = "Conversation Memory Assistant"
NAME = "conversation_memory_assistant"
ENTRY = """\
- skill_id: notes
  name: "Notes"
  state:
    backend: memory                   # gone when the agent stops
"""


def tree(directory):
    """Return all files below a directory, with what they hold."""
    return {str(one.relative_to(directory)): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


def indented(text, by):
    return "".join(" " * by + line for line in text.splitlines(keepends=True))


def run_tests(directory, *options):
    """Run pytest as a user would, in the project's directory."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::DeprecationWarning",
        *options,
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AGENTSTATE", "PYTEST"))}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("--import-mode=importlib",)])
def test_a_skill_and_its_passing_test(agentstate, directory, options):
    """Handler, test and configuration are there, the test passes, and the handler has its settings."""
    result = agentstate("skill", "create", "--name", TITLE, "--backend", "sqlite")
    assert (result.code, result.err) == (0, "")
    assert set(tree(directory)) == {
        "agent_config.yaml",
        "skills/__init__.py",
        f"skills/{NAME}.py",
        f"tests/test_{NAME}.py",
    }
    handler = (directory / "skills" / f"{NAME}.py").read_text()
    assert TITLE in handler
    assert "await context.commit()" in handler
    assert "my_skill" not in "".join(one.read_text() for one in directory.rglob("*.py"))
    done = run_tests(directory, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    settings = {one["key"]: one for one in agentstate("config", "explain", NAME, "--json").json["settings"]}
    assert settings["backend"]["source"].startswith("agent_config.yaml:5 skills[0].state")
    assert agentstate("config", "check", "--handlers", NAME).code == 0
    assert not (directory / "agentstate.db").exists()


def test_what_comes_next_is_said(agentstate, directory):
    """The files, and the commands to go on with."""
    out = agentstate("skill", "create", "--name", TITLE, "--backend", "valkey").out
    for said in (
        f"skills/{NAME}.py",
        "agent_config.yaml",
        "pip install 'agentstate-suite[valkey]'",
        f"pytest tests/test_{NAME}.py",
        f"agentstate config explain {NAME}",
        f'dispatch("{NAME}", task)',
    ):
        assert said in out


def test_a_skill_without_state(agentstate, directory):
    """Has a handler and a test that passes, and no configuration."""
    assert agentstate("skill", "create", "--name", "Echo", "--no-state").code == 0
    assert set(tree(directory)) == {"skills/__init__.py", "skills/echo.py", "tests/test_echo.py"}
    assert "stateful\n" not in (directory / "skills" / "echo.py").read_text()
    done = run_tests(directory)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_several_skills_in_another_directory(agentstate, directory, tmp_path_factory):
    """``--dir`` names the project; what is there stays, tests pass together."""
    project = tmp_path_factory.mktemp("agent")
    (project / "skills").mkdir()
    (project / "skills" / "__init__.py").write_text("HERE = 1\n")
    for name in ("one", "two"):
        assert agentstate("skill", "create", "--name", name, "--backend", "file", "--dir", project, "--yes").code == 0
    assert (project / "skills" / "__init__.py").read_text() == "HERE = 1\n"
    assert tree(directory) == {}
    done = run_tests(project)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


# -- asking ------------------------------------------------------------------------------------


class Terminal:
    """A process at a terminal of its own, which is answered as a person would."""

    def __init__(self, directory, *args):
        self.ours, theirs = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "COLUMNS": "200"}
        command = [sys.executable, "-m", "agentstate.cli", *args]
        self.process = subprocess.Popen(
            command, cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.seen = ""

    def until(self, said, seconds=30):
        """Read until something was said."""
        deadline = time.monotonic() + seconds
        while said not in self.seen:
            assert select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen
            try:
                self.seen += os.read(self.ours, 4096).decode()
            except OSError:  # the terminal's other end is closed
                raise AssertionError(self.seen) from None

    def answer(self, question, text):
        """Wait for a question and answer it."""
        self.until(question)
        self.seen = ""
        os.write(self.ours, f"{text}\n".encode())

    def end(self):
        """Return the exit code, when the last line was read."""
        code = self.process.wait(30)
        os.close(self.ours)
        return code


def test_at_a_terminal_it_asks(directory):
    """The questions of the document, each asked again until the answer can be used."""
    terminal = Terminal(directory, "skill", "create")
    terminal.answer("Skill name", "class")
    terminal.answer("Skill name", TITLE)
    terminal.answer("Enable state management? [Y/n]", "")
    terminal.answer("Storage backend [sqlite]", "valky")
    terminal.until("Did you mean 'valkey'?")
    terminal.answer("Storage backend [sqlite]", "valkey")
    terminal.until("Next steps")
    assert terminal.end() == 0
    assert "backend: valkey" in (directory / "agent_config.yaml").read_text()


def test_at_a_terminal_flags_answer(directory):
    """What a flag says isn't asked; without state there is no backend to ask for."""
    terminal = Terminal(directory, "skill", "create", "--name", "Echo")
    terminal.answer("Enable state management?", "n")
    terminal.until("Next steps")
    assert terminal.end() == 0
    terminal = Terminal(directory, "skill", "create", "--name", "Notes", "--yes")
    terminal.until("Next steps")
    assert "?" not in terminal.seen
    assert terminal.end() == 0
    assert {"skills/echo.py", "skills/notes.py", "agent_config.yaml"} <= set(tree(directory))


# -- the configuration -------------------------------------------------------------------------

MERGES = {
    "empty file": ("", "skills:\n{2}"),
    "comment only": ("# mine\n", "# mine\n\nskills:\n{2}"),
    "other sections": ("a: 1  # one\nb:\n- x\n", "a: 1  # one\nb:\n- x\n\nskills:\n{2}"),
    "no last newline": ("a: 1", "a: 1\n\nskills:\n{2}"),
    "a list": ("skills:\n  - skill_id: x  # one\na: 1\n", "skills:\n  - skill_id: x  # one\n{2}a: 1\n"),
    "the last section": ("skills:\n  - skill_id: x", "skills:\n  - skill_id: x\n{2}"),
    "not indented": ("skills:\n- skill_id: x\n\n# next\na: 1\n", "skills:\n- skill_id: x\n{0}\n# next\na: 1\n"),
    "deeply indented": ("skills:\n      - skill_id: x\n", "skills:\n      - skill_id: x\n{6}"),
    "its comments": (
        "skills:\n  - skill_id: x\n    # of x\n  # of the list\na: 1\n",
        "skills:\n  - skill_id: x\n    # of x\n{2}  # of the list\na: 1\n",
    ),
    "text in lines": (
        "skills:\n  - skill_id: x\n    text: |\n      one\n\n      two\n\na: 1\n",
        "skills:\n  - skill_id: x\n    text: |\n      one\n\n      two\n\n{2}a: 1\n",
    ),
    "an alias": (
        "base: &b {ttl: 5}\nskills:\n  - skill_id: x\n    state: *b\n",
        "base: &b {ttl: 5}\nskills:\n  - skill_id: x\n    state: *b\n{2}",
    ),
    "braces inside": (
        "skills:\n  - {skill_id: x,\n     state: {ttl: 5}}  # x\n",
        "skills:\n  - {skill_id: x,\n     state: {ttl: 5}}  # x\n{2}",
    ),
    "nothing yet": ("skills:  # soon\na: 1\n", "skills:  # soon\n{2}a: 1\n"),
    "an empty list": ("skills: []  # soon\na: 1\n", "skills:   # soon\n{2}a: 1\n"),
    "an unknown tag": ("x: !mine {a: 1}\nnan: .nan\n", "x: !mine {a: 1}\nnan: .nan\n\nskills:\n{2}"),
    "a byte order mark": ("\ufeffa: 1\n", "\ufeffa: 1\n\nskills:\n{2}"),
}


@pytest.mark.parametrize(("before", "after"), MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "dos"])
def test_the_rest_of_the_file_stays_as_it_is(agentstate, directory, before, after, newline):
    """The block is added where it belongs; every other byte is what it was."""
    path = directory / "agent_config.yaml"
    path.write_bytes(before.replace("\n", newline).encode())
    path.chmod(0o640)
    assert agentstate("skill", "create", "--name", "Notes", "--backend", "memory").err == ""
    for column in (0, 2, 6):
        after = after.replace(f"{{{column}}}", indented(ENTRY, column))
    if "\n" not in before:
        newline = "\n"
    assert path.read_bytes().decode() == after.replace("\n", newline)
    assert path.stat().st_mode & 0o777 == 0o640
    assert agentstate("config", "explain", "notes", "--json").json["settings"][0]["value"] == "memory"


def test_a_mapping_of_skills(agentstate, directory):
    """Where skills stand by name, the new one does, too."""
    path = directory / "agent_config.yaml"
    path.write_text("skills:\n    x:\n        state: {ttl: 5}\n\na: 1\n")
    assert agentstate("skill", "create", "--name", "Notes", "--backend", "memory").code == 0
    assert path.read_text() == (
        "skills:\n    x:\n        state: {ttl: 5}\n"
        '    notes:\n      name: "Notes"\n      state:\n'
        "        backend: memory                   # gone when the agent stops\n"
        "\na: 1\n"
    )


@pytest.mark.parametrize("before", ["", "[state]\nttl = 5", '[[skills]]\nskill_id = "x"\n'])
def test_toml(agentstate, directory, before):
    """A TOML file gets a table more."""
    path = directory / "agent_config.toml"
    path.write_text(before)
    assert agentstate("skill", "create", "--name", "Notes", "--backend", "file").code == 0
    assert path.read_text().startswith(before)
    assert path.read_text().endswith(
        '[[skills]]\nskill_id = "notes"\nname = "Notes"\n'
        'state = { backend = "file", storage_dir = "./conversation_states" }\n'
    )
    assert agentstate("config", "explain", "notes", "--json").json["settings"][0]["value"] == "file"


def test_other_names_of_the_file(agentstate, directory):
    """The project's file is found under each name it may have, also behind a link."""
    (directory / "real.yml").write_text("a: 1\n")
    (directory / "agentup.yml").symlink_to("real.yml")
    assert "added to agentup.yml" in agentstate("skill", "create", "--name", "Notes").out
    assert (directory / "agentup.yml").is_symlink()
    assert "skill_id: notes" in (directory / "real.yml").read_text()


def test_the_projects_own_server_is_used(agentstate, directory):
    """Where the section for all handlers has the backend, its address stays in force."""
    (directory / "agent_config.yaml").write_text("state: {url: 'valkey://db.internal:6380', ttl: 60}\n")
    assert agentstate("skill", "create", "--name", "Notes", "--backend", "valkey").code == 0
    settings = {one["key"]: one["value"] for one in agentstate("config", "explain", "notes", "--json").json["settings"]}
    assert (settings["url"], settings["ttl"]) == ("valkey://db.internal:6380", 60)


@pytest.mark.parametrize("name", ["yes", "On", "NULL", "1e3 x", "Ünïcode: größer & 'so'", "a: b # c"])
def test_names_that_mean_something_else_in_yaml(agentstate, directory, name):
    """Are quoted, so that they stay names; titles may hold anything printable."""
    if name == "1e3 x":
        name = "x 1e3"
    assert agentstate("skill", "create", "--name", name, "--backend", "memory").err == ""
    done = run_tests(directory)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# -- what can't be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 64, "Invalid value for --name: say how the skill is called"),
        (["--name", ""], 78, "gives no name for a Python module"),
        (["--name", "class"], 78, "'class' can't be one"),
        (["--name", "7 days"], 78, "'7_days' can't be one"),
        (["--name", "test this"], 78, "Begin with a Latin letter, and not with 'test'"),
        (["--name", "\u52a9\u624b"], 78, "gives no name for a Python module."),
        (["--name", 'say "hi"'], 78, "without quotes and backslashes"),
        (["--name", "x" * 61], 78, "Use up to 60 characters"),
        (["--name", "a\x1b[31m"], 78, "is no name for a skill"),
        (["--name", "x", "--backend", "valky"], 78, "Did you mean 'valkey'?"),
        (["--name", "x", "--backend", "file", "--no-state"], 64, "a skill without state is kept nowhere"),
        (["--name", "x", "--dir", "absent"], 64, "'absent' does not exist"),
        (["--name", "x", "--dir", "agent_config.yaml"], 64, "is a file"),
        (["--name", "taken"], 78, "skills/taken.py: is there already"),
        (["--name", "tested"], 78, "tests/test_tested.py: is there already"),
        (["--name", "configured"], 78, "agent_config.yaml:2: skills: 'configured' is there already"),
        (["--name", "handled"], 78, "agent_config.yaml:4: handlers: 'handled' is there already"),
    ],
)
def test_what_is_refused(agentstate, directory, args, code, said):
    """One line that says how to mend it, and nothing was written."""
    (directory / "agent_config.yaml").write_text("skills:\n  - skill_id: configured\nhandlers:\n  handled: {}\n")
    for name in ("skills/taken.py", "tests/test_tested.py"):
        (directory / name).parent.mkdir()
        (directory / name).write_text("mine = True\n")
    before = tree(directory)
    result = agentstate("skill", "create", *args)
    assert result.code == code
    assert said in result.err
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert result.out == ""
    assert tree(directory) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skills: [{skill_id: x}]\n", 'Add this element yourself: {"skill_id": "notes", "name": "Notes", "state": {"b'),
        ("skills: later\n", "nothing can be added to 'skills'"),
        ("base: &b {skills: [{skill_id: x}]}\n<<: *b\n", "nothing can be added"),
        ("{a: 1}\n", "nothing can be added"),
        ("- a\n- b\n", "is no mapping"),
        ("just text\n", "is no mapping"),
        ("a: [1\n", "agent_config.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("state: {backend: valky}\n", "Did you mean 'valkey'?"),
    ],
)
def test_files_that_nothing_can_be_added_to(agentstate, directory, text, said):
    """Stay as they are, and so does the rest of the project."""
    (directory / "agent_config.yaml").write_text(text)
    result = agentstate("skill", "create", "--name", "Notes")
    assert result.code == 78
    assert said in result.err
    assert result.err.count("\n") == 1
    assert tree(directory) == {"agent_config.yaml": text.encode()}


def test_bytes_that_are_no_text(agentstate, directory):
    """Are the file's fault, not ours."""
    (directory / "agent_config.yaml").write_bytes(b"a: \xff\xfe\n")
    assert agentstate("skill", "create", "--name", "Notes").code == 78
    assert len(tree(directory)) == 1


def test_two_files_side_by_side(agentstate, directory):
    """Which one would count is for the user to say."""
    for name in ("agent_config.yaml", "agentup.yml"):
        (directory / name).write_text("a: 1\n")
    result = agentstate("skill", "create", "--name", "Notes")
    assert (result.code, "stand side by side" in result.err) == (78, True)
    assert len(tree(directory)) == 2


def test_a_directory_that_cannot_be_written_to(agentstate, directory):
    """Says which file couldn't be written, and why."""
    (directory / "tests").write_text("a file\n")
    result = agentstate("skill", "create", "--name", "Notes")
    assert result.code == 78
    assert "tests: can't be written" in result.err or "test_notes.py: can't be written" in result.err
    assert tree(directory) == {"tests": b"a file\n"}
    assert not (directory / "skills").exists()


def test_a_full_disk_leaves_nothing_behind(agentstate, directory, monkeypatch):
    """When the last step fails, the first ones are taken back."""
    (directory / "agent_config.yaml").write_text("a: 1\n")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = agentstate("skill", "create", "--name", "Notes")
    assert result.code == 78
    assert "agent_config.yaml: can't be written: No space left on device" in result.err
    assert tree(directory) == {"agent_config.yaml": b"a: 1\n"}
    assert [one.name for one in directory.iterdir()] == ["agent_config.yaml"]
