"""The layout of a SQLite state file: opened only if it is ours and not newer than we know.

One row of ``scopes`` holds what every commit of a state changes, the stamps of its sections
and the heads of its logs included (``heads``, JSON), so that a commit rewrites one row.
The ``key`` of an item is its log's number and its position, so that a tail is one walk over integers. Items
themselves lie in the order in which they were written: new ones of many logs share a page, and a log in the
middle of the table needn't push its neighbours' items from page to page, which was most of what commits wrote.
``journal`` is the feed too: its ``place`` rises with every commit of the file. A state that
was dropped leaves a row in ``tombstones``, whose negative number its journal rows then bear.
Rows that hold users' bytes carry a CRC of everything that matters in them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentstate.errors import ConfigError, DamagedStateError, MissingDependencyError, NewerFormatError
from agentstate.storage.oserrors import from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Connection", "Row", "Statements", "connect", "driver", "prepare"]

Row = tuple[Any, ...]

APPLICATION_ID: Final = 0x61677374  # "agst"
FORMAT: Final = 1
BUSY_MS: Final = 10_000
OLDEST_SQLITE: Final = 3_051_003  # the WAL-reset bug is fixed there

SCHEMA: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE scopes(
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
    version INTEGER NOT NULL, commit_id INTEGER NOT NULL, birth INTEGER NOT NULL,
    updated REAL NOT NULL, expires REAL, entry_bytes INTEGER NOT NULL, heads TEXT NOT NULL, crc INTEGER NOT NULL,
    created REAL NOT NULL, owner TEXT, parent TEXT, labels TEXT, lineage BLOB NOT NULL);
CREATE UNIQUE INDEX scopes_by_id ON scopes(tenant, kind, id);
CREATE INDEX scopes_by_update ON scopes(tenant, kind, updated, id);
CREATE INDEX scopes_by_owner ON scopes(tenant, owner, kind, id) WHERE owner IS NOT NULL;
CREATE INDEX scopes_by_owner_update ON scopes(tenant, owner, kind, updated, id) WHERE owner IS NOT NULL;
CREATE INDEX scopes_by_expiry ON scopes(expires) WHERE expires IS NOT NULL;
CREATE TABLE labels(
    tenant TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
    updated REAL NOT NULL, scope INTEGER NOT NULL, PRIMARY KEY(tenant, name, value, kind, id)) WITHOUT ROWID;
CREATE INDEX labels_by_update ON labels(tenant, name, value, kind, updated, id);
CREATE TABLE entries(
    scope INTEGER NOT NULL, section TEXT NOT NULL, key TEXT NOT NULL,
    value NOT NULL, version INTEGER NOT NULL, commit_id INTEGER NOT NULL, expires REAL, crc INTEGER NOT NULL,
    PRIMARY KEY(scope, section, key)) WITHOUT ROWID;
CREATE INDEX entries_by_expiry ON entries(expires) WHERE expires IS NOT NULL;
CREATE TABLE logs(number INTEGER PRIMARY KEY, scope INTEGER NOT NULL, name TEXT NOT NULL);
CREATE TABLE items(
    place INTEGER PRIMARY KEY, key INTEGER NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL,
    expires REAL, mark INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE UNIQUE INDEX items_by_key ON items(key);
CREATE UNIQUE INDEX items_by_id ON items(key >> 32, id) WHERE mark = 1;
CREATE INDEX items_by_expiry ON items(expires) WHERE expires IS NOT NULL AND mark < 2;
CREATE TABLE journal(
    place INTEGER PRIMARY KEY, scope INTEGER NOT NULL, version INTEGER, commit_id INTEGER, at REAL NOT NULL,
    record BLOB, ranges TEXT, removed INTEGER NOT NULL DEFAULT 0, crc INTEGER NOT NULL DEFAULT 0);
CREATE INDEX journal_by_scope ON journal(scope, version);
CREATE TABLE removed(
    place INTEGER NOT NULL, number INTEGER NOT NULL, log TEXT NOT NULL, position INTEGER NOT NULL,
    seq INTEGER NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, expires REAL, mark INTEGER NOT NULL,
    crc INTEGER NOT NULL, PRIMARY KEY(place, number)) WITHOUT ROWID;
CREATE TABLE once(
    scope INTEGER NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, commit_id INTEGER NOT NULL,
    result BLOB, at REAL NOT NULL, number INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY(scope, key)) WITHOUT ROWID;
CREATE INDEX once_by_number ON once(scope, number);
CREATE TABLE failures(
    number INTEGER PRIMARY KEY, address TEXT NOT NULL, at REAL NOT NULL, record BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX failures_by_address ON failures(address, number);
CREATE TABLE tombstones(
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
    version INTEGER NOT NULL, commit_id INTEGER NOT NULL, until REAL NOT NULL);
CREATE UNIQUE INDEX tombstones_by_id ON tombstones(tenant, kind, id);
CREATE INDEX tombstones_by_time ON tombstones(until);
"""


