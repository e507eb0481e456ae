"""Reading what AgentUp itself wrote: one string ``<key_prefix><context id>`` with JSON for each context.

Such records lie beside ours and never among them, since our keys have a brace after the prefix
and none is a string. They are only read here; importing them is the importer's work.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentstate.storage.valkey.faults import ServerError, from_server

if TYPE_CHECKING:
    from agentstate.storage.valkey.connections import LoopConnections
    from agentstate.storage.valkey.options import ValkeyOptions

__all__ = ["keys", "record"]

STEP = 1000


async def keys(here: LoopConnections, options: ValkeyOptions, limit: int) -> tuple[str, ...]:
    """Return the ids of at most ``limit`` records, in no order."""
    prefix = options.key_prefix.encode()
    pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
    found: dict[str, None] = {}
    cursor: bytes | int = 0
    while True:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", STEP, "TYPE", "string")
        ((cursor, page),) = await here.ask_all([command])
        # An id that isn't text was never AgentUp's.
        found |= dict.fromkeys(key[len(prefix) :].decode(errors="replace") for key in page)
        if cursor == b"0" or len(found) >= limit:
            return tuple(found)[:limit]


async def record(here: LoopConnections, options: ValkeyOptions, context_id: str) -> bytes | None:
    """Return a record as it was written; ``None`` when there is none."""
    (reply,) = await here.ask_all([("GET", options.key_prefix + context_id)], errors=True)
    if isinstance(reply, ServerError):
        if reply.code == "WRONGTYPE":
            return None
        raise from_server(reply, options.location) from reply
    found: bytes | None = reply
    return found
