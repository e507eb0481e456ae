"""A SQLite state file beside other programs, other processes and faults of the machine."""

import os

import pytest

from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    MissingDependencyError,
    NewerFormatError,
    StorageAccessError,
    StorageUnavailableError,
)
from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    LeaseRequest,
    Wants,
)
from agentstate.storage.sqlite import SqliteOptions, SqliteStorage
from agentstate.storage.sqlite import schema as sqlite_schema
from agentstate.storage.sqlite import worker as sqlite_worker
from tests.storage.sqlitecase import TURN, A, put, rows, run, spoil, start, value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
async def storage(path):
    made = SqliteStorage(path)
    yield made
    await made.close()


class TestFile:
    """The file: whose it is, who may read it, what it says about itself."""

    async def test_private_and_whole_after_close(self, storage, path):
        """The file and its companions are the owner's only, and after close the file holds everything."""
        await put(storage)
        assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.iterdir())
        await storage.close()
        wal = path.with_name("state.db-wal")
        assert not wal.exists() or wal.stat().st_size == 0
        assert rows(path, "SELECT value FROM entries") == [(b"1",)]
        assert rows(path, "PRAGMA application_id") == [(sqlite_schema.APPLICATION_ID,)]

    async def test_a_missing_directory_is_made(self, tmp_path):
        """Naming a file in a directory that doesn't exist yet is enough."""
        storage = SqliteStorage(tmp_path / "new" / "dir" / "state.db")
        await put(storage)
        assert await value(storage) == b"1"
        await storage.close()

    async def test_newer_is_refused_and_left(self, storage, path):
        """A file of a newer release is neither read nor changed."""
        await put(storage)
        await storage.close()
        spoil(path, "PRAGMA user_version = 2")
        before = path.read_bytes()
        newer = SqliteStorage(path)
        for _ in range(2):
            with pytest.raises(NewerFormatError, match="format 2"):
                await newer.open()
        await newer.close()
        assert path.read_bytes() == before

    async def test_another_applications_file_is_refused_and_left(self, path):
        """A database that isn't ours stays as it is."""
        spoil(path, "CREATE TABLE users(name)")
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another application"):
            await SqliteStorage(path).open()
        assert path.read_bytes() == before

    async def test_no_database_is_refused_and_left(self, path):
        """A file that is no database stays as it is."""
        path.write_bytes(b"no database at all " * 300)
        with pytest.raises(DamagedStateError, match=r"state\.db"):
            await SqliteStorage(path).open()
        assert path.read_bytes() == b"no database at all " * 300

    async def test_missing_tables_are_damage(self, storage, path):
        """A file with our mark but without our tables is damaged, not empty."""
        await put(storage)
        await storage.close()
        spoil(path, "DROP TABLE items")
        with pytest.raises(DamagedStateError, match="lacks"):
            await SqliteStorage(path).open()

    async def test_torn_pages_are_damage(self, storage, path):
        """Pages full of nonsense raise, and nobody writes over them."""
        for number in range(40):
            await put(storage, StateScope.user(f"u{number}"), value=os.urandom(2000), commit_id=number + 1)
        await storage.close()
        spoiled = bytearray(path.read_bytes())
        spoiled[4096 * 3 :] = b"\xa5" * (len(spoiled) - 4096 * 3)
        path.write_bytes(spoiled)
        damaged = SqliteStorage(path)
        with pytest.raises(DamagedStateError):
            await damaged.read(StateScope.user("u3"), Wants())
        with pytest.raises(DamagedStateError):
            await put(damaged, StateScope.user("u3"))
        await damaged.close()

    @pytest.mark.parametrize("place", ["directory", "file/state.db", "/proc/state.db"])
    async def test_an_unusable_place_is_a_typed_error(self, tmp_path, place):
        """A path that can't be a state file says so, and goes on saying so."""
        (tmp_path / "directory").mkdir()
        (tmp_path / "file").write_text("")
        storage = SqliteStorage(tmp_path / place)
        for _ in range(2):
            with pytest.raises(StorageAccessError) as caught:
                await put(storage)
            assert caught.value.remedy
        await storage.close()

    async def test_opened_when_the_obstacle_is_gone(self, tmp_path):
        """A storage that couldn't open tries anew at the next call."""
        (tmp_path / "place").write_text("")
        storage = SqliteStorage(tmp_path / "place" / "state.db")
        with pytest.raises(StorageAccessError):
            await storage.open()
        (tmp_path / "place").unlink()
        await put(storage)
        assert await value(storage) == b"1"
        await storage.close()

    async def test_two_names_of_one_file_share_their_turns(self, storage, path, tmp_path):
        """A symbolic link to the file is the same storage: turns exclude each other."""
        await put(storage)
        (tmp_path / "link.db").symlink_to(path)
        other = SqliteStorage(tmp_path / "link.db")
        await storage.read(A, TURN, lease=LeaseRequest(5, 30.0, "first"))
        refused = await other.read(A, TURN, lease=LeaseRequest(6, 30.0, "second"))
        assert refused.holder is not None
        assert refused.holder.holder == "first"
        await other.close()

    async def test_a_relative_path_counts_from_where_it_was_made(self, tmp_path, monkeypatch):
        """Changing the working directory afterwards doesn't move the state."""
        monkeypatch.chdir(tmp_path)
        storage = SqliteStorage.from_options(SqliteOptions(url="sqlite:///here.db"))
        monkeypatch.chdir("/")
        await put(storage)
        await storage.close()
        assert (tmp_path / "here.db").exists()
        assert storage.location == str(tmp_path / "here.db")


