"""Managers over each backend."""

from __future__ import annotations

import pytest

from agentstate import StateManager
from agentstate.storage import registry


@pytest.fixture
def manager(storage):
    """A manager over a fresh storage of each backend."""
    return StateManager(storage)


@pytest.fixture(params=("memory", "sqlite", "rocksdb", "postgresql"))
async def joint(request, storage_options, tmp_path):
    """A manager over each backend that commits several states as one."""
    made = registry.create(request.param, joint_options(request, storage_options, tmp_path))
    yield StateManager(made)
    await made.close()


def joint_options(request, storage_options, tmp_path):
    """Return the options of a fresh storage."""
    if request.param == "rocksdb":
        return {"url": f"rocksdb:///{tmp_path}/rocks"}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        return {"url": server.url, "schema_name": request.getfixturevalue("postgres_schema")}
    return storage_options(request.param)
