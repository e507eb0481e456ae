"""What RocksDB is besides the contract: one process, options that reach the engine, stalls, files on the disk."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
import rocksdict

from agentstate import ConversationContext
from agentstate.errors import (
    CommitUnknownError,
    ConfigError,
    DamagedStateError,
    MissingDependencyError,
    StorageClosedError,
)
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Append, Increment, LeaseRequest, Part, Put, ScopeQuery, TrimHead, Wants
from agentstate.storage.rocksdb import RocksdbOptions, RocksdbStorage
from agentstate.storage.rocksdb.errors import StoreInUseError
from agentstate.testing.turns import new_id

A = StateScope.conversation("a")
EVERYTHING = Wants(tails=(("history", 10),))
STALL = {"level0_file_num_compaction_trigger": "100", "level0_stop_writes_trigger": "0"}
FLOW = {"level0_file_num_compaction_trigger": "4", "level0_stop_writes_trigger": "36"}


@pytest.fixture
def directory(tmp_path):
    """Return the store of this test."""
    return tmp_path / "states"


@pytest.fixture
async def storage(directory):
    """An open store."""
    made = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    await made.open()
    yield made
    await made.close()


def add(number=1, **change):
    """Return a part that counts."""
    return Part(scope=A, increments=[Increment("variables", "n", number)], **change)


async def counted(storage):
    """Return the counter."""
    entry = (await storage.read(A, EVERYTHING)).entries.get(("variables", "n"))
    return 0 if entry is None else entry.value


# -- options ------------------------------------------------------------------------------


def engine_options(directory):
    """Return what the engine wrote down of its options."""
    newest = max(directory.glob("OPTIONS-*"))
    return dict(re.findall(r"^  (\w+)=(.*)$", newest.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (
            {},
            {
                "max_open_files": "1000",
                "compression": "kLZ4Compression",
                "compaction_style": "kCompactionStyleLevel",
                "filter_policy": "bloomfilter",
                "no_block_cache": "false",
                "wal_recovery_mode": "kTolerateCorruptedTailRecords",
            },
        ),
        (
            {"max_open_files": 77, "compression": "zstd", "compaction_style": "universal", "bloom_filter_bits": 13},
            {
                "max_open_files": "77",
                "compression": "kZSTD",
                "compaction_style": "kCompactionStyleUniversal",
                "filter_policy": "bloomfilter",
            },
        ),
        (
            {"compression": "snappy", "bloom_filter_bits": 0, "block_cache_size": 0, "max_open_files": -1},
            {
                "compression": "kSnappyCompression",
                "filter_policy": "nullptr",
                "no_block_cache": "true",
                "max_open_files": "-1",
            },
        ),
        ({"compression": "none"}, {"compression": "kNoCompression"}),
    ],
)
async def test_options_reach_the_engine(directory, given, written):
    """Each option is read back from the file in which the engine keeps its own."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}", **given})
    await storage.commit([add()], commit_id=new_id())
    await storage.close()
    found = engine_options(directory)
    assert {name: found[name] for name in written} == written


@pytest.mark.parametrize("bits", [5, 10, 20])
async def test_bloom_filter_bits(directory, bits):
    """The filters of the tables have as many bits for each key as was said."""
    storage = RocksdbStorage(RocksdbOptions(url=f"rocksdb:///{directory}", bloom_filter_bits=bits, durability="normal"))
    puts = [Put("variables", f"k{n}", b"x") for n in range(3000)]
    await storage.commit([Part(scope=A, puts=puts)], commit_id=new_id())
    storage._engine._db.flush()
    told = await storage.property("rocksdb.aggregated-table-properties")
    filters, keys = (int(re.search(rf"{name}=(\d+)", told)[1]) for name in ("filter block size", "# entries"))
    assert filters * 8 / keys == pytest.approx(bits, rel=0.15)
    await storage.close()


async def test_the_block_cache(directory):
    """The size of the block cache is what the engine says it is."""
    storage = RocksdbStorage(RocksdbOptions(url=f"rocksdb:///{directory}", block_cache_size=12_345_678))
    assert await storage.property("rocksdb.block-cache-capacity") == "12345678"
    assert await storage.property("rocksdb.no-such-property") is None
    await storage.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "rocksdb://host/dir"},
        {"url": "rocksdb:///"},
        {"url": "rocksdb:///a?b=c#d"},
        {"bloom_filter_bits": -1},
        {"max_open_files": "many"},
        {"compression": "bz3"},
        {"block_cache": 5},
    ],
)
def test_wrong_options(wrong):
    """What can't be meant is refused, with the option's name."""
    with pytest.raises(ConfigError):
        registry.create("rocksdb", {"url": "rocksdb:///x", **wrong})


