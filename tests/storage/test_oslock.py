import asyncio
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from agentstate.errors import StorageAccessError, StorageClosedError, StorageUnavailableError
from agentstate.storage import lockfiles
from agentstate.storage.mounts import check_local, file_system
from agentstate.storage.oslock import MachineLocks

HEAD = """
import asyncio, os, sys, time
from agentstate.storage.oslock import MachineLocks
locks = MachineLocks(sys.argv[1])
def say(text):
    print(text, flush=True)
"""


@pytest.fixture
def locks(tmp_path):
    found = MachineLocks(tmp_path / "locks")
    yield found
    found.close()


class Other:
    """Another process that runs a script over the same directory."""

    def __init__(self, locks, script):
        code = HEAD + textwrap.dedent(script)
        argv = [sys.executable, "-c", code, str(locks.directory)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.communicate()


def test_a_turn_is_taken_held_and_given_back(locks):
    """One nonce at a time holds a turn, and asking again is no second taking."""
    assert locks.try_take("a", 1, "one")
    assert locks.try_take("a", 1, "one")
    assert locks.holds("a", 1)
    assert not locks.try_take("a", 2, "two")
    assert not locks.holds("a", 2)
    assert locks.try_take("b", 2, "two")
    locks.leave("a", 1)
    assert locks.try_take("a", 2, "two")
    assert not locks.holds("a", 1)


def test_leaving_what_one_has_not_is_no_error(locks):
    """A nonce without a turn or place leaves nothing behind."""
    locks.leave("a", 1)
    locks.try_take("a", 1, "one")
    locks.leave("a", 2)
    assert locks.holds("a", 1)


def test_two_objects_of_one_directory_exclude_each_other(locks):
    """A descriptor never excludes itself, so the process keeps one table for a directory, by any name."""
    (locks.directory.parent / "other-name").symlink_to(locks.directory)
    second = MachineLocks(locks.directory.parent / "other-name")
    assert locks.try_take("a", 1, "one")
    assert not second.try_take("a", 2, "two")
    locks.leave("a", 1)
    assert second.try_take("a", 2, "two")
    second.close()
    assert locks.try_take("a", 1, "one")


def test_the_line_is_first_come_first_served(locks):
    """Within a process nobody overtakes, and who asked last waits for who asked before."""
    locks.try_take("a", 1, "one")
    assert not locks.try_take("a", 2, "two")
    assert not locks.try_take("a", 3, "three")
    locks.leave("a", 1)
    assert not locks.try_take("a", 3, "three")
    assert locks.try_take("a", 2, "two")
    locks.leave("a", 2)
    assert locks.try_take("a", 3, "three")


def test_who_neither_waits_nor_asks_is_skipped(locks, monkeypatch):
    """A waiter that went away without a word holds up its own process for a second only."""
    locks.try_take("a", 1, "one")
    locks.try_take("a", 2, "gone")
    monkeypatch.setattr(lockfiles, "GONE_SECONDS", -1.0)
    locks.leave("a", 1)
    assert locks.try_take("a", 3, "three")


async def test_wait_is_woken_by_leave(locks):
    """A local hand-over doesn't wait for the next poll."""
    locks.try_take("a", 1, "one")
    locks.try_take("a", 2, "two")
    waiting = asyncio.create_task(locks.wait("a", 2, 30))
    await asyncio.sleep(0)
    locks.leave("a", 1)
    assert await asyncio.wait_for(waiting, 5)
    assert locks.holds("a", 2)


async def test_wait_gives_up_in_time(locks):
    """After its seconds a waiter is told that it has nothing."""
    locks.try_take("a", 1, "one")
    assert not await locks.wait("a", 2, 0.01)
    assert locks.holds("a", 1)


async def test_who_never_asked_is_told_and_gets_nothing(locks):
    """Waiting without having asked takes no turn and leaves no place behind."""
    assert not await locks.wait("a", 1, 30)
    assert locks.try_take("a", 2, "two")
    assert not await locks.wait("a", 1, 0.01)
    locks.leave("a", 2)
    assert locks.try_take("a", 3, "three")


async def test_a_cancelled_waiter_has_left_the_line(locks):
    """Cancelling a wait frees its place, 'next' included, for everybody else."""
    locks.try_take("a", 1, "one")
    locks.try_take("a", 2, "two")
    waiting = asyncio.create_task(locks.wait("a", 2, 30))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    locks.leave("a", 1)
    with Other(locks, "say(locks.try_take('a', 3, 'three'))") as other:
        assert other.line() == "True"


async def test_a_waiter_whose_loop_died_has_left_the_line(locks):
    """A waiting coroutine that nobody runs any more gives its place back."""
    locks.try_take("a", 1, "one")
    locks.try_take("a", 2, "two")
    waiting = locks.wait("a", 2, 30)
    waiting.send(None)
    del waiting
    locks.leave("a", 1)
    assert locks.try_take("a", 3, "three")


def test_threads_and_loops_exclude_each_other(locks):
    """Four loops in four threads never hold one turn at once, and all get through."""
    inside, most, done = [0], [0], []

    async def work(first):
        for nonce in range(first, first + 25):
            if not locks.try_take("a", nonce, "w"):
                assert await locks.wait("a", nonce, 30)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            await asyncio.sleep(0)
            inside[0] -= 1
            locks.leave("a", nonce)
        done.append(first)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n * 100 + 1))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [1, 101, 201, 301]
    assert most[0] == 1


