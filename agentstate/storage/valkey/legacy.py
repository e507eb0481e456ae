"""Reading what AgentUp itself wrote: one string ``<key_prefix><context id>`` with JSON for each context.

Such records lie beside ours and never among them, since our keys have a brace after the prefix
and none is a string. They are only read here; importing them is the importer's work.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from agentstate.storage.valkey.faults import ServerError, from_server
from agentstate.storage.valkey.options import ValkeyOptions

if TYPE_CHECKING:
    from agentstate.storage.valkey.connections import LoopConnections

__all__ = ["keys", "record", "url_of"]

STEP = 1000
NOT_IN_QUERY = {"url", "db", "username", "password"}
OWN_PREFIX = ValkeyOptions().key_prefix


def url_of(options: ValkeyOptions) -> str | None:
    """Return a URL with all that these options say, but ``PASSWORD`` for the password.

    ``None`` for our own default prefix, under which AgentUp never wrote.
    """
    if options.key_prefix == OWN_PREFIX:
        return None
    said = options.model_dump(exclude_defaults=True, exclude=NOT_IN_QUERY)
    url, mark, query = options.location.partition("?")
    if options.password is not None:
        scheme, slashes, rest = url.partition("://")
        user, at, host = rest.rpartition("@")
        url = f"{scheme}{slashes}{user}:PASSWORD@{host if at else rest}"
    return f"{url}?{'&'.join([*([query] if mark else []), urlencode(said)])}"


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
    (reply,) = await here.ask_all([("GET", (options.key_prefix + context_id).encode())], errors=True)
    if isinstance(reply, ServerError):
        if reply.code == "WRONGTYPE":
            return None
        raise from_server(reply, options.location) from reply
    found: bytes | None = reply
    return found
