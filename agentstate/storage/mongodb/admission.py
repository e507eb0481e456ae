"""What is looked at once for each loop, when a store is opened: its format, its indexes, the server's clock."""

from __future__ import annotations

import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.errors import NewerFormatError
from agentstate.storage.mongodb.keys import FEED, HISTORY, METADATA, PARTITIONS, STATES, TRANSITIONS

if TYPE_CHECKING:
    from agentstate.storage.mongodb.connections import LoopConnections
    from agentstate.storage.mongodb.options import MongodbOptions

__all__ = ["FORMAT", "Admission", "admit"]

FORMAT: Final = 1
STORE: Final = "store"

# Which fields are looked for together, and whether most documents lack the first one.
_INDEXES: Final[dict[str, tuple[tuple[tuple[str, ...], bool], ...]]] = {
    TRANSITIONS: (
        (("pending",), True),
        (("commit",), True),
        (("scope", "journal"), False),
    ),
    STATES: (
        (("entry", "n"), False),
        (("scope", "section", "name"), False),
        (("expires",), False),
        (("gone",), True),
    ),
    HISTORY: (
        (("scope", "log", "position"), False),
        (("scope", "log", "seq"), False),
        (("unique",), True),
        (("expires",), False),
    ),
    METADATA: (
        (("state", "n"), False),
        (("once",), True),
        (("failure", "n"), False),
        (("scope",), True),
        (("tenant", "kind", "id"), False),
        (("tenant", "updated", "text"), False),
        (("tenant", "owner", "kind", "id"), False),
        (("tenant", "labels", "kind", "id"), False),
        (("expires",), False),
    ),
}


class Admission(NamedTuple):
    """What was found.

    ``journals``: the server syncs a commit that asks for it, as far as it says. ``skew``: its clock
    minus ours, in seconds.
    """

    journals: bool
    skew: float


async def admit(here: LoopConnections, options: MongodbOptions) -> Admission:
    """Check a server, and write the store's record and indexes when there are none yet.

    Raises:
        NewerFormatError: a newer release wrote this store.
    """
    from pymongo.errors import DuplicateKeyError

    server = here.client[options.database]
    began = time.time()
    hello: dict[str, Any] = await server.command("hello")
    if "localTime" in hello:
        # It comes in UTC without saying so.
        here.skew = hello["localTime"].replace(tzinfo=UTC).timestamp() - (began + time.time()) / 2
    found = await here.metadata.find_one({"_id": STORE})
    if found is None:
        await _make_indexes(here)
        try:
            await here.metadata.insert_one({"_id": STORE, "format": FORMAT, "partitions": PARTITIONS})
        except DuplicateKeyError:
            found = await here.metadata.find_one({"_id": STORE})
    if found is not None and found["format"] > FORMAT:
        raise NewerFormatError(
            f"The store at {here.location} has format {found['format']}; this release writes {FORMAT}.",
            remedy="Upgrade agentstate here.",
        )
    built: dict[str, Any] = await server.command("buildInfo")
    here.scans = "ferretdbVersion" in built
    return Admission(journals=not here.scans, skew=here.skew)


async def _make_indexes(here: LoopConnections) -> None:
    from pymongo import IndexModel

    for name, wanted in _INDEXES.items():
        models = [IndexModel([(field, 1) for field in fields], sparse=sparse) for fields, sparse in wanted]
        await here.collection(name).create_indexes(models)
    await here.collection(FEED).create_index([("chain", 1)], unique=True)
