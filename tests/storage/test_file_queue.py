"""Threads, loops and the cache of the file backend."""

import asyncio
import threading

import pytest

from agentstate.errors import StorageClosedError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file import queue as file_queue
from agentstate.storage.image import Image
from agentstate.storage.protocol import Append, Increment, LeaseRequest, Part, Put, ScopeQuery, Wants
from tests.storage.filedisks import CountingDisk, UnsyncedDisk

SCOPES = [StateScope.conversation(f"c{n}") for n in range(20)]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Let nothing wait for the disk."""
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)


@pytest.fixture
async def storage(tmp_path):
    """Return a storage."""
    made = FileStorage(tmp_path)
    yield made
    await made.close()


def add(scope=SCOPES[0], size=1):
    """Return a part that counts and stores some bytes."""
    value = b'"' + b"x" * size + b'"'
    return Part(scope=scope, increments=[Increment("variables", "n", 1)], puts=[Put("variables", "v", value)])


async def count(storage, scope=SCOPES[0]):
    """Return how often was counted."""
    found = await storage.read(scope, Wants(inline_bytes=10**9))
    return found.entries["variables", "n"].value if found.stamp else 0


async def test_a_known_state_is_read_without_a_thread(storage, monkeypatch):
    """Reading what this process knows, and taking its turn, uses no worker."""
    await storage.commit([add()], commit_id=1)

    def refuse(*_):
        raise AssertionError("a worker was used")

    monkeypatch.setattr(storage._workers, "submit", refuse)
    found = await storage.read(SCOPES[0], Wants(), lease=LeaseRequest(1, 30.0, "me"))
    assert found.lease is not None
    assert (await storage.read_log(SCOPES[0], "history")).items == ()
    await storage.leave(SCOPES[0], 1)


async def test_a_step_that_fails_unforeseen(storage, monkeypatch):
    """An error nobody foresaw reaches its caller; nothing of the step stays, and no turn is kept."""
    await storage.commit([add()], commit_id=1)
    original = Image.apply

    def half(self, part, commit_id, *arguments, **named):
        original(self, part, commit_id, *arguments, **named)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Image, "apply", half)
    with pytest.raises(RuntimeError):
        await storage.commit([add()], commit_id=2)
    with pytest.raises(RuntimeError):
        await storage.drop(SCOPES[0])
    monkeypatch.undo()
    assert await count(storage) == 1
    assert await storage.drop(SCOPES[0])
    assert await count(storage) == 0


async def test_the_cache_has_a_bound(storage, monkeypatch):
    """Only the states used last are kept in memory; the others are read again when they are needed."""
    monkeypatch.setattr(file_queue, "CACHE_BYTES", 60_000)
    for turn in range(3):
        for scope in SCOPES:
            await storage.commit([add(scope, 10_000)], commit_id=turn + 1)
    cache = storage._scopes
    assert len(cache._queues) < 8
    assert 0 < cache._size <= 60_000
    assert [await count(storage, scope) for scope in SCOPES] == [3] * len(SCOPES)
    assert cache._size == sum(queue.size for queue in cache._queues.values())


async def test_one_large_state_is_kept(tmp_path, monkeypatch):
    """A state larger than the whole cache is kept while it is the one in use."""
    disk = CountingDisk()
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", lambda: disk)
    monkeypatch.setattr(file_queue, "CACHE_BYTES", 1000)
    storage = FileStorage(tmp_path)
    await storage.commit([add(SCOPES[0], 10_000)], commit_id=1)
    disk.got = 0
    for number in range(5):
        await storage.commit([add(SCOPES[0], 10_000)], commit_id=number + 2)
    assert disk.got == 0
    await storage.close()


async def test_closing_carries_through(tmp_path):
    """What was handed over before closing is stored; what comes later is refused; nobody waits for ever."""
    storage = FileStorage(tmp_path)
    await storage.open()
    commits = [asyncio.create_task(storage.commit([add(scope)], commit_id=1)) for scope in SCOPES * 10]
    await asyncio.sleep(0)
    await storage.close()
    ends = await asyncio.gather(*commits, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, StorageClosedError)]
    done = [end for end in ends if isinstance(end, tuple)]
    assert len(refused) + len(done) == len(ends)
    again = FileStorage(tmp_path)
    assert sum([await count(again, scope) for scope in SCOPES]) == len(done) > 0
    await again.close()


async def test_a_cancelled_commit_is_carried_through(storage):
    """A commit whose caller is cancelled happens nevertheless, once."""
    await storage.open()
    for number in range(20):
        task = asyncio.create_task(storage.commit([add()], commit_id=number + 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await storage.commit([add()], commit_id=100)
    assert await count(storage) == 21


def test_loops_that_come_and_go(tmp_path):
    """One storage serves many event loops in many threads, also after some of them were closed."""
    storage = FileStorage(tmp_path)

    async def work():
        for number in range(10):
            await storage.commit([add()], commit_id=number + 1)

    async def leave_early():
        asyncio.get_running_loop().create_task(storage.commit([add()], commit_id=1))
        await asyncio.sleep(0)

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(leave_early())
    asyncio.run(work())

    async def end():
        found = await count(storage)
        await storage.close()
        return found

    assert asyncio.run(end()) in (70, 71)


async def test_a_store_file_that_was_lost(storage, tmp_path):
    """A store whose store file was removed keeps its states and its listing."""
    for scope in SCOPES[:3]:
        await storage.commit([add(scope)], commit_id=1)
    for names in (["store.json"], ["store.json", "feed.jsonl"], ["store.json", "boot"]):
        for name in names:
            (tmp_path / name).unlink()
        again = FileStorage(tmp_path)
        assert len((await again.scopes(ScopeQuery())).items) == 3
        assert await count(again) == 1
        await again.close()


async def test_logs_with_strange_names(storage):
    """Names of logs, sections and keys are data, whatever they hold."""
    names = ["", "sum", 'a"b', "\n", "\0", "\U0001f600", "x" * 1000, '{"sum":"0123456789abcdef","len":1,']
    part = Part(
        scope=SCOPES[0],
        appends=[Append(name, name, b"1", unique=True) for name in names],
        puts=[Put(name, name, b"1") for name in names],
        labels={name[:50]: name for name in names},
    )
    await storage.commit([part], commit_id=1)
    other = FileStorage(storage.location)
    found = await other.read(SCOPES[0], Wants())
    assert set(found.logs) == set(names)
    assert set(found.entries) == {(name, name) for name in names}
    (info,) = (await other.scopes(ScopeQuery(label=("sum", "sum")))).items
    assert dict(info.labels) == dict(part.labels)
    assert (await other.find_item(SCOPES[0], "\n", "\n")).value == b"1"
    await other.close()
