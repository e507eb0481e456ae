"""A MongoDB server for the tests of its backend."""

from __future__ import annotations

import itertools
import os

import pymongo
import pytest

from tests.mongodb import URL, FerretServer, mongodb_or_skip

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def mongodb_url():
    """This test process's server, or the one named in the environment; don't kill or configure it."""
    mongodb_or_skip()
    if URL is not None:
        yield URL
        return
    with FerretServer() as server:
        yield server.url


@pytest.fixture
def mongodb_database(mongodb_url):
    """A database of this test's own, dropped afterwards."""
    name = f"agentstate_test_{os.getpid()}_{next(_numbers)}"
    yield name
    with pymongo.MongoClient(mongodb_url) as client:
        client.drop_database(name)
