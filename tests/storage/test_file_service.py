"""Scopes that are written side by side: together where that is quicker, and each by itself where it fails."""

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from agentstate.errors import StorageClosedError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage, open_logs
from agentstate.storage.file.jobs import Commit
from agentstate.storage.file.root import name_of
from agentstate.storage.protocol import Append, Increment, LeaseRequest, Part, Put, ScopeQuery, Wants
from tests.storage.filedisks import CountingDisk, UnsyncedDisk

SCOPES = [StateScope.conversation(f"c{n}") for n in range(24)]


class HeldDisk(CountingDisk):
    """Lets nobody's sync return until it is told to, and fails it for files of one name."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self.told = 0
        self.broken = ""

    def step(self, name, *arguments):
        super().step(name, *arguments)
        if name == "sync":
            self.go_on.wait(30)
            if self.broken and self.broken in str(Path(f"/proc/self/fd/{arguments[0]}").readlink()):
                raise OSError(errno.EIO, "broken")
        if name == "write" and b'"items":' in arguments[1]:
            self.told += 1


@pytest.fixture
async def held(tmp_path, monkeypatch):
    """A storage that knows all scopes, and its disk."""
    disk = HeldDisk()
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", lambda: disk)
    storage = FileStorage(tmp_path)
    for scope in SCOPES:
        await storage.commit([count(scope)], commit_id=1)
    yield storage, disk
    disk.go_on.set()
    await storage.close()


def count(scope):
    """Return a part that counts."""
    return Part(scope=scope, increments=[Increment("variables", "n", 1)])


async def counted(storage, scope):
    """Return how often was counted."""
    return (await storage.read(scope, Wants())).entries["variables", "n"].value


async def waiting(storage, disk, scopes):
    """Commit to all scopes while no sync returns; return the tasks once all of them have been handed over."""
    disk.go_on.clear()
    tasks = [asyncio.create_task(storage.commit([count(scope)], commit_id=2)) for scope in scopes]
    while not all(storage._scopes.get(scope).busy for scope in scopes):  # noqa: ASYNC110 - a pass for each task
        await asyncio.sleep(0)
    return tasks


async def test_scopes_that_wait_are_told_of_together(held):
    """Commits to many states at once take a line in the feed each, but few writes of them."""
    storage, disk = held
    disk.told = 0
    tasks = await waiting(storage, disk, SCOPES)
    disk.go_on.set()
    await asyncio.gather(*tasks)
    assert disk.told < len(SCOPES) / 2
    assert [await counted(storage, scope) for scope in SCOPES] == [2] * len(SCOPES)
    feed = await storage.feed(0, limit=1000)
    assert sorted(item.scope for item in feed if item.stamp.version == 2) == sorted(SCOPES)
    assert {info.stamp.version for info in (await storage.scopes(ScopeQuery())).items} == {2}


async def test_one_that_fails_leaves_the_others_alone(held):
    """A disk that fails for one state's file refuses that commit, and no other that was written with it."""
    storage, disk = held
    disk.broken = name_of(SCOPES[5])
    tasks = await waiting(storage, disk, SCOPES)
    disk.go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[5], StorageUnavailableError)
    disk.broken = ""
    assert [await counted(storage, scope) for scope in SCOPES] == [1 if scope is SCOPES[5] else 2 for scope in SCOPES]
    await storage.commit([count(SCOPES[5])], commit_id=3)
    feed = await storage.feed(0, limit=1000)
    assert [item.stamp.version for item in feed if item.scope == SCOPES[5]] == [1, 2]


async def test_one_that_another_process_writes_holds_nobody_up(held, tmp_path):
    """While another process has one state's lock, commits to others are done; then so is that one."""
    storage, _ = held
    other = FileStorage(tmp_path)
    await other.open()
    lock = other._root.writing(name_of(SCOPES[0]))
    lock.take()
    try:
        slow = asyncio.create_task(storage.commit([count(SCOPES[0])], commit_id=2))
        await asyncio.gather(*(storage.commit([count(scope)], commit_id=2) for scope in SCOPES[1:]))
        assert not slow.done()
    finally:
        lock.leave()
    await slow
    assert await counted(other, SCOPES[0]) == 2
    await other.close()


