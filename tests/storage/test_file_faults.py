"""A disk that fails, is full, or isn't what it should be: a typed error, and the state as before or after."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentstate.errors import (
    CommitUnknownError,
    StateError,
    StorageAccessError,
    StorageFullError,
    StorageUnavailableError,
)
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file import feed as file_feed
from agentstate.storage.file import scope as file_scope
from agentstate.storage.file import snapshot as file_snapshot
from agentstate.storage.file import write as file_write
from agentstate.storage.protocol import Append, Part, Put, ScopeQuery, Wants
from agentstate.testing.clock import FakeClock
from tests.storage.filedisks import FailingDisk

ROOT = Path(__file__).resolve().parents[2]
SCOPE = StateScope.conversation("one")
OTHER = StateScope.conversation("other")


@pytest.fixture
def small(monkeypatch):
    """Let a little work rotate logs and compact the feed."""
    monkeypatch.setattr(file_scope, "ROTATE_BYTES", 600)
    monkeypatch.setattr(file_write, "ROTATE_BYTES", 600)
    monkeypatch.setattr(file_snapshot, "SLACK", 100)
    monkeypatch.setattr(file_feed, "KEPT_BYTES", 400)


@pytest.fixture
async def failing(tmp_path, monkeypatch):
    """Return a maker of open storages whose disk fails at the n-th change from now on."""
    made = []

    async def make(name, n, code=errno.EIO, only=()):
        disk = FailingDisk(n, code, only)
        monkeypatch.setattr("agentstate.storage.file.storage.Disk", lambda: disk)
        storage = FileStorage(tmp_path / name, clock=FakeClock(1000.0))
        made.append(storage)
        await storage.open()
        disk.armed = True
        return storage, disk

    yield make
    for storage in made:
        await storage.close()


async def commit(storage, number, scope=SCOPE):
    """Commit one number as a variable and an item."""
    part = Part(
        scope=scope,
        puts=[Put("variables", "n", b"%d" % number)],
        appends=[Append("history", f"m{number}", b'"' + b"word " * 20 + b'"')],
        record=b"{}",
    )
    return await storage.commit([part], commit_id=number)


async def seen(storage, scope=SCOPE):
    """Return the number that is stored, after checking that all parts agree on it."""
    found = await storage.read(scope, Wants())
    if found.stamp is None:
        return 0
    number = int(found.entries["variables", "n"].value)
    assert found.stamp.version == found.logs["history"].head
    assert len((await storage.read_log(scope, "history")).items) == found.stamp.version
    assert len(await storage.journal(scope)) == found.stamp.version
    return number


def log_files(storage):
    """Return the logs of a store."""
    return list(Path(storage.location).glob("scopes/*/*/*/log.jsonl"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_every_call_fails_once(failing, small, code):
    """Whichever change of a file fails: a commit is refused with its error or done, and the next one works."""
    n, failed = 0, "begin"
    while failed:
        n += 1
        storage, disk = await failing(str(n), n, code)
        last, doubtful = 0, set()
        for number in range(1, 8):
            try:
                await commit(storage, number)
                last = number
            except CommitUnknownError:
                doubtful.add(number)
            except StorageFullError:
                assert code == errno.ENOSPC
            except StorageUnavailableError:
                assert code == errno.EIO
            found = await seen(storage)
            assert found == last or found in doubtful, (n, disk.failed)
            last = found
        disk.armed = False
        await commit(storage, 8)
        (info,) = (await storage.scopes(ScopeQuery())).items
        assert info.stamp == (await storage.read(SCOPE, Wants())).stamp
        versions = [item.stamp.version for item in await storage.feed(0)]
        assert versions == list(range(versions[0], info.stamp.version + 1)), (n, disk.failed)
        again = FileStorage(storage.location)
        assert await seen(again) == 8
        assert await again.drop(SCOPE)
        await again.close()
        failed = disk.failed
    assert n > 40


async def test_a_sync_that_fails(failing):
    """After a failed sync the line is taken back: the commit didn't happen, here or for others."""
    storage, disk = await failing("store", 2, only=("sync",))
    await commit(storage, 1)
    with pytest.raises(StorageUnavailableError):
        await commit(storage, 2)
    assert disk.failed == "sync"
    other = FileStorage(storage.location)
    assert await seen(storage) == await seen(other) == 1
    await commit(other, 3)
    assert await seen(storage) == 3
    await other.close()


async def test_a_sync_that_fails_and_a_line_that_stays(failing):
    """A line that was neither synced nor taken back is of unknown outcome, and can be asked for."""
    storage, disk = await failing("store", 2, only=("sync",))
    await commit(storage, 1)
    truncate = disk.truncate

    def fail(*_):
        raise OSError(errno.EIO, "no")

    disk.truncate = fail
    with pytest.raises(CommitUnknownError) as caught:
        await commit(storage, 2)
    disk.truncate = truncate
    assert caught.value.commit_id == 2
    assert await storage.outcome(SCOPE, 2) is not None
    assert await seen(storage) == 2
    (info,) = (await storage.scopes(ScopeQuery())).items
    assert info.stamp.version == 2