@pytest.mark.parametrize(("durability", "survives"), [("full", "power"), ("normal", "process")])
async def test_durability(directory, durability, survives):
    """The level that was chosen is the one that is declared, and only the full one syncs."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}", "durability": durability})
    assert storage.capabilities.durability == survives
    await storage.open()
    engine = storage._engine
    await storage.commit([add()], commit_id=new_id())
    assert (engine._syncs > 0) == (durability == "full")
    await storage.close()


# -- one process --------------------------------------------------------------------------


async def test_a_second_process(storage, directory):
    """Another process is told that the store is in use, at once, in one line."""
    code = f"""
import asyncio
from agentstate.storage import registry
from agentstate.storage.rocksdb.errors import StoreInUseError
storage = registry.create("rocksdb", {{"url": "rocksdb:///{directory}"}})
try:
    asyncio.run(storage.open())
except StoreInUseError as error:
    print(error)
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert "is open in another process, and RocksDB admits one at a time" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
    await storage.commit([add()], commit_id=new_id())


async def test_a_second_storage(storage, directory):
    """Another storage of this process is told so, too, and opens when the first has closed."""
    other = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    with pytest.raises(StoreInUseError, match="is open in this process"):
        await other.open()
    await storage.close()
    await other.commit([add()], commit_id=new_id())
    assert await counted(other) == 1
    await other.close()


def fork_and_use(storage):
    """Return how a forked child ended that tried to use the storage, and then ended as programs do."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(storage.commit([add()], commit_id=new_id()))
        except StorageClosedError:
            os._exit(10)
        os._exit(1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    return None


async def test_a_forked_child(storage):
    """A child is refused, and its end doesn't disturb the parent's store."""
    await storage.commit([add()], commit_id=new_id())
    assert await asyncio.to_thread(fork_and_use, storage) == 10
    await storage.commit([add()], commit_id=new_id())
    assert await counted(storage) == 2


def test_a_child_of_multiprocessing(directory):
    """A child that multiprocessing forks runs, forgets the store it inherited, and ends without waiting for anybody."""
    code = f"""
import asyncio, gc, multiprocessing
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Increment, Part
storage = registry.create("rocksdb", {{"url": "rocksdb:///{directory}"}})
part = Part(scope=StateScope.conversation("a"), increments=[Increment("variables", "n", 1)])
asyncio.run(storage.commit([part], commit_id=1))
def child():
    global storage
    storage = None
    gc.collect()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(30)
assert process.exitcode == 0, process.exitcode
asyncio.run(storage.commit([part], commit_id=2))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_program_that_just_ends(directory):
    """A store that nobody closed is closed at exit, without a word, and all is there the next time."""
    code = f"""
import asyncio
from agentstate import stateful
@stateful(url="rocksdb:///{directory}")
async def handler(task, context, context_id):
    return await context.increment(context_id, "n")
print(asyncio.run(handler({{"context_id": "c"}})))
"""
    for said in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True, timeout=60
        )
        assert (done.stdout.strip(), done.stderr) == (said, "")


# -- the event loop -----------------------------------------------------------------------


