"""What the crash tests run on, and how often."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agentstate.storage import registry
from agentstate.testing import ProcessSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentstate.storage.protocol import Storage
    from tests.servers import ValkeyServer

# `make test-crash` asks for many.
CYCLES = int(os.environ.get("AGENTSTATE_CRASH_CYCLES", "50"))


class Place(NamedTuple):
    """Data of one backend that a worker process and the test both open."""

    spec: ProcessSpec

    def storage(self) -> Storage:
        """Return a new storage on the data."""
        return registry.create(self.spec.backend, self.spec.options)


@pytest.fixture(params=["file", "sqlite", "rocksdb", "valkey"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Place]:
    """Return a maker of fresh places on each persistent backend, by number."""

    def make(number: int) -> Place:
        options: dict[str, object]
        if request.param == "file":
            options, preload = {"storage_dir": str(tmp_path / f"states-{number}")}, ()
        elif request.param == "rocksdb":
            options, preload = {"url": f"rocksdb:///{tmp_path}/states-{number}"}, ("rocksdict",)
        elif request.param == "sqlite":
            options, preload = {"url": f"sqlite:///{tmp_path}/state-{number}.db"}, ("apsw",)
        else:
            server: ValkeyServer = request.getfixturevalue("valkey_server")
            options, preload = {"url": server.url, "key_prefix": f"{tmp_path.name}-{number}:"}, ("libvalkey",)
        module = f"agentstate.storage.{request.param}"
        return Place(ProcessSpec(request.param, options, (module, *preload)))

    return make


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Return this test's source of chance, the same in every run."""
    return random.Random(request.node.name)
