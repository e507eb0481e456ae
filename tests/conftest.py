"""What every test may use: storages of each backend, and contexts over them."""

from __future__ import annotations

import itertools

import pytest

from agentstate.storage import registry
from agentstate.testing.clock import FakeClock
from tests.servers import ValkeyServer

BACKENDS = ("memory", "sqlite", "file", "valkey")


for _name in BACKENDS:
    registry.load(_name)  # before there are threads: pytest's rewriting of imports isn't safe in two at once

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def valkey_server():
    """This test process's Valkey server; don't kill, configure or empty it."""
    with ValkeyServer(save="3600 1") as server:  # without any persistence, storages warn
        yield server


@pytest.fixture(scope="session")
def postgres_server():
    """This test process's PostgreSQL server; don't kill, configure or empty it."""
    from tests.postgres import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_schema():
    """A schema of this test's own."""
    return f"test_{next(_numbers)}"


@pytest.fixture
def valkey_prefix():
    """A key prefix of this test's own."""
    return f"test-{next(_numbers)}:"


@pytest.fixture
def storage_options(request, tmp_path):
    """Return the options of a fresh storage of a backend, by its name."""

    def options_for(backend):
        if backend == "valkey":
            server = request.getfixturevalue("valkey_server")
            return {"url": server.url, "key_prefix": request.getfixturevalue("valkey_prefix")}
        return local_options(backend, tmp_path)

    return options_for


def local_options(backend, tmp_path):
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


@pytest.fixture(params=BACKENDS)
async def storage(request, storage_options):
    """A fresh storage of each backend."""
    made = registry.create(request.param, storage_options(request.param))
    yield made
    await made.close()


@pytest.fixture(params=BACKENDS)
async def clocked(request, storage_options, clock):
    """The same, on a clock that the test moves."""
    made = registry.create(request.param, storage_options(request.param), clock=clock)
    yield made
    await made.close()


@pytest.fixture
async def memory():
    """A fresh memory storage."""
    made = registry.create("memory", {})
    yield made
    await made.close()
