"""The feed and the listing say what the scopes' own files hold, through crashes, compaction and damage."""

import shutil

import pytest

from agentstate.errors import NewerFormatError, StorageError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file import feed as file_feed
from agentstate.storage.file import sweep as file_sweep
from agentstate.storage.file.held import TOMBSTONE_SECONDS
from agentstate.storage.file.lines import seal
from agentstate.storage.file.root import name_of
from agentstate.storage.protocol import FAILURE_SECONDS, Append, Part, Put, ScopeQuery, Wants
from agentstate.testing.clock import FakeClock
from tests.storage.filedisks import CountingDisk, UnsyncedDisk

SCOPES = [StateScope.conversation(f"c{n}") for n in range(10)]


@pytest.fixture
def clock():
    """A clock that the test moves."""
    return FakeClock(1000.0)


@pytest.fixture
async def make(tmp_path, clock, monkeypatch):
    """Return a maker of storages on one directory."""
    made = []
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)

    def storage():
        made.append(FileStorage(tmp_path, clock=clock))
        return made[-1]

    yield storage
    for one in made:
        await one.close()


@pytest.fixture
def short(monkeypatch):
    """Let the feed be compacted after some kilobytes."""
    monkeypatch.setattr(file_feed, "KEPT_BYTES", 3000)


_ids = iter(range(1, 10**6))


async def put(storage, scope, value=b"1", **fields):
    """Set one variable."""
    part = Part(scope=scope, puts=[Put("variables", "k", value)], **fields)
    return (await storage.commit([part], commit_id=next(_ids)))[0]


async def listed(storage, **query):
    """Return which scopes are listed, with their stamps."""
    page = await storage.scopes(ScopeQuery(**query))
    return {info.scope: info.stamp for info in page.items}


async def everything(storage, after=None):
    """Return the whole feed, page by page."""
    found = []
    while page := await storage.feed(0, after=after, limit=7):
        found += page
        after = page[-1].cursor
    return found


async def test_another_process_follows(make, clock):
    """What one storage commits, another lists and follows, reading only what is new."""
    one, two = make(), make()
    for scope in SCOPES:
        await put(one, scope)
    assert set(await listed(two)) == set(SCOPES)
    stamp = (await put(one, SCOPES[3])).stamp
    await one.drop(SCOPES[4])
    assert (await listed(two))[SCOPES[3]] == stamp
    assert SCOPES[4] not in await listed(two)
    feed = await everything(two)
    assert [item.scope for item in feed] == [*SCOPES, SCOPES[3], SCOPES[4]]
    assert feed[-1].stamp is None


async def test_listing_reads_only_what_is_new(tmp_path, monkeypatch):
    """After the first listing, one more costs what was committed since, and never looks at the scopes' files."""
    disk = CountingDisk()
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", lambda: disk)
    storage = FileStorage(tmp_path)
    for scope in SCOPES * 10:
        await put(storage, scope)
    await listed(storage)
    await put(storage, SCOPES[0])
    shutil.move(tmp_path / "scopes", tmp_path / "hidden")
    disk.got = 0
    assert len(await listed(storage)) == len(SCOPES)
    assert 0 < disk.got < 500
    shutil.move(tmp_path / "hidden", tmp_path / "scopes")
    await storage.close()


