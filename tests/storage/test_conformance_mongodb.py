"""The MongoDB backend keeps the contract of storages, on a server that speaks the protocol."""

import asyncio
import random
import time

import pytest

from agentstate.scope import StateScope
from agentstate.storage.mongodb import MongodbStorage
from agentstate.storage.mongodb.keys import scope_key
from agentstate.storage.protocol import Storage
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance
from agentstate.testing.crashing import check_sequence, counts_of, crash_cycle
from tests.mongodb import database, mongodb_or_skip

mongodb_or_skip()


class TestMongodb(StorageConformance):
    """MongoDB: shared by any number of machines."""

    @pytest.fixture
    def make_storage(self, mongodb_url: str, mongodb_database: str) -> MakeStorage:
        """Return a maker of storages in this test's database."""
        return lambda clock: MongodbStorage(mongodb_url, database=mongodb_database, clock=clock)

    @pytest.fixture
    def process_spec(self, mongodb_url: str, mongodb_database: str) -> ProcessSpec:
        """Return how worker processes open this test's data."""
        options = {"url": mongodb_url, "database": mongodb_database}
        return ProcessSpec("mongodb", options, ("agentstate.storage.mongodb.storage", "pymongo"))

    @pytest.fixture
    def damage(self, mongodb_url: str, mongodb_database: str) -> Damage:
        """Change or take away documents of a state, as a program that doesn't know them might."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            chance = random.Random(seed)
            found = database(mongodb_url, mongodb_database)
            with found.client:
                chain = list(found.transitions.find({"scope": scope_key(scope)}).sort("_id", 1))
                one = chance.choice(chain)
                if how == "cut":
                    found.transitions.delete_one({"_id": one["_id"]})
                    return f"deleted {one['_id']}"
                field = chance.choice([name for name in ("head", "change", "image", "record") if name in one])
                raw = bytearray(one[field])
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
                found.transitions.update_one({"_id": one["_id"]}, {"$set": {field: bytes(raw)}})
                return f"flipped a bit of {field} of {one['_id']}"

        return spoil

    @pytest.fixture
    def make_newer(self, mongodb_url: str, mongodb_database: str) -> MakeNewer:
        """Raise the format number of the store."""

        def raise_format(scope: StateScope) -> None:
            del scope
            found = database(mongodb_url, mongodb_database)
            with found.client:
                assert found.metadata.update_one({"_id": "store"}, {"$set": {"format": 99}}).modified_count == 1

        return raise_format

    async def test_killed_while_committing(self, live: Storage, process_spec: ProcessSpec, make_storage) -> None:
        """Every acknowledged commit survives its process, and none is torn.

        The server carries out what a killed client had sent, a moment after its end; so each cycle
        begins when the counts no longer change.
        """
        scopes = [StateScope.conversation(f"crash-{n}") for n in range(3)]
        chance = random.Random(1)
        counts = [0] * len(scopes)
        for _ in range(5):
            acknowledged = await crash_cycle(process_spec, scopes, counts, chance.uniform(0.0, 0.05))
            storage = make_storage(time.time)
            found = await unchanging_counts(storage, scopes)
            await check_sequence(storage, scopes, acknowledged, since=counts)
            counts = found
            await storage.close()
        await check_sequence(live, scopes, counts, since=[0] * len(scopes))
        assert sum(counts) > 0, "no commit was ever acknowledged: the workers were killed too early"


async def unchanging_counts(storage: Storage, scopes: list[StateScope]) -> list[int]:
    """Return how many commits each state holds when none was added for a second."""
    deadline, seen, since = time.monotonic() + 30, [-1], time.monotonic()
    while time.monotonic() - since < 1.0:
        assert time.monotonic() < deadline, "the dead go on committing"
        found = await counts_of(storage, scopes)
        if found != seen:
            seen, since = found, time.monotonic()
        await asyncio.sleep(0.05)
    return seen
