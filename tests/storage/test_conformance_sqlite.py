"""The SQLite backend keeps the contract of storages."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentstate.scope import StateScope
from agentstate.storage.sqlite import SqliteStorage
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance

# What finds a row rather than being found in it: changed, it would be another row, not a damaged one.
ADDRESSES = {"number", "place", "tenant", "kind", "id", "scope", "section", "key", "log", "position", "lineage"}
TABLES = (
    ("scopes", "number = ?"),
    ("entries", "scope = ?"),
    ("items", "key >> 32 IN (SELECT number FROM logs WHERE scope = ?)"),
    ("journal", "scope = ?"),
)


class TestSqlite(StorageConformance):
    """SQLite: one file, shared by the processes of one machine, durable."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Return the state file of this test."""
        return tmp_path / "state.db"

    @pytest.fixture
    def make_storage(self, path: Path) -> MakeStorage:
        """Return a maker of storages on this test's file."""
        return lambda clock: SqliteStorage(path, clock=clock)

    @pytest.fixture
    def process_spec(self, path: Path) -> ProcessSpec:
        """Return how worker processes open this test's file."""
        return ProcessSpec("sqlite", {"url": f"sqlite:///{path}"}, ("agentstate.storage.sqlite", "apsw"))

    @pytest.fixture
    def damage(self, path: Path) -> Damage:
        """Change one column of one row that belongs to a state, behind the checksums' back."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            chance = random.Random(seed)
            with closing(sqlite3.connect(path)) as connection, connection:
                table, row, column, value = chance.choice(list(_columns(connection, scope)))
                spoiled = _spoiled(value, how, chance)
                condition = " AND ".join(f"{name} IS ?" for name in row)
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {condition}", [spoiled, *row.values()])
            return f"{how} {table}.{column} of {row}: {value!r} to {spoiled!r}"

        return spoil

    @pytest.fixture
    def make_newer(self, path: Path) -> MakeNewer:
        """Raise the format number of the file."""

        def raise_format(scope: StateScope) -> None:
            del scope
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 99")

        return raise_format


def _columns(connection: sqlite3.Connection, scope: StateScope):
    connection.row_factory = sqlite3.Row
    found = connection.execute("SELECT number FROM scopes WHERE kind = ? AND id = ?", (scope.kind, scope.id)).fetchone()
    for table, condition in TABLES:
        for row in connection.execute(f"SELECT * FROM {table} WHERE {condition}", (found["number"],)):
            values = dict(row)
            for column in sorted(values.keys() - ADDRESSES):
                if values[column] is not None and (table, column) != ("journal", "version"):
                    yield table, values, column, values[column]


def _spoiled(value, how, chance):
    if isinstance(value, bytes):
        at = chance.randrange(len(value) or 1)
        return value[:at] if how == "cut" or not value else value[:at] + bytes([value[at] ^ 16]) + value[at + 1 :]
    if isinstance(value, str):
        at = chance.randrange(len(value))
        return value[:at] if how == "cut" else value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    if isinstance(value, float):
        return value / 2 if how == "cut" else value + 1
    return value >> 8 if how == "cut" else value ^ 1
