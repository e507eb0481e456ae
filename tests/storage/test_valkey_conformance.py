"""Valkey passes the conformance suite."""

import pytest

from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing import ProcessSpec, StorageConformance


class TestValkeyConformance(StorageConformance):
    """The whole suite, on a real server."""

    @pytest.fixture
    def make_storage(self, valkey_server, valkey_prefix):
        return lambda clock: ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock)

    @pytest.fixture
    def process_spec(self, valkey_server, valkey_prefix):
        options = {"url": valkey_server.url, "key_prefix": valkey_prefix}
        return ProcessSpec("valkey", options, ("libvalkey",))

    @pytest.fixture
    def make_newer(self, valkey_server, valkey_prefix):
        return lambda scope: valkey_server.ask("HSET", f"{valkey_prefix}{{store}}", "format", 2)
