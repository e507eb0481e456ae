"""The PostgreSQL backend keeps the contract of storages, on a real server."""

import random

import pytest

from agentstate.scope import StateScope
from agentstate.storage.postgresql import PostgresqlStorage
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance
from tests.postgres import PostgresServer

# What a stray statement can do. The server keeps its own pages from bits that flip.
LOSSES = (
    "DELETE FROM {schema}.entries WHERE scope = $1 AND key = 'k3'",
    "DELETE FROM {schema}.entries WHERE scope = $1",
    "DELETE FROM {schema}.items WHERE scope = $1 AND position = 6",
    "DELETE FROM {schema}.items WHERE scope = $1 AND position = 3",
    "DELETE FROM {schema}.items WHERE scope = $1",
)
MESSES = (
    "UPDATE {schema}.entries SET value = set_byte(value, 3, get_byte(value, 3) # 4) WHERE scope = $1 AND key = 'k2'",
    "UPDATE {schema}.entries SET key = 'k9' WHERE scope = $1 AND key = 'k2'",
    "UPDATE {schema}.items SET value = set_byte(value, 7, get_byte(value, 7) # 1) WHERE scope = $1 AND position = 2",
    "UPDATE {schema}.journal SET record = set_byte(record, 2, 9) WHERE scope = $1 AND version = 4",
    "UPDATE {schema}.states SET logs = '{\"history\": 1}' WHERE number = $1",
    "UPDATE {schema}.states SET sections = '{\"variables\": 1}' WHERE number = $1",
    "UPDATE {schema}.states SET entry_bytes = entry_bytes + 1 WHERE number = $1",
)


class TestPostgresql(StorageConformance):
    """PostgreSQL: shared by any number of machines, several states in one commit."""

    @pytest.fixture
    def make_storage(self, postgres_server: PostgresServer, postgres_schema: str) -> MakeStorage:
        """Return a maker of storages in this test's schema."""
        return lambda clock: PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, clock=clock)

    @pytest.fixture
    def process_spec(self, postgres_server: PostgresServer, postgres_schema: str) -> ProcessSpec:
        """Return how worker processes open this test's data."""
        options = {"url": postgres_server.url, "schema_name": postgres_schema}
        return ProcessSpec("postgresql", options, ("agentstate.storage.postgresql.storage", "asyncpg"))

    @pytest.fixture
    def damage(self, postgres_server: PostgresServer, postgres_schema: str) -> Damage:
        """Take something of a state away, or put nonsense in its place."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            sql = random.Random(seed).choice(LOSSES if how == "cut" else MESSES).replace("{schema}", postgres_schema)
            place = (scope.tenant, scope.kind, scope.id)
            which = f"SELECT number FROM {postgres_schema}.states WHERE (tenant, kind, id) = ($1, $2, $3)"
            ((number,),) = postgres_server.ask(which, *place)
            assert postgres_server.ask(f"WITH done AS ({sql} RETURNING 1) SELECT count(*) FROM done", number)[0][0] > 0
            return sql

        return spoil

    @pytest.fixture
    def make_newer(self, postgres_server: PostgresServer, postgres_schema: str) -> MakeNewer:
        """Raise the format number of the store."""

        def raise_format(scope: StateScope) -> None:
            del scope
            postgres_server.ask(f"UPDATE {postgres_schema}.meta SET value = '99' WHERE name = 'format'")

        return raise_format
