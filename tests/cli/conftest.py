"""Runs the real command line in an empty directory, and stores states for it to find."""

import asyncio
import itertools
import json
import os
import time

import pytest
from typer.testing import CliRunner

from agentstate import codec
from agentstate.cli.app import app
from agentstate.config import discovery
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Append, Increment, Part, Put
from tests.servers import ValkeyServer

COMMITS = itertools.count(1)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty working directory, an environment without our variables, no configuration yet."""
    for name in [one for one in os.environ if one.startswith("AGENTSTATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "_current", None)
    return tmp_path


class Result:
    def __init__(self, result):
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def agentstate(directory):
    """Returns a function that runs a command and gives its code, output and errors."""

    def run(*args):
        return Result(CliRunner().invoke(app, [str(one) for one in args]))

    return run


@pytest.fixture(params=["sqlite", "file"])
def place(request, directory):
    """The URL of a storage on disk where nothing was ever stored."""
    return {"sqlite": f"sqlite:///{directory}/state.db", "file": f"file://{directory}/states"}[request.param]


@pytest.fixture(scope="session")
def valkey_server():
    """This test process's server."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "file", "valkey", "postgresql"])
def url(request, directory):
    """The URL of an empty storage."""
    if request.param == "valkey":
        server = request.getfixturevalue("valkey_server")
        return f"{server.url}?key_prefix=cli-{next(COMMITS)}:"
    if request.param == "postgresql":
        return f"{request.getfixturevalue('postgres_server').url}?schema_name=cli_{next(COMMITS)}"
    return {"sqlite": f"sqlite:///{directory}/state.db", "file": f"file://{directory}/states"}[request.param]


class Writer:
    """Stores states as the library does, also as if it were earlier."""

    def __init__(self, url):
        self.url = url

    def put(self, scope, *, age=0.0, owner=None, ttl=None, counters=(), messages=(), raw=(), **variables):
        """Store one state, ``age`` seconds ago."""
        where = scope if isinstance(scope, StateScope) else StateScope.parse(scope)
        part = Part(
            scope=where,
            puts=[
                *(Put("variables", key, codec.encode(value)) for key, value in variables.items()),
                *(Put("variables", key, value) for key, value in raw),
            ],
            increments=[Increment("variables", key, by) for key, by in counters],
            appends=[
                Append("history", f"m{n}", codec.encode(message(role, content)))
                for n, (role, content) in enumerate(messages)
            ],
            **({} if owner is None else {"owner": owner}),
            **({} if ttl is None else {"ttl": ttl}),
        )
        asyncio.run(self._commit(part, age))

    async def _commit(self, part, age):
        storage = registry.create(registry.backend_for_url(self.url), {"url": self.url}, lambda: time.time() - age)
        try:
            await storage.commit([part], commit_id=next(COMMITS))
        finally:
            await storage.close()


def message(role, content):
    return {"id": "x", "role": role, "content": content, "timestamp": "2025-01-01T00:00:00Z", "metadata": {}}


@pytest.fixture
def writer(url):
    return Writer(url)