async def test_what_waits_is_done_before_closing(held):
    """Closing while commits wait for the disk: all of them are stored."""
    storage, disk = held
    tasks = await waiting(storage, disk, [*SCOPES, *SCOPES])
    closing = asyncio.create_task(storage.close())
    await asyncio.sleep(0)
    disk.go_on.set()
    await asyncio.gather(closing, *tasks)
    again = FileStorage(storage.location)
    assert [await counted(again, scope) for scope in SCOPES] == [3] * len(SCOPES)
    await again.close()


async def test_a_small_change_is_made_by_its_caller_and_a_large_one_is_not(held, monkeypatch):
    """What takes microseconds is made on the loop, before anything waits; what may take longer is made on a thread."""
    storage, _ = held
    makers = []
    make = Commit.make

    def noted(self, *arguments):
        makers.append(threading.current_thread() is threading.main_thread())
        return make(self, *arguments)

    monkeypatch.setattr(Commit, "make", noted)
    large = Part(scope=SCOPES[1], puts=[Put("variables", "v", b"1" * 100_000)])
    many = Part(scope=SCOPES[2], appends=[Append("history", f"m{n}", b"1") for n in range(100)])
    for part in (count(SCOPES[0]), large, many):
        await storage.commit([part], commit_id=2)
    assert makers == [True, False, False]


async def test_a_change_that_was_made_is_taken_back_when_nobody_can_write_it(held, monkeypatch):
    """A commit that comes when the threads are gone is refused; nothing of it stays, and nothing is locked."""
    storage, _ = held
    storage._workers.close()
    with pytest.raises(StorageClosedError):
        await storage.commit([count(SCOPES[0])], commit_id=2)
    with pytest.raises(StorageClosedError):
        await storage.drop(SCOPES[1])
    other = FileStorage(storage.location)
    await other.commit([count(SCOPES[0])], commit_id=3)
    assert await counted(other, SCOPES[0]) == 2
    assert await other.drop(SCOPES[1])
    await other.close()


async def test_few_logs_stay_open(tmp_path, monkeypatch):
    """However many states are written, only the logs used last stay open, and none after closing."""
    monkeypatch.setattr(open_logs, "KEPT", 4)
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)
    storage = FileStorage(tmp_path)
    for _ in range(3):
        for scope in SCOPES:
            await storage.commit([count(scope)], commit_id=1)
        assert len(open_files(tmp_path)) <= 4
    await storage.drop(SCOPES[-1])
    await storage.commit([count(SCOPES[-1])], commit_id=2)
    assert await counted(storage, SCOPES[-1]) == 1
    await storage.close()
    assert open_files(tmp_path) == []


async def test_an_open_log_that_another_process_began_anew(tmp_path, monkeypatch):
    """A log that stays open here isn't written to any more once another process has put a new one in its place."""
    monkeypatch.setattr("agentstate.storage.file.write.ROTATE_BYTES", 300)
    monkeypatch.setattr("agentstate.storage.file.scope.ROTATE_BYTES", 300)
    one, other = FileStorage(tmp_path), FileStorage(tmp_path)
    for number in range(40):
        await (one, other)[number % 2].commit([count(SCOPES[0])], commit_id=number + 1)
    assert await counted(one, SCOPES[0]) == await counted(other, SCOPES[0]) == 40
    assert [item.stamp.version for item in await one.feed(0)] == list(range(1, 41))
    await one.close()
    await other.close()


async def test_a_renewed_turn_keeps_its_state_alive_for_others(tmp_path, monkeypatch):
    """A state with a short lifetime is there for other processes as long as the turn on it is renewed."""
    now = 1000.0
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)
    one, other = (FileStorage(tmp_path, clock=lambda: now) for _ in range(2))
    part = count(SCOPES[0])
    part.ttl = 5.0
    await one.commit([part], commit_id=1)
    lease = (await one.read(SCOPES[0], Wants(), lease=LeaseRequest(1, 30.0, "me"))).lease
    for _ in range(5):
        now += 25.0
        assert await asyncio.to_thread(one.renew, [lease], 30.0) == [True]
        assert await counted(other, SCOPES[0]) == 1
    await one.leave(SCOPES[0], 1)
    now += 31.0
    assert (await other.read(SCOPES[0], Wants())).stamp is None
    await one.close()
    await other.close()


def open_files(directory):
    """Return the logs of scopes that this process has open."""
    names = (str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return [name for name in names if name.startswith(str(directory)) and name.endswith("log.jsonl")]
