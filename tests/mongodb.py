"""A server that speaks MongoDB's protocol, for tests: a FerretDB of their own, or the one they are told of.

``AGENTSTATE_TEST_MONGODB_URL`` names a server to use as it is, real MongoDB included; every test
makes databases of its own there and drops them. Without it FerretDB is started, if
``make test-mongodb`` has built it; else the tests are skipped and say so.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pymongo
import pytest
from pymongo.errors import PyMongoError

from tests.servers import READY_SECONDS, free_port

if TYPE_CHECKING:
    from pymongo.synchronous.database import Database

URL = os.environ.get("AGENTSTATE_TEST_MONGODB_URL")
BINARY = Path(__file__).parent.parent / ".venvs" / "ferretdb"
SKIP = (
    "no MongoDB server: `make test-mongodb` builds FerretDB with Go and runs these tests on it; "
    "or name a server in AGENTSTATE_TEST_MONGODB_URL"
)


def mongodb_or_skip() -> None:
    """Skip the test or the module that asks, unless there is a server to be had."""
    if URL is None and not BINARY.exists():
        pytest.skip(SKIP, allow_module_level=True)


class FerretServer:
    """A FerretDB of one's own on SQLite files that outlive `kill` and `restart`."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="agentstate-ferretdb-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mongodb://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, on another port should somebody have taken ours in between."""
        for last in (False, False, True):
            port = self.port or free_port()
            self._process = subprocess.Popen(
                [BINARY, f"127.0.0.1:{port}", self._directory.name],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if self._answers(port):
                self.port = port
                return self
            self.stop()
            if last or self.port:
                break
        raise TimeoutError("FerretDB doesn't start")

    def _answers(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with pymongo.MongoClient(f"mongodb://127.0.0.1:{port}", serverSelectionTimeoutMS=500) as client:
                try:
                    client.admin.command("ping")
                except PyMongoError:
                    time.sleep(0.02)
                else:
                    return self._process.poll() is None
        return False

    def kill(self) -> None:
        """Kill it as hard as it gets (``kill -9``)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> Self:
        """Start it again on the same port and data."""
        return self.start()

    def stop(self) -> None:
        """Stop it if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._directory.cleanup()


def database(url: str, name: str) -> Database[dict[str, Any]]:
    """Return a database, over a connection of its own that the caller closes with ``client``."""
    return pymongo.MongoClient(url)[name]
