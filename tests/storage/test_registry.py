"""Which backends there are, and how they are made."""

import importlib.metadata
import subprocess
import sys

import pytest
from pydantic import BaseModel

from agentstate.errors import ConfigError, MissingDependencyError, UnknownBackendError
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.memory import MemoryStorage
from agentstate.storage.protocol import ScopeQuery, Storage, Wants


def test_the_built_in_backends():
    """By their names and by the schemes of their URLs."""
    assert {"file", "memory", "sqlite", "valkey"} <= set(registry.backends())
    for url, name in (
        ("memory://", "memory"),
        ("file:///x", "file"),
        ("sqlite:///x.db", "sqlite"),
        ("valkey://h", "valkey"),
        ("VALKEYS://h", "valkey"),
        ("postgresql://h/d", "postgresql"),
        ("postgres://h/d", "postgresql"),
        ("redis://h:6379/0", "valkey"),
        ("rediss://h", "valkey"),
        ("valkey+cluster://h", "valkey"),
        ("valkey+sentinel://h", "valkey"),
    ):
        assert registry.backend_for_url(url) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sqlit", "Did you mean 'sqlite'?"),
        ("sled", "Sled has no maintained Python binding: use sqlite"),
        ("redis", "spoken to by the backend valkey"),
        ("", "Known are: file, memory, "),
        ("oracle", "Known are:"),
    ],
)
def test_unknown_names(name, said):
    """The error names the nearest, or what to use instead."""
    with pytest.raises(UnknownBackendError) as caught:
        registry.backend_named(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqllite:///x", "Did you mean 'sqlite://'?"),
        ("sled:///x", "Sled has no maintained Python binding"),
        ("localhost:6379", "Known are:"),
        ("state.db", "Known are:"),
        ("", "Known are:"),
        ("mysql://bob:hunter2@h/db", "'mysql://bob:***@h/db'"),
    ],
)
def test_unknown_schemes(url, said):
    """The same for URLs; a password is not shown."""
    with pytest.raises(UnknownBackendError) as caught:
        registry.backend_for_url(url)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_making_a_storage():
    """Options are checked, the clock is handed on, and nothing is opened yet."""
    storage = registry.create("memory", {"url": "memory://"}, clock=lambda: 42.0)
    assert isinstance(storage, MemoryStorage)
    assert isinstance(storage, Storage)
    assert (await storage.scopes(ScopeQuery())).items == ()
    assert (await storage.read(StateScope.GLOBAL, Wants())).now == 42.0


def test_wrong_options():
    """The error names the backend, the option and the nearest valid one."""
    with pytest.raises(ConfigError, match=r"The backend 'memory' has no option 'ulr'. Did you mean 'url'\?"):
        registry.create("memory", {"ulr": "memory://"})
    with pytest.raises(ConfigError, match=r"The option 'url' of the backend 'memory': should be a valid string"):
        registry.create("memory", {"url": 5})
    with pytest.raises(ConfigError, match="has no option 'x'"):
        registry.create("memory", {"url": "memory://?x=1"})


class MyOptions(BaseModel, extra="forbid", frozen=True):
    url: str = "mine://"
    size: int = 1


class Mine(MemoryStorage):
    Options = MyOptions

    @classmethod
    def from_options(cls, options, *, clock=None):
        storage = cls()
        storage.options = options
        return storage


@pytest.fixture
def installed(monkeypatch):
    """A backend of another package, and one that claims a built-in name."""
    points = [
        importlib.metadata.EntryPoint("mine", f"{Mine.__module__}:Mine", registry.GROUP),
        importlib.metadata.EntryPoint("memory", "nowhere:Nothing", registry.GROUP),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


def test_backends_of_other_packages(installed):
    """An entry point is a backend, its name is its scheme, and a built-in one can't be replaced."""
    assert "mine" in registry.backends()
    assert registry.backend_for_url("mine://x") == "mine"
    assert registry.backend_for_url("mine+tls://x") == "mine"
    storage = registry.create("mine", {"url": "mine://x?size=3"})
    assert (storage.options.url, storage.options.size) == ("mine://x", 3)
    assert registry.load("memory") is MemoryStorage


def test_missing_and_broken_drivers(tmp_path, monkeypatch):
    """A driver that isn't installed is named with its install command; a broken one isn't hidden."""
    with pytest.raises(MissingDependencyError) as caught:
        registry.driver("no_such_driver.asyncio", extra="valkey")
    assert "pip install 'agentstate-suite[valkey]'" in str(caught.value)
    assert isinstance(caught.value, ImportError)
    (tmp_path / "broken_driver.py").write_text("import its_own_missing_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_part"):
        registry.driver("broken_driver", extra="valkey")
    assert registry.driver("json", extra="valkey").dumps({}) == "{}"


def test_naming_backends_imports_nothing():
    """Neither modules of backends nor their drivers."""
    code = """
import sys
from agentstate.storage import registry
registry.backend_for_url("valkey://h")
registry.backend_named("sqlite")
ours = {"agentstate.storage.registry", "agentstate.storage.protocol"}
print(*[one for one in sys.modules if one.startswith("agentstate.storage.") and one not in ours])
print(*[one for one in ("valkey", "apsw", "aiofiles", "yaml") if one in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
