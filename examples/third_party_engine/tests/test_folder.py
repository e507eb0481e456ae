"""The folder keeps the contract of storages: the whole conformance suite, processes and kill -9 included."""

import random

import pytest
from agentstate_folder import FolderOptions, FolderStorage

from agentstate.testing import ProcessSpec, StorageConformance


class TestFolder(StorageConformance):
    """Inherits every case; what the folder declares not to be is skipped, with the reason."""

    @pytest.fixture
    def options(self, tmp_path):
        """Return where this test's data lies."""
        return {"url": f"folder://{tmp_path}/states", "durability": "normal"}

    @pytest.fixture
    def make_storage(self, options):
        """Each storage that this makes opens the same data: that is what 'within one test' means."""
        return lambda clock: FolderStorage(FolderOptions(**options), clock=clock)

    @pytest.fixture
    def process_spec(self, options):
        """Let the cases of several processes run: they open the backend by its registered name."""
        return ProcessSpec("folder", options, ("agentstate_folder",))

    @pytest.fixture
    def damage(self, tmp_path, options):
        """Let the cases of damaged data run: change or cut a byte of the state's own document."""

        def spoil(scope, how, seed):
            chance = random.Random(seed)
            key = FolderStorage(FolderOptions(**options)).head_key(scope).encode()
            files = (tmp_path / "states").glob("*.doc")
            file = next(one for one in files if one.read_bytes().startswith(key + b"\n"))
            data = bytearray(file.read_bytes())
            at = chance.randrange(len(key) + 1, len(data))
            if how == "cut":
                del data[at:]
            else:
                data[at] ^= 1 << chance.randrange(8)
            file.write_bytes(data)
            return f"{how} byte {at}"

        return spoil
