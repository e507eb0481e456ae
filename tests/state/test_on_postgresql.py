"""Turns and frames once more, on PostgreSQL: the tests of their own modules, with its storage."""

import pytest

from agentstate.storage.postgresql import PostgresqlStorage
from tests.state.test_frames import *  # noqa: F403
from tests.state.test_turns import *  # noqa: F403


@pytest.fixture
async def storage(postgres_server, postgres_schema):
    """A fresh storage, in place of those of all other backends."""
    made = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema)
    yield made
    await made.close()


@pytest.fixture
async def clocked(postgres_server, postgres_schema, clock):
    """The same, on a clock that the test moves."""
    made = PostgresqlStorage(postgres_server.url, schema_name=postgres_schema, clock=clock)
    yield made
    await made.close()
