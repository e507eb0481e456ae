"""A byte store makes a storage that keeps the contract, as far as it declares to."""

import asyncio
import fcntl
import hashlib
import random
import threading
from pathlib import Path

import pytest

from agentstate.scope import StateScope
from agentstate.storage.keyvalue import KeyValueStorage
from agentstate.testing import Damage, MakeNewer, MakeStorage, StorageConformance


class DictStore:
    """Bytes in a dict, with plain methods."""

    def __init__(self):
        self.values = {}

    def get(self, key):
        return self.values.get(key)

    def set(self, key, value):
        self.values[key] = value

    def delete(self, key):
        self.values.pop(key, None)

    def list_keys(self, prefix):
        return [key for key in list(self.values) if key.startswith(prefix)]


class SwappingDictStore(DictStore):
    """The same with async methods, each of which lets others run, and with compare-and-swap."""

    async def get(self, key):
        await asyncio.sleep(0)
        return self.values.get(key)

    async def set(self, key, value):
        await asyncio.sleep(0)
        self.values[key] = value

    async def delete(self, key):
        await asyncio.sleep(0)
        self.values.pop(key, None)

    async def list_keys(self, prefix):
        await asyncio.sleep(0)
        return super().list_keys(prefix)

    async def compare_and_swap(self, key, expected, new):
        await asyncio.sleep(0)
        if self.values.get(key) != expected:
            return False
        self.values[key] = new
        return True


class DirectoryStore:
    """A file for each key, with plain methods that block, and compare-and-swap under a lock of the kernel."""

    def __init__(self, directory):
        self.directory = directory
        self.guard = threading.Lock()
        directory.mkdir(exist_ok=True)

    def path(self, key):
        return self.directory / hashlib.sha256(key.encode()).hexdigest()

    def get(self, key):
        try:
            return self.path(key).read_bytes().partition(b"\n")[2]
        except FileNotFoundError:
            return None

    def set(self, key, value):
        path = self.path(key)
        new = path.with_name(f"{path.name}.{threading.get_ident()}.new")
        new.write_bytes(key.encode() + b"\n" + value)
        new.replace(path)

    def delete(self, key):
        self.path(key).unlink(missing_ok=True)

    def list_keys(self, prefix):
        keys = []
        for path in self.directory.iterdir():
            if path.suffix == "" and path.name != "lock":
                try:
                    keys.append(path.read_bytes().partition(b"\n")[0].decode())
                except FileNotFoundError:
                    continue
        return [key for key in keys if key.startswith(prefix)]

    def compare_and_swap(self, key, expected, new):
        with self.guard, (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.get(key) != expected:
                return False
            self.set(key, new)
            return True


class KeyValueCase(StorageConformance):
    """What the byte stores have in common."""

    @pytest.fixture
    def kv(self, tmp_path: Path):
        """Return the byte store of this test."""
        raise NotImplementedError

    @pytest.fixture
    def make_storage(self, kv) -> MakeStorage:
        """Return a maker of storages on this test's byte store."""
        return lambda clock: KeyValueStorage(kv, clock=clock, quick=isinstance(kv, DictStore))

    @pytest.fixture
    def damage(self, kv) -> Damage:
        """Change or cut one byte of a document that belongs to a state."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            chance = random.Random(seed)
            name = KeyValueStorage(kv).head_key(scope).rpartition("/")[2]
            key = chance.choice(sorted(one for one in listed(kv) if f"/{name}" in one and "/todo/" not in one))
            data = bytearray(fetched(kv, key))
            at = chance.randrange(len(data))
            if how == "cut":
                del data[at:]
            else:
                data[at] ^= 1 << chance.randrange(8)
            put(kv, key, bytes(data))
            return f"{how} byte {at} of {key}"

        return spoil

    @pytest.fixture
    def make_newer(self, kv) -> MakeNewer:
        """Give the head of a state a later format."""

        def raise_format(scope: StateScope) -> None:
            key = KeyValueStorage(kv).head_key(scope)
            put(kv, key, fetched(kv, key).replace(b'"format":1', b'"format":99', 1))

        return raise_format


def listed(kv):
    return list(kv.values) if isinstance(kv, DictStore) else kv.list_keys("")


def fetched(kv, key):
    return kv.values[key] if isinstance(kv, DictStore) else kv.get(key)


def put(kv, key, value):
    if isinstance(kv, DictStore):
        kv.values[key] = value
    else:
        kv.set(key, value)


class TestDict(KeyValueCase):
    """A dict without compare-and-swap: one process."""

    @pytest.fixture
    def kv(self, tmp_path: Path):
        """Return the byte store of this test."""
        return DictStore()


class TestSwappingDict(KeyValueCase):
    """A dict with compare-and-swap and async methods: two storages over it behave as two processes do."""

    @pytest.fixture
    def kv(self, tmp_path: Path):
        """Return the byte store of this test."""
        return SwappingDictStore()


class TestDirectory(KeyValueCase):
    """A directory of files, with methods that block."""

    @pytest.fixture
    def kv(self, tmp_path: Path):
        """Return the byte store of this test."""
        return DirectoryStore(tmp_path / "kv")
