"""What a turn costs on files, in bytes and syncs: by what it changes, not by what is stored."""

import random

import pytest

from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file.workers import Workers
from agentstate.storage.protocol import Append, LeaseRequest, Part, Put, Wants
from tests.storage.filedisks import CountingDisk

SCOPE = StateScope.conversation("one")
WANTS = Wants(tails=(("history", 10),))
MESSAGE = b'{"role":"user","content":"' + b"word " * 40 + b'"}'


@pytest.fixture
async def counted(tmp_path, monkeypatch):
    """Return a maker of open storages on one directory, each with the disk that counts for it."""
    made = []

    async def make(name="states", durability="full"):
        disk = CountingDisk()
        monkeypatch.setattr("agentstate.storage.file.storage.Disk", lambda: disk)
        storage = FileStorage(tmp_path / name, durability=durability)
        made.append(storage)
        await storage.open()
        return storage, disk

    yield make
    for storage in made:
        await storage.close()


async def fill(storage, messages):
    """Store a history of so many messages."""
    appends = [Append("history", f"old-{n}", MESSAGE) for n in range(messages)]
    await storage.commit([Part(scope=SCOPE, appends=appends)], commit_id=1)


async def turn(storage, number):
    """Read the last messages and two variables; append two messages and set a variable."""
    lease = LeaseRequest(number + 1, 30.0, "test")
    found = await storage.read(SCOPE, WANTS, lease=lease)
    part = Part(
        scope=SCOPE,
        birth=found.birth,
        puts=[Put("variables", "number", b"%d" % number)],
        appends=[Append("history", f"{number}-{n}", MESSAGE, unique=True) for n in range(2)],
        record=b'{"at":1}',
    )
    await storage.commit([part], commit_id=random.getrandbits(62) + 1, lease=found.lease, release=True)
    return found


@pytest.mark.parametrize(("durability", "syncs"), [("full", 1), ("normal", 0)])
async def test_one_sync_per_commit(counted, durability, syncs):
    """A turn costs one sync at full durability and none at normal, and reads nothing that is cached."""
    storage, disk = await counted(durability=durability)
    for number in range(3):
        await turn(storage, number)
    for number in range(3, 20):
        disk.syncs = disk.got = 0
        await turn(storage, number)
        assert (disk.syncs, disk.got) == (syncs, 0)


async def test_one_hop_per_turn(counted, monkeypatch):
    """A turn goes to a thread once, for its commit: a line, its sync, a line in the feed, a mark before and after."""
    storage, disk = await counted()
    for number in range(3):
        await turn(storage, number)
    hops = []
    submit = Workers.submit
    monkeypatch.setattr(Workers, "submit", lambda self, work: (hops.append(1), submit(self, work)))
    disk.steps = 0
    for number in range(3, 23):
        await turn(storage, number)
    await storage.close()
    assert len(hops) == 20
    # One mark may be of the turn before these, and closing removes a file.
    assert disk.steps <= 20 * 5 + 2


async def test_a_turn_reads_only_the_tail(counted):
    """At 10,000 messages, a turn after another process's reads that one line and nothing else."""
    one, _ = await counted()
    two, disk = await counted()
    await fill(one, 10_000)
    await turn(two, 1)
    assert disk.got > 10_000 * len(MESSAGE)
    for number in range(2, 10):
        await turn(one, number)
        disk.got = 0
        found = await turn(two, number + 100)
        assert disk.got < 4 * len(MESSAGE)
        assert [item.id for item in found.logs["history"].items][-1] == f"{number}-1"


async def test_following_a_log_that_is_begun_anew(counted):
    """A process that has read everything goes on after another's snapshot without reading the state again."""
    one, _ = await counted()
    two, disk = await counted()
    await fill(one, 2_000)
    for number in range(1, 500):
        await turn(one, number)
        disk.got = 0
        await two.read(SCOPE, WANTS)
        if number > 1:
            assert disk.got < 20_000


async def test_bytes_written_do_not_grow(counted):
    """Over 1,000 turns, snapshots and all, as much is written at 10,000 messages as at 10."""
    written = []
    for messages in (10, 10_000):
        storage, disk = await counted(str(messages), "normal")
        await fill(storage, messages)
        await turn(storage, 0)
        disk.written = 0
        for number in range(1, 1001):
            await turn(storage, number)
        written.append(disk.written / 1000)
    small, large = written
    # The first snapshot copies the whole history once; that is paid by the turns that wrote it.
    assert large - small < 10_000 * 1.5 * len(MESSAGE) / 1000
    storage, disk = await counted("10000", "normal")
    await turn(storage, 2000)
    disk.written = 0
    for number in range(2001, 3001):
        await turn(storage, number)
    assert disk.written / 1000 < 1.2 * small


async def test_a_large_state_is_rewritten_rarely(counted):
    """Over many turns, snapshots of 300 KB of variables cost no more than the log lines do."""
    storage, disk = await counted(durability="normal")
    puts = [Put("variables", f"big-{n}", b"\x00" * 3000) for n in range(75)]
    await storage.commit([Part(scope=SCOPE, puts=puts)], commit_id=1)
    disk.written = lines = 0
    for number in range(1500):
        before = disk.written
        await turn(storage, number)
        lines += min(disk.written - before, 4000)
    assert disk.written < 2.5 * lines
