"""The Valkey backend keeps the contract of storages, on a real server."""

import pytest

from agentstate.scope import StateScope
from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance
from tests.servers import ValkeyServer

# What eviction, a stray DEL or another program's writes can do. The server keeps its own
# memory and files from bits that flip.
LOSSES = (
    ("DEL", "entries"),
    ("HDEL", "entries", "variables/k3"),
    ("DEL", "log:history"),
    ("RPOP", "log:history"),
    ("LPOP", "log:history"),
    ("SET", "state", "nonsense"),
    ("SET", "entries", "nonsense"),
    ("SET", "keys", "nonsense"),
    ("SET", "log:history", "nonsense"),
    ("SET", "journal", "nonsense"),
)
MESSES = (
    ("HSET", "state", "head", "nonsense"),
    ("HSET", "state", "turn", "nonsense"),
    ("HSET", "state", "expires", "nonsense"),
    ("HSET", "state", "section:variables", "nonsense"),
    ("HSET", "state", "log:history", "nonsense"),
    ("HSET", "entries", "#variables/k2", "nonsense"),
    ("HSET", "entries", "variables/n", "nonsense"),
    ("LSET", "log:history", 2, "nonsense"),
)


class TestValkey(StorageConformance):
    """Valkey: shared by any number of machines."""

    @pytest.fixture
    def make_storage(self, valkey_server: ValkeyServer, valkey_prefix: str) -> MakeStorage:
        """Return a maker of storages under this test's prefix."""
        return lambda clock: ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=clock)

    @pytest.fixture
    def process_spec(self, valkey_server: ValkeyServer, valkey_prefix: str) -> ProcessSpec:
        """Return how worker processes open this test's data."""
        options = {"url": valkey_server.url, "key_prefix": valkey_prefix}
        return ProcessSpec("valkey", options, ("agentstate.storage.valkey", "libvalkey"))

    @pytest.fixture
    def damage(self, valkey_server: ValkeyServer, valkey_prefix: str) -> Damage:
        """Take something of a state away, or put nonsense in its place."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            choices = LOSSES if how == "cut" else MESSES
            command, what, *rest = choices[seed % len(choices)]
            key = f"{valkey_prefix}{{{scope.partition(256)}}}{what}:{scope.text}"
            assert valkey_server.ask("EXISTS", key) == 1, f"there is no {key} to damage"
            valkey_server.ask(command, key, *rest)
            return f"{command} {key} {rest}"

        return spoil

    @pytest.fixture
    def make_newer(self, valkey_server: ValkeyServer, valkey_prefix: str) -> MakeNewer:
        """Raise the format number of the store."""

        def raise_format(scope: StateScope) -> None:
            del scope
            assert valkey_server.ask("HSET", f"{valkey_prefix}{{store}}", "format", 99) == 0

        return raise_format
