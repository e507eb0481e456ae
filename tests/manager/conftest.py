"""Managers over each backend."""

from __future__ import annotations

import pytest

from agentstate import StateManager


@pytest.fixture
def manager(storage):
    """A manager over a fresh storage of each backend."""
    return StateManager(storage)


@pytest.fixture(params=("memory", "sqlite"))
async def joint(request, storage_options):
    """A manager over each backend that commits several states as one."""
    from agentstate.storage import registry

    made = registry.create(request.param, storage_options(request.param))
    yield StateManager(made)
    await made.close()
