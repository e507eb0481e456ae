"""Fixtures for storages that need a server."""

import itertools

import pytest

from tests.servers import ValkeyServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def valkey_server():
    """Return this test process's Valkey server; don't kill, configure or empty it."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey_prefix():
    """Return a key prefix of this test's own."""
    return f"test-{next(_numbers)}:"
