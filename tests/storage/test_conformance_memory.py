"""The memory backend keeps the contract of storages, as far as it declares to."""

import pytest

from agentstate.storage.memory import MemoryStorage
from agentstate.testing import MakeStorage, StorageConformance


class TestMemory(StorageConformance):
    """Memory: nothing outlives the process, nothing is shared."""

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Return a maker of empty storages: memory is the instance's own."""
        return lambda clock: MemoryStorage(clock=clock)
