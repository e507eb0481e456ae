"""`FaultyStorage`: faults strike where they were asked for, once, and leave what real ones leave."""

import os
import signal

import pytest

from agentstate.errors import CommitUnknownError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.memory import MemoryStorage
from agentstate.storage.protocol import Increment, Part, Storage, Wants
from agentstate.testing import FaultyStorage

SCOPE = StateScope.user("ada")


@pytest.fixture
def storage():
    """A faulty storage over memory."""
    return FaultyStorage(MemoryStorage())


async def add(storage, commit_id):
    """Commit an increment."""
    part = Part(scope=SCOPE, increments=[Increment("variables", "n", 1)])
    await storage.commit([part], commit_id=commit_id)


async def total(storage):
    """Return what was counted."""
    found = (await storage.inner.read(SCOPE, Wants())).entries.get(("variables", "n"))
    return found.value if found else 0


async def test_a_storage(storage):
    """It is a storage like the one it wraps."""
    assert isinstance(storage, Storage)
    assert (storage.name, storage.location) == ("memory", "memory://")
    await add(storage, 1)
    assert storage.calls == {"read": 0, "commit": 1}


async def test_before(storage):
    """The n-th commit from now fails once, and nothing of it happened."""
    await add(storage, 1)
    storage.fail_at(commit=2)
    await add(storage, 2)
    with pytest.raises(StorageUnavailableError):
        await add(storage, 3)
    assert await total(storage) == 2
    await add(storage, 4)
    assert await total(storage) == 3


async def test_after(storage):
    """A lost reply: the commit happened, and its outcome can be asked for."""
    storage.fail_at(commit=1, fault="after")
    with pytest.raises(CommitUnknownError) as caught:
        await add(storage, 7)
    assert await total(storage) == 1
    assert await storage.outcome(SCOPE, caught.value.commit_id) is not None


async def test_reads(storage):
    """Reads fail on their own count."""
    storage.fail_at(read=1, commit=1)
    with pytest.raises(StorageUnavailableError):
        await storage.read(SCOPE, Wants())
    with pytest.raises(StorageUnavailableError):
        await add(storage, 1)
    await storage.read(SCOPE, Wants())


def test_counted_from_one(storage):
    """The next call is number 1; there is no 0."""
    with pytest.raises(ValueError, match="number 1"):
        storage.fail_at(commit=0)


async def test_crash(storage):
    """A crash ends the process as kill -9 would."""
    child = os.fork()
    if child == 0:
        storage.fail_at(commit=1, fault="crash")
        try:
            add(storage, 1).send(None)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - the child ends at once
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