class Cursor(Protocol):
    """The rows of a statement."""

    def __iter__(self) -> Iterator[Row]: ...
    def fetchone(self) -> Row | None: ...
    def fetchall(self) -> list[Row]: ...


class Statements(Protocol):
    """What runs statements."""

    def execute(self, sql: str, bindings: Sequence[object] = ..., /) -> Cursor:
        """Run a statement."""
        ...

    def executemany(self, sql: str, bindings: Sequence[Sequence[object]], /) -> Cursor:
        """Run a statement for each tuple of values."""
        ...

    def last_insert_rowid(self) -> int:
        """Return the number of the row inserted last."""
        ...


class Connection(Statements, Protocol):
    """What is used of ``apsw.Connection``, whose own types don't pass strict checks."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    @property
    def filename_wal(self) -> str:
        """The path of the write-ahead log."""
        ...

    def pragma(self, name: str, value: object = ..., /) -> Any:
        """Ask or set a pragma."""
        ...

    @property
    def system_errno(self) -> int:
        """The operating system's error number of the last failure."""
        ...

    def wal_checkpoint(self, dbname: str | None, mode: int, /) -> tuple[int, int]:
        """Copy the write-ahead log into the file."""
        ...

    def set_busy_timeout(self, milliseconds: int, /) -> None:
        """Wait so long for a lock of SQLite's own."""
        ...

    def set_exec_trace(self, trace: Callable[[Cursor, str, object], bool] | None, /) -> None:
        """Tell ``trace`` of every statement."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def connect(path: Path, *, durable: bool, page_cache: int, read_only: bool = False) -> Connection:
    """Return a connection to the file, which is made, private to its owner, if it is missing.

    Raises:
        MissingDependencyError: apsw isn't installed.
        StorageAccessError: the file can't be made.
    """
    apsw = driver()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make it readable by everybody. Never opened here when it exists: closing
        # any descriptor of it would drop the locks of this process's other connections.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise from_os_error(error, "make the state file", path) from error
    connection: Any = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_MS)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.pragma("synchronous", "full" if durable else "normal")
    connection.pragma("mmap_size", 0)
    connection.pragma("cache_size", -max(page_cache // 1024, 1))
    if sys.platform == "darwin" and durable:
        connection.pragma("fullfsync", 1)
        connection.pragma("checkpoint_fullfsync", 1)
    if read_only:
        connection.pragma("query_only", 1)
    opened: Connection = connection
    return opened


def prepare(connection: Connection, path: Path, now: float) -> None:
    """Make the layout in an empty file; check it in any other. To be called under the writers' lock.

    Raises:
        NewerFormatError: a newer release wrote the file.
        ConfigError: the file is another application's.
        DamagedStateError: the file has our mark, but not our tables.
    """
    mark, number = connection.pragma("application_id"), connection.pragma("user_version")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if mark == APPLICATION_ID and isinstance(number, int) and number > FORMAT:
        raise NewerFormatError(
            f"{path} has format {number}; this release knows {FORMAT}.",
            remedy="Upgrade agentstate-suite; the file was left as it is.",
        )
    if mark == APPLICATION_ID and number == FORMAT and {"scopes", "entries", "items", "journal"} <= tables:
        return
    if mark == APPLICATION_ID:
        raise DamagedStateError(
            f"{path} lacks tables of a state file of format {number}.",
            remedy="Restore it from a backup; it was left as it is.",
        )
    if mark or number or tables:
        raise ConfigError(
            f"{path} is a SQLite database of another application.",
            remedy="Choose another path for the state, as in sqlite:///state.db.",
        )
    connection.pragma("journal_mode", "wal")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(SCHEMA)
    connection.execute("INSERT INTO meta VALUES('partitions', 1), ('created', ?)", (now,))
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", FORMAT)
    connection.execute("COMMIT")


def driver() -> Any:
    """Return the module apsw, imported on first use.

    Raises:
        MissingDependencyError: it isn't installed.
        ConfigError: it brings a SQLite that can damage a database.
    """
    try:
        import apsw
    except ModuleNotFoundError as error:
        if error.name != "apsw":
            raise
        raise MissingDependencyError(
            "The sqlite backend needs apsw, which isn't installed.", remedy="Run: pip install 'apsw>=3.51.3'"
        ) from error
    if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
        raise ConfigError(
            f"SQLite {apsw.sqlite_lib_version()} can damage a database that several processes write.",
            remedy="Run: pip install -U 'apsw>=3.51.3'",
        )
    return apsw