async def test_compaction_keeps_listing_and_cursors(make, short, tmp_path):
    """The feed stays short, every storage goes on from its cursor, and nobody misses or repeats a commit."""
    one, two = make(), make()
    seen, sizes = [], []
    for number in range(150):
        await put(one, SCOPES[number % 10], b"%d" % number, labels={"sum": "x"})
        seen += await everything(two, seen[-1].cursor if seen else None)
        sizes.append((tmp_path / "feed.jsonl").stat().st_size)
    assert max(sizes) < 20_000
    assert min(sizes[50:]) < max(sizes) / 1.5
    versions = [(item.scope, item.stamp.version) for item in seen]
    assert versions == [(SCOPES[number % 10], number // 10 + 1) for number in range(150)]
    third = make()
    assert await listed(one) == await listed(two) == await listed(third)
    assert len(await listed(third)) == 10
    kept = await everything(third)
    assert [item.cursor for item in kept] == [item.cursor for item in seen[-len(kept) :]]
    assert await everything(third, "0.0") == kept


async def test_a_long_line_is_followed(make, monkeypatch):
    """A line longer than what is read at once is read nevertheless."""
    monkeypatch.setattr(file_feed, "CHUNK", 64)
    storage = make()
    for scope in SCOPES:
        await put(storage, scope, owner="o" * 300)
    assert [item.scope for item in await everything(storage)] == SCOPES


@pytest.mark.parametrize("cursor", ["x", "1", "1.x", "-1.0", ""])
async def test_no_cursor_of_ours(make, cursor):
    """Something that is no cursor is refused."""
    with pytest.raises(StorageError, match="no cursor"):
        await make().feed(0, after=cursor)


async def test_a_fragment_of_a_killed_writer(make, tmp_path):
    """What a killed process left of a line hides neither the next line nor anything else."""
    storage = make()
    await put(storage, SCOPES[0])
    path = tmp_path / "feed.jsonl"
    line = path.read_bytes().splitlines()[-1]
    for end in (1, 8, 40, len(line) - 1, len(line)):
        with path.open("ab") as file:
            file.write(line[:end])
        stamp = (await put(storage, SCOPES[1])).stamp
        assert (await listed(make()))[SCOPES[1]] == stamp
        assert (await everything(make()))[-1].stamp == stamp
    assert not list((tmp_path / "quarantine").iterdir())


@pytest.mark.parametrize("how", ["flip", "cut", "garbage", "missing", "header", "empty"])
@pytest.mark.parametrize("running", [True, False])
async def test_a_damaged_feed_is_rebuilt(make, tmp_path, how, running):
    """A feed that was damaged or removed is rebuilt from the scopes, and a copy of it kept."""
    storage = make()
    for scope in SCOPES:
        await put(storage, scope)
    await storage.drop(SCOPES[9])
    before = await listed(storage)
    path = tmp_path / "feed.jsonl"
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        header = data.index(b"\n") + 1
        spoiled = {
            "flip": data[: header + 40] + bytes([data[header + 40] ^ 1]) + data[header + 41 :],
            "cut": data[: header + 40] + data[header + 90 :],
            "garbage": data + b"\xff\n",
            "header": b"x" + data[1:],
            "empty": b"",
        }[how]
        path.write_bytes(spoiled)
    # A running process has read the spoiled lines already and needn't notice.
    if not running or how in ("flip", "cut"):
        storage = make()
    assert await listed(storage) == before
    assert await listed(make()) == before
    stamp = (await put(storage, SCOPES[2])).stamp
    assert (await listed(make()))[SCOPES[2]] == stamp
    assert (await everything(make()))[-1].stamp == stamp
    if how in ("flip", "cut", "garbage", "header"):
        (copy,) = (tmp_path / "quarantine").iterdir()
        assert (copy / "feed.jsonl").read_bytes() == spoiled


async def test_cursors_from_before_a_rebuild(make, tmp_path):
    """Who follows with a cursor from before the feed was rebuilt sees all commits from then on."""
    storage = make()
    for scope in SCOPES:
        await put(storage, scope)
    cursor = (await everything(storage))[-1].cursor
    (tmp_path / "feed.jsonl").unlink()
    await listed(storage)
    stamp = (await put(storage, SCOPES[0])).stamp
    assert [item.stamp for item in await everything(storage, cursor)][-1] == stamp


async def test_after_a_loss_of_power(make, tmp_path, monkeypatch):
    """A feed that lost its last lines with the power is completed at the next opening, and only then."""
    storage = make()
    for scope in SCOPES[:5]:
        await put(storage, scope)
    data = (tmp_path / "feed.jsonl").read_bytes()
    for scope in SCOPES[3:8]:
        await put(storage, scope, b"2")
    await storage.drop(SCOPES[0])
    before = await listed(storage)
    await storage.close()
    (tmp_path / "feed.jsonl").write_bytes(data + b"\0" * 100)
    monkeypatch.setattr("agentstate.storage.file.root._boot_id", lambda: "another boot")
    calls = []
    original = file_sweep.reconcile
    monkeypatch.setattr("agentstate.storage.file.storage.reconcile", lambda root: (calls.append(1), original(root)))
    again = make()
    assert await listed(again) == before
    told = [(item.scope, item.stamp and item.stamp.version) for item in await everything(again)]
    assert sorted(told[5:]) == sorted(
        [(SCOPES[0], None), *((scope, 2) for scope in SCOPES[3:5]), *((scope, 1) for scope in SCOPES[5:8])]
    )
    await listed(make())
    assert calls == [1]


async def test_scopes_lost_with_the_power(make, tmp_path, monkeypatch):
    """A directory that didn't survive the loss of power is no longer listed."""
    storage = make()
    for scope in SCOPES[:3]:
        await put(storage, scope)
    await storage.close()
    name = name_of(SCOPES[1])
    shutil.rmtree(tmp_path / "scopes" / name[0] / name[1] / name)
    monkeypatch.setattr("agentstate.storage.file.root._boot_id", lambda: "another boot")
    assert set(await listed(make())) == {SCOPES[0], SCOPES[2]}


# -- sweeping --------------------------------------------------------------------------------


async def test_sweeping_goes_by_the_queue_of_expiries(make, clock, monkeypatch, tmp_path):
    """A sweep touches what has expired and nothing else, a bounded number at a time."""
    storage = make()
    for number, scope in enumerate(SCOPES):
        await put(storage, scope, ttl=10.0 + number if number < 6 else None)
    clock.advance(13.5)
    touched = []
    original = file_sweep._sweep_scope
    monkeypatch.setattr(
        file_sweep, "_sweep_scope", lambda root, scope, limit: (touched.append(scope), original(root, scope, limit))[1]
    )
    swept = await storage.sweep(3)
    assert (set(swept.scopes), swept.done) == (set(SCOPES[:3]), False)
    swept = await storage.sweep(3)
    assert (swept.scopes, swept.done) == ((SCOPES[3],), True)
    assert touched == SCOPES[:4]
    assert (await storage.sweep(3)).scopes == ()
    assert len(touched) == 4


async def test_a_sliding_expiry_is_swept_once(make, clock):
    """A state whose expiry was pushed on is swept when that comes, not before."""
    storage = make()
    for _ in range(5):
        await put(storage, SCOPES[0], ttl=10.0)
        clock.advance(6)
    assert (await storage.sweep()).scopes == ()
    clock.advance(6)
    assert (await make().sweep()).scopes == (SCOPES[0],)


async def test_entries_and_items_are_swept(make, clock):
    """Entries and items with lifetimes of their own are swept when they are over, by any process."""
    one, two = make(), make()
    part = Part(
        scope=SCOPES[0],
        puts=[Put("variables", "short", b"1", 5.0), Put("variables", "long", b"1", 50.0)],
        appends=[Append("history", "m", b"1", 7.0), Append("history", "n", b"2")],
    )
    await one.commit([part], commit_id=next(_ids))
    clock.advance(6)
    assert (await two.sweep())[1:] == (1, 0, True)
    clock.advance(6)
    assert (await one.sweep())[1:] == (0, 1, True)
    clock.advance(60)
    assert (await two.sweep())[1:] == (1, 0, True)
    (info,) = (await one.scopes(ScopeQuery())).items
    assert (info.entry_bytes, info.log_lengths) == (0, {"history": 1})
    assert info.stamp.version == 1


async def test_tombstones_are_removed(make, clock, tmp_path):
    """What is left of a dropped state goes when no lease can know it any more; until then its version is kept."""
    storage = make()
    first = await put(storage, SCOPES[0])
    await storage.drop(SCOPES[0])
    (home,) = tmp_path.glob("scopes/*/*/*")
    assert sorted(path.name for path in home.iterdir()) == ["log.jsonl", "state.json"]
    assert b"variables" not in b"".join(path.read_bytes() for path in home.iterdir())
    assert (await put(storage, SCOPES[0])).stamp.version == first.stamp.version + 1
    await storage.drop(SCOPES[0])
    clock.advance(TOMBSTONE_SECONDS - 1)
    await storage.sweep()
    assert home.exists()
    clock.advance(2)
    assert (await make().sweep()).scopes == ()
    assert not home.exists()
    assert not list((tmp_path / "trash").iterdir())
    assert (await storage.read(SCOPES[0], Wants())).stamp is None
    assert (await put(storage, SCOPES[0])).stamp.version == 1
    assert set(await listed(make())) == {SCOPES[0]}


async def test_failures_of_a_state_that_never_was(make, clock, tmp_path):
    """Failed turns of a state that doesn't exist are kept for their time, and then leave no files."""
    storage = make()
    await storage.leave(SCOPES[0], 1, failure=b"failed")
    assert await make().failures(SCOPES[0]) == (b"failed",)
    assert await listed(storage) == {}
    assert await everything(storage) == []
    clock.advance(FAILURE_SECONDS + 1)
    assert await storage.failures(SCOPES[0]) == ()
    await storage.sweep()
    assert not list(tmp_path.glob("scopes/*/*/*"))


async def test_a_damaged_state_does_not_stop_the_sweep(make, clock, tmp_path):
    """A damaged state is left alone, and all others are swept and listed."""
    storage = make()
    for scope in SCOPES[:3]:
        await put(storage, scope, ttl=5.0)
    name = name_of(SCOPES[1])
    path = tmp_path / "scopes" / name[0] / name[1] / name / "log.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:60] + b"!" + data[61:])
    clock.advance(10)
    again = make()
    assert set((await again.sweep()).scopes) == {SCOPES[0], SCOPES[2]}
    assert path.read_bytes() == data[:60] + b"!" + data[61:]
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


# -- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store.json", "feed.jsonl"])
async def test_a_newer_store(make, tmp_path, name):
    """A store or feed of a later format is refused at opening, and nothing is changed."""
    await put(make(), SCOPES[0])
    (tmp_path / name).write_bytes(seal(b'{"format":2,"base":0,"index":0,"size":0}')[0])
    with pytest.raises(NewerFormatError, match="format 2"):
        await make().open()


async def test_a_store_that_does_not_say_what_it_is(make, tmp_path):
    """A damaged store file is refused at opening, with a remedy."""
    await put(make(), SCOPES[0])
    (tmp_path / "store.json").write_bytes(b"{}")
    with pytest.raises(StorageError) as caught:
        await make().open()
    assert caught.value.remedy
    assert (tmp_path / "store.json").read_bytes() == b"{}"