class TestOutsiders:
    """Other programs that hold the file, and faults of the machine."""

    async def test_a_foreign_lock_ends_in_a_typed_error(self, path, monkeypatch):
        """A program that keeps the file locked makes commits fail in time, and nothing is stored."""
        monkeypatch.setattr(sqlite_schema, "BUSY_MS", 50)
        storage = SqliteStorage(path)
        await put(storage)
        script = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1])
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.readline()
        """
        with start(script, path) as other:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(StorageUnavailableError, match="locked"):
                await put(storage, value=b"2")
            assert await value(storage) == b"1"
            other.communicate("\n")
        await put(storage, value=b"3")
        assert await value(storage) == b"3"
        await storage.close()

    async def test_a_writer_that_never_ends_is_named(self, storage, monkeypatch):
        """A process that keeps the writers' lock makes commits fail in time, reads go on."""
        await put(storage)
        monkeypatch.setattr(sqlite_worker, "BACKSTOP_SECONDS", 0.05)
        with storage._engine.locks.exclusive("writer", 1.0):
            with pytest.raises(StorageUnavailableError, match="writer"):
                await put(storage, value=b"2")
            assert await value(storage) == b"1"
        await put(storage, value=b"3")

    def test_a_full_disk(self, path):
        """A commit that no longer fits raises, stores nothing, and the next one works when there is room."""
        script = """
        import asyncio, os, resource, signal, sys
        from agentstate.errors import StorageFullError
        from agentstate.scope import StateScope
        from agentstate.storage.protocol import Append, Part, Put, Wants
        from agentstate.storage.sqlite import SqliteStorage
        A = StateScope.user("a")

        async def main():
            storage = SqliteStorage(sys.argv[1])
            await storage.open()
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            stored = 0
            try:
                while stored < 1000:
                    part = Part(scope=A, appends=[Append("history", "m", os.urandom(5000))])
                    await storage.commit([part], commit_id=stored + 1)
                    stored += 1
            except StorageFullError as error:
                assert "state.db" in str(error) and error.remedy
            else:
                sys.exit("the disk was never full")
            found = await storage.read(A, Wants())
            assert found.stamp == (stored, stored), (found.stamp, stored)
            assert found.logs["history"].head == stored
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"1")])], commit_id=5000)
            await storage.close()
            again = SqliteStorage(sys.argv[1])
            assert (await again.read(A, Wants())).stamp == (stored + 1, 5000)
            assert len((await again.read_log(A, "history")).items) == stored
            await again.close()

        asyncio.run(main())
        """
        done = run(script, path)
        assert done.returncode == 0, done.stderr

    def test_the_driver_is_loaded_on_use(self, path):
        """Importing the backend and making a storage loads no driver; a missing one says what to install."""
        script = """
        import asyncio, sys
        from agentstate.errors import MissingDependencyError
        from agentstate.storage.sqlite import SqliteStorage
        storage = SqliteStorage(sys.argv[1])
        assert "apsw" not in sys.modules
        sys.modules["apsw"] = None
        try:
            asyncio.run(storage.open())
        except MissingDependencyError as error:
            assert "pip install" in str(error)
        else:
            sys.exit("no error")
        """
        done = run(script, path)
        assert done.returncode == 0, done.stderr
        assert issubclass(MissingDependencyError, ImportError)


