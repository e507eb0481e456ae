"""What a SQLite state file keeps, forgets, lists, and how it is named."""

import asyncio

import pytest
from pydantic import ValidationError

from agentstate.errors import (
    DamagedStateError,
    StorageError,
)
from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    JOURNAL_COUNT,
    ONCE_COUNT,
    Append,
    CutTail,
    OnceRecord,
    Part,
    Put,
    ScopeQuery,
    TrimHead,
    Wants,
)
from agentstate.storage.sqlite import SqliteOptions, SqliteStorage
from agentstate.testing import FakeClock
from tests.storage.sqlitecase import TURN, A, B, ask, put, rows, spoil


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
async def storage(path):
    made = SqliteStorage(path)
    yield made
    await made.close()


class TestRetention:
    """What is kept is bounded."""

    async def test_the_journal_is_trimmed(self, storage, path):
        """At most the last thousand records of a state are kept, with what they removed."""
        parts = [
            Part(
                scope=A,
                appends=[Append("history", f"m{n}", b"x")],
                trims=[TrimHead("history", n)],
                record=b"%d" % n,
            )
            for n in range(JOURNAL_COUNT + 100)
        ]
        await asyncio.gather(*(storage.commit([part], commit_id=n + 1) for n, part in enumerate(parts)))
        found = await storage.journal(A, limit=5000)
        assert len(found) == JOURNAL_COUNT
        assert found[-1].record == b"%d" % (JOURNAL_COUNT + 99)
        await storage.close()
        assert rows(path, "SELECT count(*) FROM journal")[0][0] < JOURNAL_COUNT + 40
        assert rows(path, "SELECT count(*) FROM removed")[0][0] < JOURNAL_COUNT + 40

    async def test_idempotency_keys_are_trimmed(self, storage, path):
        """At most a thousand keys a state are kept, the latest."""
        keys = [OnceRecord(f"key{number}", "f", number + 1, b"r") for number in range(ONCE_COUNT + 20)]
        await asyncio.gather(*(storage.commit([Part(scope=A)], commit_id=key.commit_id, once=key) for key in keys))
        assert (await storage.read(A, Wants(), once="key0")).once is None
        assert (await storage.read(A, Wants(), once=f"key{ONCE_COUNT + 19}")).once.result == b"r"
        await storage.close()
        assert rows(path, "SELECT count(*) FROM once") == [(ONCE_COUNT,)]

    async def test_tombstones_go_and_cursors_dont_come_back(self, path):
        """Tombstones are swept after their time; the feed's positions still never repeat."""
        clock = FakeClock()
        storage = SqliteStorage(path, clock=clock)
        for number in range(3):
            await put(storage, StateScope.user(f"u{number}"), commit_id=number + 1)
            await storage.drop(StateScope.user(f"u{number}"))
        last = (await storage.feed(0))[-1].cursor
        clock.advance(30 * 24 * 3600)
        await storage.sweep()
        assert len(await storage.feed(0)) <= 2
        assert await storage.feed(0, after=last) == ()
        await put(storage)
        assert [item.scope for item in await storage.feed(0, after=last)] == [A]
        await storage.close()
        assert len(rows(path, "SELECT * FROM tombstones")) <= 1

    async def test_a_state_cleared_again_and_again_keeps_a_bounded_journal(self, storage, path):
        """What remains of former incarnations in the feed is bounded, too."""
        parts = [Part(scope=A, clear=True, puts=[Put("variables", "k", b"1")], record=b"r")] * (JOURNAL_COUNT + 50)
        await asyncio.gather(*(storage.commit([part], commit_id=n + 1) for n, part in enumerate(parts)))
        await storage.drop(A)
        await storage.close()
        assert rows(path, "SELECT count(*) FROM journal")[0][0] <= JOURNAL_COUNT + 1

    async def test_what_a_writer_knows_is_forgotten_when_others_write(self, storage, path):
        """Commits through another connection, sweeps, drops and undone groups are seen by the next commit."""
        other = SqliteStorage(path)
        await put(storage, commit_id=1)
        second = await put(other, commit_id=2)
        third = await put(storage, commit_id=3, base=second.stamp)
        with pytest.raises(TypeError):
            await put(storage, key="new", value=object())
        fourth = await put(storage, commit_id=4, base=third.stamp)
        assert fourth.stamp == (4, 4)
        assert (await storage.read(A, Wants())).entry_bytes == len("k") + 1
        assert await storage.drop(A, stamp=fourth.stamp)
        assert (await put(other, commit_id=99)).birth == 99
        assert (await put(storage, commit_id=100)).birth == 99
        await other.close()

    async def test_a_drop_leaves_no_bytes_of_it(self, storage, path):
        """What goes with a state goes from every table."""
        await put(storage, record=b"record", labels={"status": "open"}, owner="ada")
        await storage.commit(
            [Part(scope=A, appends=[Append("history", "m", b"x", unique=True)], record=b"r")], commit_id=2
        )
        await storage.commit(
            [Part(scope=A, cuts=[CutTail("history", 0)], record=b"r")], commit_id=3, once=OnceRecord("k", "f", 3, b"r")
        )
        await storage.leave(A, 1, failure=b"failed")
        await put(storage, B)
        assert await storage.drop(A)
        await storage.close()
        for table in ("scopes", "entries", "logs", "items", "once", "labels", "failures", "removed"):
            assert len(rows(path, f"SELECT * FROM {table}")) == (1 if table in {"scopes", "entries"} else 0), table
        assert rows(path, "SELECT count(record) FROM journal") == [(0,)]

    async def test_damaged_keys_and_failures_are_told(self, storage, path):
        """Stored results and failed turns carry checksums of their own."""
        once = OnceRecord("k", "f", 1, b"result")
        await storage.commit([Part(scope=A)], commit_id=1, once=once)
        await storage.leave(A, 1, failure=b"failed")
        await storage.close()
        spoil(path, "UPDATE once SET result = x'00'", "UPDATE failures SET record = x'00'")
        again = SqliteStorage(path)
        with pytest.raises(DamagedStateError, match="idempotency"):
            await again.read(A, Wants(), once="k")
        with pytest.raises(DamagedStateError, match="failed"):
            await again.failures(A)
        await again.close()

    async def test_a_log_that_lost_items_is_damaged(self, storage, path):
        """A missing item is not skipped over."""
        await storage.commit([Part(scope=A, appends=[Append("history", f"m{n}", b"x") for n in range(9)])], commit_id=1)
        await storage.close()
        spoil(path, "DELETE FROM items WHERE seq = 5")
        again = SqliteStorage(path)
        with pytest.raises(DamagedStateError, match="lacks"):
            await again.read(A, TURN)
        await again.close()