async def test_a_stall_waits_elsewhere(storage):
    """While the engine holds writes up, commits wait without the loop: reads go on, and nothing is lost."""
    await storage.commit([add()], commit_id=new_id())
    database = storage._engine._db
    database.set_options(STALL)
    waiting = [asyncio.create_task(storage.commit([add()], commit_id=new_id())) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert await counted(storage) == 1
    assert not any(task.done() for task in waiting)
    database.set_options(FLOW)
    await asyncio.gather(*waiting)
    assert await counted(storage) == 4


async def test_a_stalled_commit_can_be_cancelled(storage):
    """A commit that is cancelled while the engine holds writes up has not happened."""
    await storage.commit([add()], commit_id=new_id())
    database = storage._engine._db
    database.set_options(STALL)
    waiting = asyncio.create_task(storage.commit([add()], commit_id=new_id()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    database.set_options(FLOW)
    await storage.commit([add()], commit_id=new_id())
    assert await counted(storage) == 2


async def test_commits_share_syncs(storage):
    """Sixty-four commits at once wait for a few syncs, not for one each."""
    await storage.commit([add()], commit_id=new_id())
    before = storage._engine._syncs
    await asyncio.gather(*(storage.commit([add()], commit_id=new_id()) for _ in range(64)))
    assert storage._engine._syncs - before < 10
    assert await counted(storage) == 65


async def test_a_read_waits_for_the_sync_of_what_it_read(storage):
    """What a read returns of a commit that isn't acknowledged yet is on the disk by then."""
    await storage.commit([add()], commit_id=new_id())
    engine, held = storage._engine, threading.Event()
    flush = engine._db.flush_wal

    class Held:
        def __getattr__(self, name):
            return getattr(database, name)

        def flush_wal(self, sync):
            held.wait(30)
            flush(sync=sync)

    database, engine._db = engine._db, Held()
    committing = asyncio.create_task(storage.commit([add()], commit_id=new_id()))
    await asyncio.sleep(0)
    reading = asyncio.create_task(storage.read(A, EVERYTHING))
    elsewhere = await storage.read(StateScope.conversation("b"), EVERYTHING)
    await asyncio.sleep(0.02)
    assert (committing.done(), reading.done(), elsewhere.stamp) == (False, False, None)
    held.set()
    assert (await reading).entries["variables", "n"].value == 2
    await committing


async def test_a_failed_sync_is_told(storage):
    """When the disk fails at the sync, the commit's outcome is unknown, and says so."""

    await storage.commit([add()], commit_id=new_id())
    engine = storage._engine

    class Failing:
        def __getattr__(self, name):
            return getattr(database, name)

        def flush_wal(self, sync):
            raise RuntimeError("IO error: While fdatasync: Input/output error")

    database, engine._db = engine._db, Failing()
    with pytest.raises(CommitUnknownError) as caught:
        await storage.commit([add()], commit_id=77)
    assert caught.value.commit_id == 77
    engine._db = database
    assert await storage.outcome(A, 77) is not None


# -- cost ---------------------------------------------------------------------------------


async def test_cost_is_that_of_the_change(directory):
    """An append to 20,000 messages writes as many bytes as one to ten."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}", "durability": "normal"})
    sizes = []
    for total in (10, 20_000):
        scope = StateScope.conversation(f"of-{total}")
        for start in range(0, total, 2000):
            many = [Append("history", f"m-{n}", b"x" * 100) for n in range(start, min(start + 2000, total))]
            await storage.commit([Part(scope=scope, appends=many)], commit_id=new_id())
        batches = []
        engine = storage._engine
        write = engine.write
        engine.write = lambda batch, heads, write=write, batches=batches, **how: (
            batches.append(batch.size_in_bytes()),
            write(batch, heads, **how),
        )[1]
        await storage.commit([Part(scope=scope, appends=[Append("history", "m", b"x" * 100)])], commit_id=new_id())
        engine.write = write
        sizes += batches
    assert abs(sizes[1] - sizes[0]) < 40
    await storage.close()


async def test_idle_states_take_no_memory(storage):
    """Of 3,000 states no more heads stay in memory than the limit, and none of their rows."""
    for start in range(0, 3000, 500):
        parts = [
            Part(scope=StateScope.user(f"u-{n}"), puts=[Put("variables", "k", b"x" * 100)])
            for n in range(start, start + 500)
        ]
        await storage.commit(parts, commit_id=new_id())
    assert len(storage._engine._heads) <= 1024
    page = await storage.scopes(ScopeQuery(kind="user", prefix="u-29", limit=200))
    assert len(page.items) == 111


async def test_long_tails_come_from_a_thread(storage):
    """A tail of thousands is read on a thread, at the stamp of the snapshot it belongs to."""
    many = [Append("history", f"m-{n}", b"%d" % n) for n in range(2000)]
    await storage.commit([Part(scope=A, appends=many)], commit_id=new_id())
    reading = asyncio.create_task(storage.read(A, Wants(tails=(("history", 2000),))))
    await asyncio.sleep(0)
    await storage.commit([Part(scope=A, trims=[TrimHead("history", 1500)])], commit_id=new_id())
    found = (await reading).logs["history"]
    assert (len(found.items), found.items[0].value, found.items[-1].value) == (2000, b"0", b"1999")
    assert len((await storage.read_log(A, "history")).items) == 501


# -- what lies on the disk ----------------------------------------------------------------


def raw(directory):
    """Return the store as the engine itself sees it."""
    return rocksdict.Rdict(str(directory), rocksdict.Options(raw_mode=True))


def killed_copy(directory):
    """Return a copy of the store as a killed process leaves it: what was synced lies in the log."""
    return shutil.copytree(directory, directory.with_name("copied"), ignore=shutil.ignore_patterns("LOCK"))


async def test_another_applications_store(directory):
    """A store that somebody else filled is refused, and left alone."""
    with raw(directory) as store:
        store[b"theirs"] = b"1"
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    with pytest.raises(ConfigError, match="another application"):
        await storage.open()
    await storage.close()
    with raw(directory) as store:
        assert list(store.items()) == [(b"theirs", b"1")]


@pytest.mark.parametrize("pattern", ["*.log", "MANIFEST-*", "CURRENT"])
async def test_damaged_files(directory, pattern):
    """A damaged file of the engine is reported as damage when the store is opened."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    for _ in range(50):
        await storage.commit([add()], commit_id=new_id())
    copied = killed_copy(directory)
    await storage.close()
    path = max(copied.glob(pattern))
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 8):
        data[at] ^= 0x55
    path.write_bytes(data)
    again = registry.create("rocksdb", {"url": f"rocksdb:///{copied}"})
    with pytest.raises(DamagedStateError):
        await again.open()
    await again.close()


async def test_a_damaged_table(directory):
    """A damaged block of a table is reported by whoever reads it."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}", "compression": "none"})
    await storage.commit(
        [
            add(),
        ],
        commit_id=new_id(),
    )
    await storage.close()
    with raw(directory) as store:
        store.flush()
    path = max(directory.glob("*.sst"))
    data = bytearray(path.read_bytes())
    data[10:200] = bytes(190)
    path.write_bytes(data)
    again = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    with pytest.raises(DamagedStateError):
        await counted(again)
    await again.close()


async def test_a_torn_end(directory):
    """A last record that was cut off by a loss of power is dropped, and the store opens with all before it."""
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    for _ in range(5):
        await storage.commit([add()], commit_id=new_id())
    copied = killed_copy(directory)
    await storage.close()
    log = max(copied.glob("*.log"))
    os.truncate(log, log.stat().st_size - 7)
    again = registry.create("rocksdb", {"url": f"rocksdb:///{copied}"})
    assert await counted(again) == 4
    await again.close()


def test_no_room(directory):
    """When nothing more can be written the error says so, what was stored stays readable, and no half is left."""
    code = f"""
import asyncio, resource
from agentstate.errors import StorageFullError
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Increment, Part, Put, Wants
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
async def main():
    storage = registry.create("rocksdb", {{"url": "rocksdb:///{directory}"}})
    scope = StateScope.conversation("a")
    kept = 0
    try:
        for number in range(100):
            puts = [Put("variables", "k", bytes([number]) * 5000)]
            part = Part(scope=scope, puts=puts, increments=[Increment("variables", "n", 1)])
            await storage.commit([part], commit_id=number + 1)
            kept += 1
    except StorageFullError as error:
        print(type(error).__name__)
    found = (await storage.read(scope, Wants())).entries
    assert found["variables", "n"].value == kept == found["variables", "k"].value[0] + 1
    print(kept)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[:1] == ["StorageFullError"], done.stderr
    kept = int(done.stdout.split()[1])

    async def reopened():
        storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
        found = await counted(storage)
        await storage.commit([add()], commit_id=new_id())
        await storage.close()
        return found

    assert asyncio.run(reopened()) == kept


async def test_many_removed_states_leave_nothing(storage, directory):
    """States that came and went leave tombstones and the feed, and none of their rows."""
    for number in range(30):
        scope = StateScope.session(f"s-{number}")
        appends = [
            Append("history", f"m-{n}", b"x", unique=True, ttl=50.0) for n in range(300 if number % 10 == 0 else 3)
        ]
        part = Part(scope=scope, appends=appends, puts=[Put("variables", "k", b"1", ttl=9.0)], owner="ada", ttl=99.0)
        await storage.commit([part], commit_id=new_id())
        assert await storage.drop(scope)
    await storage.close()
    with raw(directory) as store:
        left = {key[:1] for key, _ in store.items()} - {b"\0", b"t", b"x", b"f"}
    assert left == set()


async def test_turns_exclude_each_other(storage):
    """A turn that is held is held, also for a reader in another thread's loop."""
    held = await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "first"))
    assert held.lease is not None

    async def ask():
        return await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 30.0, "second"))

    found = await asyncio.to_thread(lambda: asyncio.run(ask()))
    assert (found.lease, found.holder.holder) == (None, "first")


async def test_a_cancelled_commit_is_carried_through(storage):
    """A handler that gives up on commit() while it is synced, and goes on, adds its messages once."""
    context = ConversationContext(storage)
    async with context.turn("c") as conversation:
        await conversation.add("user", "once")
        task = asyncio.ensure_future(conversation.commit())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await conversation.add("user", "after")
    assert [one.content for one in await context.get_history("c")] == ["once", "after"]


async def test_a_missing_driver(directory, monkeypatch):
    """Without the driver the error is the command that installs it, and nothing was made."""
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    storage = registry.create("rocksdb", {"url": f"rocksdb:///{directory}"})
    with pytest.raises(MissingDependencyError, match=r"pip install 'agentstate-suite\[rocksdb\]'"):
        await storage.open()
    await storage.close()
    assert not directory.exists()