class TestProcesses:
    """Forks, and processes that share the file."""

    def test_a_forked_child_makes_its_own(self, path):
        """A child can't use its parent's storage, opens its own beside it, and doesn't disturb the parent."""
        script = """
        import asyncio, os, sys
        from agentstate.errors import StorageClosedError
        from agentstate.scope import StateScope
        from agentstate.storage.protocol import LeaseRequest, Part, Put, Wants
        from agentstate.storage.sqlite import SqliteStorage
        A = StateScope.user("a")
        part = lambda key: Part(scope=A, puts=[Put("variables", key, b"1")])

        async def child(inherited):
            for call in (inherited.read(A, Wants()), inherited.commit([part("no")], commit_id=1), inherited.open()):
                try:
                    await call
                except StorageClosedError:
                    continue
                os._exit(3)
            await inherited.close()
            own = SqliteStorage(sys.argv[1])
            if (await own.read(A, Wants(), lease=LeaseRequest(9, 30.0, "child"))).holder.holder != "parent":
                os._exit(4)
            await own.commit([part("child")], commit_id=2)
            await own.close()
            os._exit(7)

        async def main():
            storage = SqliteStorage(sys.argv[1])
            await storage.read(A, Wants(), lease=LeaseRequest(5, 30.0, "parent"))
            return storage

        loop = asyncio.new_event_loop()
        storage = loop.run_until_complete(main())
        pid = os.fork()
        if pid == 0:
            asyncio.new_event_loop().run_until_complete(child(storage))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        loop.run_until_complete(storage.commit([part("parent")], commit_id=3))
        found = loop.run_until_complete(storage.read(A, Wants()))
        assert {key for _, key in found.entries} == {"child", "parent"}
        assert loop.run_until_complete(storage.read(A, Wants(), lease=LeaseRequest(5, 30.0, "parent"))).lease
        loop.run_until_complete(storage.close())
        """
        done = run(script, path)
        assert done.returncode == 0, done.stderr

    def test_writers_of_several_processes_are_fair(self, path):
        """Processes that write without a pause each get at least half of their share."""
        script = """
        import asyncio, sys, time
        from agentstate.scope import StateScope
        from agentstate.storage.protocol import Part, Put
        from agentstate.storage.sqlite import SqliteStorage

        async def main():
            storage = SqliteStorage(sys.argv[1])
            await storage.open()
            print("ready", flush=True)
            sys.stdin.readline()
            until, done, scope = time.monotonic() + 1.0, 0, StateScope.user(sys.argv[2])
            while time.monotonic() < until:
                part = Part(scope=scope, puts=[Put("variables", "n", b"%d" % done)])
                await storage.commit([part], commit_id=done + 1)
                done += 1
            print(done, flush=True)
            await storage.close()

        asyncio.run(main())
        """
        processes = [start(script, path, f"p{n}") for n in range(3)]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        counts = [int(process.communicate(timeout=60)[0]) for process in processes]
        assert min(counts) * 6 >= sum(counts), counts