async def test_a_reader_that_saw_a_line_taken_back(failing):
    """A process that has read a line which was then taken back, and replaced by one of equal length, reads anew."""
    storage, disk = await failing("store", 2, only=("sync",))
    await commit(storage, 1)
    other = FileStorage(storage.location)
    await seen(other)
    step = disk.step
    (path,) = log_files(storage)
    written = []

    def look(name, *arguments):
        if name == "truncate":
            written.append(path.read_bytes())
        step(name, *arguments)

    disk.step = look
    with pytest.raises(StorageUnavailableError):
        await commit(storage, 2)
    whole = path.read_bytes()
    path.write_bytes(written[0])
    assert await seen(other) == 2
    path.write_bytes(whole)
    await commit(storage, 3)
    assert len(path.read_bytes()) == len(written[0])
    await commit(storage, 4)
    assert await seen(other) == 4
    assert [item.id for item in (await other.read_log(SCOPE, "history")).items] == ["m1", "m3", "m4"]
    await other.close()


# -- full ------------------------------------------------------------------------------------

FILL = """
import asyncio, resource, sys
from agentstate.errors import StorageFullError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.protocol import Append, Part, Put, ScopeQuery, Wants
A, B = StateScope.conversation("a"), StateScope.conversation("b")

async def main():
    storage = FileStorage(sys.argv[1])
    await storage.commit([Part(scope=B, puts=[Put("variables", "k", b"1")])], commit_id=1)
    number = 0
    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        while True:
            value = b'"' + b"x" * 20_000 + b'"'
            await storage.commit([Part(scope=A, appends=[Append("history", "m", value)])], commit_id=number + 2)
            number += 1
    except StorageFullError as error:
        assert "Free some space" in error.remedy, error
    found = await storage.read(A, Wants())
    assert found.logs["history"].head == number > 0
    assert len((await storage.read_log(A, "history")).items) == number
    assert len((await storage.scopes(ScopeQuery())).items) == 2
    assert await storage.drop(A)
    assert (await storage.read(A, Wants())).stamp is None
    await storage.commit([Part(scope=B, deletes=[("variables", "k")])], commit_id=5)
    await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"2")])], commit_id=6)
    assert {info.scope for info in (await storage.scopes(ScopeQuery())).items} == {A, B}
    await storage.close()
    again = FileStorage(sys.argv[1])
    assert (await again.read(A, Wants())).entries["variables", "k"].value == b"2"
    await again.close()
    print("fine after", number)

asyncio.run(main())
"""


def fill(directory, limit):
    """Fill a directory until it is full, delete, and go on; return what the process says."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(directory), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def test_files_that_may_not_grow(tmp_path):
    """At a limit of file sizes commits are refused, reading and deleting work, and it goes on without a restart."""
    limit = 600_000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] in (resource.RLIM_INFINITY, limit)
    assert "fine after" in fill(tmp_path, limit)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk(tmp_path):
    """On a full disk commits are refused, reading and deleting work, and it goes on without a restart."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("mounting isn't allowed here")
    try:
        assert "fine after" in fill(tmp_path / "states", 0)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# -- not what it should be -------------------------------------------------------------------


async def test_a_file_in_place_of_the_directory(tmp_path):
    """A path that is a file is an access error that names it."""
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StorageAccessError, match=str(path)) as caught:
        await FileStorage(path).open()
    assert caught.value.remedy
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["log.jsonl", "state.json", ".", "..", "inflight"])
async def test_a_planted_link(tmp_path, name, small):
    """A link in place of a file or directory is refused, and what it points at isn't touched."""
    storage = FileStorage(tmp_path / "states")
    for number in range(1, 9):
        await commit(storage, number)
    await storage.close()
    (home,) = (tmp_path / "states").glob("scopes/*/*/*")
    target = {".": home, "..": home.parent}.get(name, home / name)
    if name == "inflight":
        target = tmp_path / "states" / "feed.jsonl"
    moved = tmp_path / "elsewhere"
    target.rename(moved)
    target.symlink_to(moved)
    before = moved.read_bytes() if moved.is_file() else sorted(moved.iterdir())
    again = FileStorage(tmp_path / "states")
    if name == "inflight":
        with pytest.raises(StateError):
            await again.scopes(ScopeQuery())
    else:
        with pytest.raises(StorageAccessError, match="symbolic link"):
            await again.read(SCOPE, Wants())
        with pytest.raises(StorageAccessError, match="symbolic link"):
            await commit(again, 9)
        await commit(again, 1, OTHER)
    assert before == (moved.read_bytes() if moved.is_file() else sorted(moved.iterdir()))
    await again.close()


async def test_a_pipe_in_place_of_a_file(tmp_path):
    """A pipe in place of a log is refused at once, not waited for."""
    storage = FileStorage(tmp_path)
    await commit(storage, 1)
    await storage.close()
    (path,) = tmp_path.glob("scopes/*/*/*/log.jsonl")
    path.unlink()
    os.mkfifo(path)
    again = FileStorage(tmp_path)
    with pytest.raises(StateError):
        await again.read(SCOPE, Wants())
    await again.close()


async def test_private_to_its_owner(tmp_path, small):
    """Directories are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        storage = FileStorage(tmp_path / "states")
        for number in range(1, 9):
            await commit(storage, number)
        await storage.close()
    finally:
        os.umask(before)
    for path in (tmp_path / "states", *(tmp_path / "states").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