def test_another_process_is_excluded_and_named(locks):
    """Whoever is refused learns who holds the turn, and since when."""
    script = """
    say(locks.try_take('a', 1, 'worker é'))
    sys.stdin.readline()
    locks.leave('a', 1)
    say('left')
    sys.stdin.readline()
    """
    before = time.time()
    with Other(locks, script) as other:
        assert other.line() == "True"
        assert not locks.try_take("a", 2, "two")
        holder = locks.holder("a")
        assert holder is not None
        assert holder.holder == "worker é"
        assert before <= holder.since <= time.time()
        other.go()
        assert other.line() == "left"
        assert locks.try_take("a", 2, "two")
        assert locks.holder("a").holder == "two"


def test_nobody_barges_in_past_the_next_in_line(locks):
    """Whoever waits across processes holds 'next', so the one who has just left can't take the turn again."""
    script = """
    say(locks.try_take('a', 2, 'second'))
    sys.stdin.readline()
    say(locks.try_take('a', 2, 'second'))
    """
    assert locks.try_take("a", 1, "first")
    with Other(locks, script) as other:
        assert other.line() == "False"
        locks.leave("a", 1)
        assert not locks.try_take("a", 3, "again")
        other.go()
        assert other.line() == "True"


def test_a_killed_holder_frees_its_turn(locks):
    """The kernel gives the turn back however the process dies."""
    with Other(locks, "say(locks.try_take('a', 1, 'x')); sys.stdin.readline()") as other:
        assert other.line() == "True"
        assert not locks.try_take("a", 2, "two")
        other.process.kill()
        other.process.wait()
        assert locks.try_take("a", 2, "two")


def test_a_forked_child_neither_keeps_nor_uses_the_turns(locks):
    """A child that outlives its killed parent doesn't keep the turn, and must open its own locks."""
    script = """
    locks.try_take('a', 1, 'parent')
    if os.fork() == 0:
        from agentstate.errors import StorageClosedError
        try:
            locks.try_take('a', 9, 'child')
        except StorageClosedError:
            say('closed')
        fresh = MachineLocks(sys.argv[1])
        say(fresh.try_take('b', 9, 'child'))
        sys.stdin.readline()
        os._exit(0)
    time.sleep(60)
    """
    with Other(locks, script) as other:
        assert [other.line(), other.line()] == ["closed", "True"]
        assert not locks.try_take("a", 2, "two")
        other.process.kill()
        other.process.wait()
        assert locks.try_take("a", 2, "two")
        other.go()


def test_a_fork_waits_for_the_table_to_be_whole(locks):
    """Forking while other threads take turns leaves a child that can open its own locks."""
    script = """
    import threading
    def churn():
        while True:
            locks.try_take('a', 1, 'w')
            locks.leave('a', 1)
    threading.Thread(target=churn, daemon=True).start()
    for n in range(20):
        child = os.fork()
        if child == 0:
            MachineLocks(sys.argv[1]).try_take(f'b{n}', 1, 'child')
            os._exit(7)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 7:
            say('failed')
    say('done')
    """
    with Other(locks, script) as other:
        assert other.line() == "done"


def test_close_gives_everything_back(locks):
    """After close others get the turns, files are shut, and using the object is an error."""
    second = MachineLocks(locks.directory)
    second.try_take("a", 1, "one")
    locks.try_take("b", 2, "two")
    second.try_take("b", 3, "three")
    second.close()
    second.close()
    assert locks.try_take("a", 4, "four")
    with pytest.raises(StorageClosedError):
        second.try_take("a", 1, "one")
    assert not second.holds("a", 1)
    table = locks._table
    locks.close()
    assert table.closed
    assert (table.identity in lockfiles._directories) is False


