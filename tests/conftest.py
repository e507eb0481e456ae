"""What every test may use: storages of each backend, and contexts over them."""

from __future__ import annotations

import pytest

from agentstate.storage import registry
from agentstate.testing.clock import FakeClock

LOCAL = ("memory", "sqlite", "file")


def options_for(backend, tmp_path):
    """Return the options of a fresh storage in a test's own directory."""
    if backend == "sqlite":
        return {"url": f"sqlite:///{tmp_path}/state.db"}
    if backend == "file":
        return {"storage_dir": str(tmp_path / "states")}
    return {}


@pytest.fixture
def clock():
    """A clock that the test moves."""
    return FakeClock()


@pytest.fixture(params=LOCAL)
async def storage(request, tmp_path):
    """A fresh storage of each backend that needs no server."""
    made = registry.create(request.param, options_for(request.param, tmp_path))
    yield made
    await made.close()


@pytest.fixture(params=LOCAL)
async def clocked(request, tmp_path, clock):
    """The same, on a clock that the test moves."""
    made = registry.create(request.param, options_for(request.param, tmp_path), clock=clock)
    yield made
    await made.close()


@pytest.fixture
async def memory():
    """A fresh memory storage."""
    made = registry.create("memory", {})
    yield made
    await made.close()
