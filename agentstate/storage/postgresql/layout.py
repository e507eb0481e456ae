"""The layout in the database: made, brought up to date in place, and refused when it is newer than we know.

Any number of processes may do so at once: the first holds an advisory lock, the others wait for
it and find everything done. One transaction makes a change of the layout, so none is ever half
made, and a cancelled one isn't made at all.

The stored functions of a release carry a digest of their text in their names. So a new release
brings its own, and those of older ones, which may still run beside it, stay.
"""

from __future__ import annotations

import re
import secrets
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.errors import ConfigError, NewerFormatError, UnsupportedError

if TYPE_CHECKING:
    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["FORMAT", "MIGRATIONS", "PARTITIONS", "Admission", "admit", "quoted", "release"]

PARTITIONS: Final = 256
OLDEST_SERVER: Final = 130_000
LOCK: Final = 0x61677374  # "agst"
SQL: Final = Path(__file__).parent / "sql"
# What makes each format out of the one before.
MIGRATIONS: Final[dict[int, str]] = {1: "tables.sql"}
FORMAT: Final = max(MIGRATIONS)
FUNCTIONS: Final = ("basics", "read", "commit", "turns", "removing", "looking", "listing")
# What several functions have in common.
PIECES: Final = ("found", "gather")

SERVER: Final = """
SELECT current_setting('server_version_num')::integer AS version, current_setting('server_version') AS name,
    getdatabaseencoding() AS encoding, current_setting('fsync') = 'on' AS synced,
    current_setting('synchronous_commit') <> 'off' AS waits"""
# Transaction numbers of another cluster, whose dump was restored here, would come after all of ours.
FOREIGN: Final = """
SELECT max(newest) AS newest, min(oldest) AS oldest, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS following
FROM generate_series(0, 255) AS p(partition)
LEFT JOIN LATERAL (SELECT xid AS newest FROM {schema}.journal j WHERE j.partition = p.partition
    ORDER BY xid DESC LIMIT 1) a ON true
LEFT JOIN LATERAL (SELECT xid AS oldest FROM {schema}.journal j WHERE j.partition = p.partition
    ORDER BY xid LIMIT 1) b ON true"""


class Admission(NamedTuple):
    """What was found. ``survives_power_loss``: as far as the server's settings say so."""

    survives_power_loss: bool


@cache
def _functions() -> str:
    text = "\n".join((SQL / f"{name}.sql").read_text() for name in FUNCTIONS)
    for piece in PIECES:
        text = text.replace(f"{{{piece}}}", (SQL / f"{piece}.sql").read_text().rstrip())
    return text


@cache
def release() -> str:
    """Return what the names of this release's functions end with."""
    return sha256(_functions().encode()).hexdigest()[:10]


def quoted(name: str) -> str:
    """Return a name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


async def admit(connection: Any, options: PostgresqlOptions) -> Admission:
    """Check a server, and make or update our layout.

    Raises:
        NewerFormatError: a newer release wrote the store.
        UnsupportedError: the server is too old.
        ConfigError: the database doesn't hold Unicode.
    """
    server = await connection.fetchrow(SERVER)
    if server["version"] < OLDEST_SERVER:
        raise UnsupportedError(
            f"{options.location} runs PostgreSQL {server['name']}.", remedy="Use PostgreSQL 13 or later."
        )
    if server["encoding"] != "UTF8":
        raise ConfigError(
            f"The database of {options.location} has the encoding {server['encoding']}.",
            remedy="Create one with ENCODING 'UTF8'.",
        )
    if not await _is_ready(connection, options):
        async with connection.transaction():
            await connection.fetchval("SELECT pg_advisory_xact_lock($1, hashtext($2))", LOCK, options.schema_name)
            if not await _is_ready(connection, options):
                await _bring_up_to_date(connection, options)
    await _adopt(connection, options)
    return Admission(server["synced"] and (server["waits"] or options.durability == "full"))


async def _is_ready(connection: Any, options: PostgresqlOptions) -> bool:
    meta = await _meta(connection, options)
    found = int(meta.get("format", 0))
    if found > FORMAT:
        raise NewerFormatError(
            f"The store in {options.location} has format {found}; this release writes {FORMAT}.",
            remedy="Upgrade agentstate-suite; the store was left as it is.",
        )
    return found == FORMAT and f"functions {release()}" in meta


async def _meta(connection: Any, options: PostgresqlOptions) -> dict[str, str]:
    schema = quoted(options.schema_name)
    if await connection.fetchval("SELECT to_regclass($1)", f"{schema}.meta") is None:
        return {}
    return dict(await connection.fetch(f"SELECT name, value FROM {schema}.meta"))  # noqa: S608 - quoted


async def _bring_up_to_date(connection: Any, options: PostgresqlOptions) -> None:
    schema = quoted(options.schema_name)
    if await connection.fetchval("SELECT to_regnamespace($1)", schema) is None:
        await connection.execute(f"CREATE SCHEMA {schema}")
    meta = await _meta(connection, options)
    for number in range(int(meta.get("format", 0)) + 1, FORMAT + 1):
        await connection.execute(_filled(SQL.joinpath(MIGRATIONS[number]).read_text(), schema))
        keep = f"INSERT INTO {schema}.meta VALUES('format', $1) ON CONFLICT (name) DO UPDATE SET value = $1"
        await connection.execute(keep, str(number))
    if f"functions {release()}" not in meta:
        await connection.execute(_filled(_functions(), schema))
        await connection.execute(f"INSERT INTO {schema}.meta VALUES($1, '')", f"functions {release()}")


def _filled(sql: str, schema: str) -> str:
    values = {
        "{schema}": schema,
        "{schema_in_text}": schema.replace("'", "''"),
        "{release}": release(),
        # A tag that nobody can guess ends the functions' bodies, so no schema's name can.
        "$body$": f"$body_{secrets.token_hex(16)}$",
    }
    return re.sub(r"\{schema\}|\{schema_in_text\}|\{release\}|\$body\$", lambda found: values[found.group()], sql)


async def _adopt(connection: Any, options: PostgresqlOptions) -> None:
    """Let the feed of a restored dump come before all that is committed from now on."""
    schema = quoted(options.schema_name)
    sql = FOREIGN.replace("{schema}", schema)
    found = await connection.fetchrow(sql)
    if found["newest"] is None or found["newest"] < found["following"]:
        return
    async with connection.transaction():
        await connection.fetchval("SELECT pg_advisory_xact_lock($1, hashtext($2))", LOCK, options.schema_name)
        found = await connection.fetchrow(sql)
        if found["newest"] >= found["following"]:
            # By more than the numbers span: on the way none meets another.
            shift = max(found["newest"] + 1, found["newest"] - found["oldest"] + 1)
            await connection.execute(f"UPDATE {schema}.journal SET xid = xid - $1", shift)  # noqa: S608
            await connection.execute(f"UPDATE {schema}.states SET xid = 0")  # noqa: S608
