"""What tests of agent handlers and of storages need: a conformance suite, a fake clock, faults.

A backend's test is one class::

    from agentstate.testing import StorageConformance

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def make_storage(self, tmp_path):
            return lambda clock: MyStorage(tmp_path, clock=clock)

The pytest fixtures (`agentstate_context`, `agentstate_storage`, `agentstate_clock`,
`fail_at`) come by themselves with the plugin. Names are loaded on first use, so that the
plugin costs a pytest run that doesn't use it next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from agentstate.errors import MissingDependencyError

REMEDY = "Run: pip install 'agentstate-suite[testing]'."

try:
    import pytest
except ModuleNotFoundError as error:
    raise MissingDependencyError("agentstate.testing needs pytest.", remedy=REMEDY) from error

if TYPE_CHECKING:
    from agentstate.testing.clock import FakeClock
    from agentstate.testing.conformance import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance
    from agentstate.testing.faults import FaultyStorage

__all__ = [
    "Damage",
    "FakeClock",
    "FaultyStorage",
    "MakeNewer",
    "MakeStorage",
    "ProcessSpec",
    "StorageConformance",
]

# Without this a failing case of the suite shows a bare AssertionError.
pytest.register_assert_rewrite("agentstate.testing.conformance")

_HOMES = {"FakeClock": "clock", "FaultyStorage": "faults"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES.get(name, 'conformance')}")
    except ModuleNotFoundError as error:
        if error.name != "pytest_asyncio":
            raise
        raise MissingDependencyError("The conformance suite needs pytest-asyncio.", remedy=REMEDY) from error
    return getattr(home, name)
