"""What the file backend reads back is what memory holds, whatever was done and however it was split into files."""

import asyncio
import random

import pytest

from agentstate.errors import StateError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file import scope as file_scope
from agentstate.storage.file import snapshot as file_snapshot
from agentstate.storage.file import write as file_write
from agentstate.storage.memory import MemoryStorage
from agentstate.storage.protocol import (
    Append,
    CutTail,
    EditItem,
    Increment,
    OnceRecord,
    Part,
    Put,
    ScopeQuery,
    TrimHead,
    Wants,
)
from agentstate.testing.clock import FakeClock
from tests.storage.filedisks import UnsyncedDisk

SCOPE = StateScope.conversation("one")
VALUES = (
    b"1",
    b'{"a":[1,2.5,null]}',
    b"\x00\xff",
    b"",
    b'{"b": 1}',
    b"\xc3\xa4",
    b"x" * 300,
    b'"\\u0000"',
    b"-0",
    b"1e400",
)


@pytest.fixture
def small_logs(monkeypatch):
    """Let logs be begun anew, and archives be rewritten, after a few lines."""
    monkeypatch.setattr(file_scope, "ROTATE_BYTES", 1500)
    monkeypatch.setattr(file_write, "ROTATE_BYTES", 1500)
    monkeypatch.setattr(file_snapshot, "SLACK", 500)
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)


def some_part(chance, log):
    """Return a random change of a state whose history is ``log``."""
    keys = [f"k{n}" for n in range(5)]
    part = Part(scope=SCOPE, record=chance.choice((None, b'{"at":1}', b"\x00rec")))
    part.clear = chance.random() < 0.02
    part.deletes = [("variables", key) for key in chance.sample(keys, chance.randrange(3))]
    part.puts = [
        Put("variables", chance.choice(keys), chance.choice(VALUES), chance.choice((None, None, 5.0, 50.0)))
        for _ in range(chance.randrange(3))
    ]
    part.increments = [Increment("counters", chance.choice("ab"), chance.randrange(-9, 9)) for _ in range(2)]
    part.appends = [some_item(chance) for _ in range(chance.randrange(4))]
    if log is not None and log.items and chance.random() < 0.3:
        item = chance.choice(log.items)
        way = chance.randrange(3)
        if way == 0:
            part.edits = [EditItem("history", item.position, item.seq, b'"edited"')]
        elif way == 1:
            part.cuts = [CutTail("history", max(item.position, log.head - 3))]
        else:
            part.trims = [TrimHead("history", min(item.position, log.first + 4))]
    if chance.random() < 0.1:
        part.owner, part.labels, part.parent = "ada", {"sum": "x", "l": "1"}, "p"
    if chance.random() < 0.1:
        part.ttl, part.sliding = chance.choice((None, 100.0, 3.0)), chance.random() < 0.5
    return part


def some_item(chance):
    """Return a random item to append."""
    value = chance.choice(VALUES)
    # An empty item has nothing to sweep, so only those with a value say when to come.
    ttl = chance.choice((None, None, None, 20.0)) if value else None
    return Append(chance.choice(("history", "other")), f"m{chance.randrange(500)}", value, ttl, chance.random() < 0.5)


async def picture(storage):
    """Return everything that can be seen of the state."""
    found = await storage.read(SCOPE, Wants(inline_bytes=10**9), once="key-3")
    logs = {name: await storage.read_log(SCOPE, name) for name in found.logs}
    return (
        found,
        logs,
        await storage.journal(SCOPE, limit=10_000),
        await storage.failures(SCOPE),
        (await storage.scopes(ScopeQuery())).items,
        [(item.stamp, item.at) for item in await storage.feed(0, limit=10_000)],
    )


async def both(first, second, call):
    """Do the same in both, and expect the same."""
    results = []
    for storage in (first, second):
        try:
            results.append(await call(storage))
        except StateError as error:
            results.append((type(error), error.args))
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize("seed", range(12))
async def test_files_and_memory_agree(tmp_path, small_logs, seed):
    """After 150 random changes, seen through three instances in turn, files hold what memory holds."""
    chance, clock = random.Random(seed), FakeClock(1000.0)
    memory = MemoryStorage(clock=clock)
    files = [FileStorage(tmp_path, clock=clock) for _ in range(2)]
    for number in range(150):
        storage = chance.choice(files)
        seen = await memory.read(SCOPE, Wants((), (), (("history", 100),)))
        part = some_part(chance, seen.logs.get("history"))
        once = OnceRecord(f"key-{number}", "f", number + 1, b'"r"') if chance.random() < 0.1 else None
        way = chance.random()
        if way < 0.03:
            await both(memory, storage, lambda s: s.drop(SCOPE))
        elif way < 0.08:
            await both(memory, storage, lambda s, n=number: s.leave(SCOPE, 0, failure=b"failure %d" % n))
        elif way < 0.15:
            clock.advance(chance.choice((1.0, 7.0, 30.0)))
        elif way < 0.25:
            await both(memory, storage, lambda s: s.sweep(1000))
        else:
            await both(memory, storage, lambda s, n=number, p=part, o=once: s.commit([p], commit_id=n + 1, once=o))
        if number % 10 == 0:
            for one, other in zip(await picture(storage), await picture(memory), strict=True):
                assert one == other
    fresh = FileStorage(tmp_path, clock=clock)
    for storage in (*files, fresh):
        assert await picture(storage) == await picture(memory)
        await storage.close()
    home = next((tmp_path / "scopes").glob("*/*/*"))
    assert (home / "state.json").exists()


async def test_commits_that_wait_share_a_line(tmp_path, monkeypatch):
    """Commits that arrive while one is being written become one line with one sync, each with its own outcome."""
    syncs = []

    class Slow(UnsyncedDisk):
        def step(self, name, *arguments):
            if name == "sync":
                syncs.append(name)

    monkeypatch.setattr("agentstate.storage.file.storage.Disk", Slow)
    storage = FileStorage(tmp_path)
    await storage.open()
    syncs.clear()
    parts = [Part(scope=SCOPE, increments=[Increment("variables", "n", 1)]) for _ in range(200)]
    parts[50] = Part(scope=SCOPE, birth=12345)
    done = await asyncio.gather(
        *(storage.commit([part], commit_id=n + 1) for n, part in enumerate(parts)), return_exceptions=True
    )
    assert isinstance(done[50], StateError)
    versions = [one[0].stamp.version for one in done if not isinstance(one, BaseException)]
    assert sorted(versions) == list(range(1, 200))
    assert len(syncs) < 20
    await storage.close()
