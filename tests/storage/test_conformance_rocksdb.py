"""The RocksDB backend keeps the contract of storages."""

import random
from pathlib import Path

import pytest
import rocksdict

from agentstate.scope import StateScope
from agentstate.storage.rocksdb import RocksdbOptions, RocksdbStorage
from agentstate.storage.rocksdb.keys import after_prefix, head_key, number_prefix
from agentstate.storage.rocksdb.rows import unpack_head
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance


def raw(directory):
    """Return the store as the engine itself sees it."""
    return rocksdict.Rdict(str(directory), rocksdict.Options(raw_mode=True))


class TestRocksdb(StorageConformance):
    """RocksDB: one directory, one process, durable."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Return the store of this test."""
        return tmp_path / "states"

    @pytest.fixture
    def make_storage(self, directory: Path) -> MakeStorage:
        """Return a maker of storages on this test's store."""
        return lambda clock: RocksdbStorage(RocksdbOptions(url=f"rocksdb:///{directory}"), clock=clock)

    @pytest.fixture
    def process_spec(self, directory: Path) -> ProcessSpec:
        """Return how a worker process opens this test's store."""
        return ProcessSpec("rocksdb", {"url": f"rocksdb:///{directory}"}, ("agentstate.storage.rocksdb",))

    @pytest.fixture
    def damage(self, directory: Path) -> Damage:
        """Change one row that belongs to a state, behind the checksums' back."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            chance = random.Random(seed)
            with raw(directory) as store:
                key = chance.choice(_rows_of(store, scope))
                value = bytearray(store[key])
                at = chance.randrange(len(value))
                if how == "cut":
                    del value[at:]
                else:
                    value[at] ^= 1 << chance.randrange(8)
                store[key] = bytes(value)
            return f"{how} byte {at} of {key!r}"

        return spoil

    @pytest.fixture
    def make_newer(self, directory: Path) -> MakeNewer:
        """Raise the format number of the store."""

        def raise_format(scope: StateScope) -> None:
            del scope
            with raw(directory) as store:
                store[b"\0format"] = b"99"

        return raise_format


class TestUnsyncedRocksdb(TestRocksdb):
    """The same with ``durability="normal"``, where a commit is over when it is written."""

    @pytest.fixture
    def make_storage(self, directory: Path) -> MakeStorage:
        """Return a maker of storages on this test's store."""
        options = RocksdbOptions(url=f"rocksdb:///{directory}", durability="normal")
        return lambda clock: RocksdbStorage(options, clock=clock)

    @pytest.fixture
    def process_spec(self, directory: Path) -> ProcessSpec:
        """Return how a worker process opens this test's store."""
        options = {"url": f"rocksdb:///{directory}", "durability": "normal"}
        return ProcessSpec("rocksdb", options, ("agentstate.storage.rocksdb",))


def _rows_of(store, scope):
    key = head_key(scope)
    number = unpack_head(scope, key, store[key]).number
    keys = [key]
    for kind in (b"e", b"i", b"j"):
        prefix = number_prefix(kind, number)
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(after_prefix(prefix))
        keys += store.keys(from_key=prefix, read_opt=options)
    return keys
