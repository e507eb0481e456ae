"""How commands end: one line, the right code, no traceback, quickly."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer

from agentstate import errors
from agentstate.cli.exits import code_of, guarded
from agentstate.cli.moments import ago, duration


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["lss"], "No such command 'lss'. Did you mean 'ls'?"),
        (["ls", "--limt", "3"], "No such option: --limt"),
        (["ls", "--limit", "0"], "Invalid value for '--limit'"),
        (["ls", "--kind", "convrsation"], "There is no kind 'convrsation'. Did you mean 'conversation'?"),
        (["ls", "--order", "size"], "--order is 'size'"),
        (["ls", "--updated-before", "soon"], "'soon' is no moment"),
        (["show"], "Missing argument"),
        (["show", "step:x"], "is no step"),
        (["show", ""], "id is empty"),
        (["show", "x" * 513], "more than 512"),
        (["cleanup"], "Missing option '--older-than'"),
        (["cleanup", "--older-than", "24"], "'24' is no duration"),
        (["ls", "--tenant", "x" * 513], "more than 512"),
    ],
)
def test_usage(agentstate, args, said):
    """Mistakes in the arguments are one line and code 64."""
    result = agentstate(*args)
    assert result.code == 64
    assert result.err.startswith("agentstate: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_the_configuration_is_at_fault(agentstate, directory):
    """Unknown backends, unknown schemes and disagreeing options have the code for configuration."""
    for args, said in (
        (["--url", "sqlit:///x"], "Did you mean 'sqlite://'?"),
        (["--backend", "valky"], "Did you mean 'valkey'?"),
        (["--backend", "file", "--url", "memory://"], "command line: backend: 'file' disagrees with the url"),
    ):
        result = agentstate("ls", *args)
        assert result.code == 78
        assert said in result.err
        assert result.err.count("\n") == 1


def test_the_server_is_not_there(agentstate):
    """Code 69, and the place without its password."""
    result = agentstate("ls", "--url", "valkey://bob:hunter2@127.0.0.1:1/0")
    assert result.code == 69
    assert "127.0.0.1:1" in result.err
    assert "hunter2" not in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 78),
        (errors.MissingDependencyError("x"), 78),
        (errors.ContextIdError("x"), 64),
        (errors.DamagedStateError("x"), 65),
        (errors.NewerFormatError("x"), 65),
        (errors.ConflictError("x"), 75),
        (errors.TurnInProgressError("x"), 75),
        (errors.CommitUnknownError("x", commit_id=1), 75),
        (errors.StorageUnavailableError("x"), 69),
        (errors.StorageAccessError("x"), 69),
        (errors.StorageFullError("x"), 69),
        (RuntimeError("x"), 70),
    ],
)
def test_codes(error, code):
    """Each kind of error has its code."""
    assert code_of(error) == code


def test_whatever_a_command_raises(capsys, monkeypatch):
    """Is said in one line, with control characters escaped; a traceback only on request."""
    monkeypatch.delenv("AGENTSTATE_DEBUG", raising=False)

    def fail(error):
        def run():
            raise error

        return guarded(run)

    assert fail(RuntimeError("two\nlines \x1b[31m")) == 70
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert "internal error: RuntimeError: two lines" in said
    assert fail(typer.Exit(3)) == 3
    assert fail(typer.Abort()) == 130
    assert fail(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("AGENTSTATE_DEBUG", "1")
    assert fail(errors.ConfigError("x")) == 78
    assert "Traceback" in capsys.readouterr().err


def test_help_and_version(agentstate):
    """Every command has a help text, and the bare command shows what there is."""
    for args in ([], ["--help"], ["config", "--help"], ["ls", "--help"], ["show", "--help"], ["cleanup", "--help"]):
        result = agentstate(*args)
        assert result.code == 0
        assert "Usage:" in result.out
        assert result.err == ""
    assert agentstate("--version").out == f"agentstate {version('agentstate-suite')}\n"
    assert agentstate("config").code == 64


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("1d12h", 129600), ("1.5H", 5400)]
)
def test_durations(text, seconds):
    """Numbers with units, also several."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1y", "1h x", "\uff11h", "nan h"])
def test_what_is_no_duration(text):
    """Is refused."""
    with pytest.raises(typer.BadParameter):
        duration(text)


def test_moments():
    """A duration counts back; a date without a zone is UTC."""
    assert ago("1h", 7200.0) == 3600.0
    assert ago("1970-01-01T01:00", 0) == 3600.0
    assert ago("1970-01-01T01:00:00+01:00", 0) == 0.0
    assert ago("1970-01-02", 0) == 86400.0


def run(directory, *args, **environment):
    """Run the installed command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "agentstate.cli", *args],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
        timeout=60,
    )


def test_as_a_process(directory):
    """The real command: exit code, one line, also where the terminal knows only ASCII."""
    done = run(directory, "show", "\u00fcnknown", "--backend", "memory", PYTHONIOENCODING="ascii")
    assert done.returncode == 65
    assert done.stderr == (
        "agentstate: There is no state conversation:\\xfcnknown in memory://. See 'agentstate ls'.\n"
    )
    assert done.stdout == ""


def test_starting_is_cheap(directory):
    """Help and version load no driver, no pydantic, no YAML."""
    code = """
import sys
sys.argv = ["agentstate", "--version"]
from agentstate.cli import main
try:
    main()
except SystemExit:
    pass
print(*[one for one in ("valkey", "apsw", "yaml", "pydantic", "aiofiles", "rich", "orjson") if one in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=directory)
    assert done.stdout.splitlines() == [f"agentstate {version('agentstate-suite')}", ""]