class TestListing:
    """Pages come from indexes, whatever the filter and the order."""

    @pytest.mark.parametrize(
        "query",
        [
            ScopeQuery(),
            ScopeQuery(order="updated", reverse=True),
            ScopeQuery(kind="user", prefix="u1", reverse=True),
            ScopeQuery(kind="user", owner="ada", order="updated"),
            ScopeQuery(owner="ada"),
            ScopeQuery(label=("status", "open")),
            ScopeQuery(label=("status", "open"), order="updated", owner="ada"),
            ScopeQuery(order="updated", updated_before=5.0),
        ],
    )
    async def test_no_scan(self, storage, query):
        """No listing scans a table or sorts what it found."""
        told = []
        await put(storage, owner="ada", labels={"status": "open"})
        await storage.trace(lambda kind, sql: told.append(sql))
        await storage.scopes(query)
        await storage.trace(None)
        statements = [sql for sql in told if sql.startswith("SELECT s.")]
        assert statements
        for sql in statements:
            plan = " ".join(row[3] for row in await ask(storage, f"EXPLAIN QUERY PLAN {sql}", *[1] * sql.count("?")))
            assert "SCAN" not in plan
            assert "TEMP B-TREE" not in plan

    async def test_a_strange_cursor_is_refused(self, storage):
        """A cursor of another order, or of nobody's, is an error, not an empty page."""
        await put(storage)
        await put(storage, B)
        page = await storage.scopes(ScopeQuery(limit=1))
        for query in (ScopeQuery(cursor=page.cursor, order="updated"), ScopeQuery(cursor="nonsense!")):
            with pytest.raises(StorageError):
                await storage.scopes(query)

    @pytest.mark.parametrize("name", ["a' OR 1=1 --", "%", "_", "*", "a:b/c", "🦊\ud7ff", "\U0010ffff", "a" * 512])
    async def test_hostile_names_are_data(self, storage, name):
        """Ids, owners, labels and keys of any text are found by themselves and by nothing else."""
        scope = StateScope.user(name)
        await put(storage, scope, key=name, owner=name, labels={name: name})
        await put(storage, StateScope.user("other"), key="other", owner="other", labels={"other": "other"})
        for query in (ScopeQuery(prefix=name), ScopeQuery(owner=name), ScopeQuery(label=(name, name))):
            assert [info.scope for info in (await storage.scopes(query)).items] == [scope]
        page = await storage.scan(scope, "variables", prefix=name)
        assert [key for key, _ in page.entries] == [name]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///state.db", "state.db"),
        ("sqlite:////var/state.db", "/var/state.db"),
        ("sqlite:///a%20b%3f.db", "a b?.db"),
        ("sqlite:///dir/state.db", "dir/state.db"),
    ],
)
def test_urls(url, path):
    """A URL names a relative path by three slashes, an absolute one by four."""
    assert str(SqliteOptions(url=url).path) == path
    assert str(SqliteOptions().path) == "agentstate.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://state.db",
        "sqlite:///",
        "sqlite:",
        "postgresql://x",
        "sqlite:///:memory:",
        "sqlite:///a?x=1",
        "sqlite:///d/",
    ],
)
def test_wrong_urls(url):
    """What is no URL of a file is refused with the form that would be."""
    with pytest.raises(ValidationError, match=r"sqlite:///|memory://"):
        SqliteOptions(url=url)
