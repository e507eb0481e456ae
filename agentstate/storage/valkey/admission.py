"""What is looked at once, when a store is opened: its format, and whether the server keeps its word."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.errors import ConfigError, NewerFormatError, UnsupportedError
from agentstate.storage.valkey.decode import record_of
from agentstate.storage.valkey.faults import ServerError, from_server
from agentstate.storage.valkey.keys import PARTITIONS, store_key

if TYPE_CHECKING:
    from agentstate.storage.valkey.connections import LoopConnections
    from agentstate.storage.valkey.options import ValkeyOptions

__all__ = ["FORMAT", "Admission", "admit"]

FORMAT = 1
SETTINGS = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save")

log = logging.getLogger("agentstate.valkey")


class Admission(NamedTuple):
    """What was found. ``survives_power_loss``: as far as the server, or else the user, says so."""

    partitions: int
    survives_power_loss: bool


async def admit(here: LoopConnections, options: ValkeyOptions) -> Admission:
    """Check a server, and write the store's record when there is none yet.

    Raises:
        NewerFormatError: a newer release wrote this store.
        UnsupportedError: the server is part of a cluster.
        ConfigError: the server may forget what it acknowledged, and that wasn't allowed.
    """
    await _check_group(here, options)
    servers = await _settings(here)
    for settings in servers:
        _check_eviction(settings, options)
    synced = bool(servers) and all(map(_is_synced, servers))
    if options.durability == "full" and not synced:
        for settings in servers:
            raise ConfigError(
                f"durability='full', but {options.location} has appendonly {settings.get('appendonly')} and "
                f"appendfsync {settings.get('appendfsync')}.",
                remedy="Set appendonly yes and appendfsync always in valkey.conf, or durability='server'.",
            )
    if any(settings.get("appendonly") == "no" and not settings.get("save") for settings in servers):
        log.warning("%s keeps nothing on disk: its restart loses every state", options.location)
    partitions = await _partitions(here, options)
    return Admission(partitions, synced or (options.durability == "full" and not servers))


async def _check_group(here: LoopConnections, options: ValkeyOptions) -> None:
    (reply,) = await here.ask_all([("INFO", "cluster")], errors=True)
    clustered = b"cluster_enabled:1" in reply if isinstance(reply, bytes) else options.group == "cluster"
    if clustered and options.group is None:
        scheme, _, rest = options.location.partition("://")
        raise UnsupportedError(
            f"{options.location} is part of a cluster.", remedy=f"Write {scheme}+cluster://{rest.rpartition('/')[0]}."
        )


def _is_synced(settings: dict[str, str]) -> bool:
    return settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"


async def _settings(here: LoopConnections) -> list[dict[str, str]]:
    """Return each server's settings; none when we may not see them, as is usual for hosted servers."""
    replies = [await here.ask_everybody(("CONFIG", "GET", one)) for one in SETTINGS]
    servers: list[dict[str, str]] = []
    for answers in zip(*replies, strict=True):
        if any(isinstance(answer, ServerError) for answer in answers):
            return []
        servers.append({pair[0].decode(): pair[1].decode() for pair in answers if pair})
    return servers


def _check_eviction(settings: dict[str, str], options: ValkeyOptions) -> None:
    policy, limit = settings.get("maxmemory-policy", "noeviction"), settings.get("maxmemory", "0")
    if policy == "noeviction" or limit == "0" or options.allow_eviction:
        return
    raise ConfigError(
        f"{options.location} has maxmemory-policy {policy}: it drops states when its memory is full.",
        remedy="Set maxmemory-policy noeviction, or allow_eviction=True if states may be lost.",
    )


async def _partitions(here: LoopConnections, options: ValkeyOptions) -> int:
    key = store_key(options.key_prefix)
    (flat,) = await here.ask_all([("HGETALL", key)])
    if not flat:
        made: list[Any] = [("HSETNX", key, "format", FORMAT), ("HSETNX", key, "partitions", PARTITIONS)]
        *replies, flat = await here.ask_all([*made, ("HGETALL", key)], errors=True)
        for reply in replies:
            if isinstance(reply, ServerError):
                raise from_server(reply, options.location) from reply
    record = record_of(flat)
    if int(record[b"format"]) > FORMAT:
        raise NewerFormatError(
            f"The store {options.key_prefix!r} at {options.location} has format {int(record[b'format'])}; "
            f"this release writes {FORMAT}.",
            remedy="Upgrade agentstate here.",
        )
    return int(record[b"partitions"])