def test_exactly_one_byte_is_locked(locks):
    """The lock structure is laid out as the kernel reads it: this byte, no neighbour, whole offsets."""
    locks.try_take("a", 1, "one")
    turn = locks._table.find("a")
    second = os.open(f"/proc/self/fd/{turn.descriptor}", os.O_RDWR)

    def taken(byte):
        asked = lockfiles.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        return lockfiles.FLOCK.unpack(fcntl.fcntl(second, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK

    assert [taken(turn.byte + n) for n in (-1, 0, 1, 2)] == [False, False, True, False]
    locks.try_take("a", 2, "two")
    assert taken(turn.byte)
    os.close(second)


def test_lock_files_are_few_and_private(locks):
    """However many turns there are, there are at most 64 files, readable by their owner only."""
    for number in range(500):
        assert locks.try_take(f"scope-{number}", number + 1, "w")
    files = list(locks.directory.iterdir())
    assert len(files) == 64
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert locks.directory.stat().st_mode & 0o777 == 0o700


def test_idle_turns_leave_nothing_in_memory(locks):
    """Asking about a turn, or giving it back, forgets it."""
    for number in range(50):
        locks.try_take(f"s{number}", 1, "w")
        locks.leave(f"s{number}", 1)
        locks.holds(f"s{number}", 1)
        locks.holder(f"s{number}")
    assert locks._table.turns == {}


@pytest.mark.parametrize("address", ["conversation:../../etc/passwd", "a" * 2000, "user:🦊\n/{*}"])
def test_hostile_addresses_are_only_hashed(locks, address):
    """No address reaches a file name."""
    assert locks.try_take(address, 1, "🦊" * 200)
    assert locks.holder(address).holder.startswith("🦊")
    assert all(file.name.endswith(".lock") for file in locks.directory.iterdir())


def test_a_torn_note_names_nobody(locks):
    """A side record that doesn't match its check sum is not shown."""
    locks.try_take("a", 1, "one")
    turn = locks._table.find("a")
    os.pwrite(turn.descriptor, b"XX", turn._note_at() + 20)
    locks.leave("a", 1)
    assert locks.holder("a") is None


def test_exclusive_queues_between_threads_and_ends_in_time(locks):
    """The blocking lock excludes, and says so when it can't be had."""
    with locks.exclusive("writer", 5):
        failed = []

        def second():
            try:
                with locks.exclusive("writer", 0.02):
                    pass
            except StorageUnavailableError as error:
                failed.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert "writer" in str(failed[0])
        with locks.exclusive("other", 0.1):
            pass
    with locks.exclusive("writer", 0.1):
        pass


def test_exclusive_is_fair_between_processes(locks):
    """Of three processes that write without a pause, none gets less than half of its share."""
    script = """
    say('ready')
    sys.stdin.readline()
    until, n = time.monotonic() + 0.6, 0
    while time.monotonic() < until:
        with locks.exclusive('writer', 5):
            time.sleep(0.0003)
            n += 1
    say(n)
    """
    others = [Other(locks, script) for _ in range(3)]
    assert [other.line() for other in others] == ["ready"] * 3
    for other in others:
        other.go()
    counts = [int(other.line()) for other in others]
    for other in others:
        other.__exit__()
    assert min(counts) * 6 >= sum(counts), counts


def test_an_unusable_directory_is_a_typed_error(tmp_path):
    """A directory that can't be made says where and how to mend it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageAccessError, match="file"):
        MachineLocks(tmp_path / "file" / "locks")
    with pytest.raises(StorageAccessError, match="/proc"):
        MachineLocks("/proc/agentstate-locks")


@pytest.mark.parametrize(
    ("mount", "refused"),
    [
        ("ext4 /dev/vda", False),
        ("tmpfs tmpfs", False),
        ("nfs4 host:/export", True),
        ("virtiofs share", True),
        ("9p share", True),
        ("cifs //host/share", True),
        ("fuse.sshfs host:", True),
        ("fuseblk /dev/sdb1", False),
    ],
)
def test_network_file_systems_are_refused(tmp_path, mount, refused):
    """The innermost mount of a directory decides, spaces in its name included."""
    directory = tmp_path / "my state"
    directory.mkdir()
    table = tmp_path / "mountinfo"
    point = str(directory).replace(" ", "\\040")
    table.write_text(f"21 1 8:1 / / rw - ext4 /dev/root rw\n22 21 0:1 / {point} rw shared:1 - {mount} rw\n")
    assert file_system(directory, mount_table=table) == mount.split()[0]
    if refused:
        with pytest.raises(StorageAccessError, match="allow_network_fs"):
            check_local(directory, mount_table=table)
    else:
        check_local(directory, mount_table=table)
    assert file_system(tmp_path, mount_table=table) == "ext4"


def test_the_override_allows_a_network_file_system(tmp_path, monkeypatch):
    """Whoever knows that only one process uses it may put it on a network."""
    monkeypatch.setattr("agentstate.storage.lockfiles.check_local", lambda path: pytest.fail(f"asked for {path}"))
    MachineLocks(Path(tmp_path) / "locks", allow_network_fs=True).close()
