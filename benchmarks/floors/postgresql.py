"""The floor on PostgreSQL: one statement that reads and one that writes, on asyncpg's pool without its reset."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from benchmarks.workload import TAIL, TEXT, message

TABLES = """
DROP TABLE IF EXISTS floor_entries, floor_items;
CREATE TABLE floor_entries(conversation text, key text, value bytea, PRIMARY KEY(conversation, key));
CREATE TABLE floor_items(conversation text, position bigint, value bytea, PRIMARY KEY(conversation, position));
"""
READ = """
SELECT
    (SELECT array_agg(value) FROM floor_entries WHERE conversation = $1 AND key IN ('count', 'other')),
    (SELECT array_agg(value ORDER BY position) FROM floor_items
        WHERE conversation = $1 AND position > $2 AND position <= $3)
"""
WRITE = """
WITH items AS (INSERT INTO floor_items VALUES ($1, $2, $3), ($1, $2 + 1, $4))
INSERT INTO floor_entries VALUES ($1, 'count', $5)
ON CONFLICT (conversation, key) DO UPDATE SET value = excluded.value
"""


async def _keep(connection: Any) -> None:
    """Take the place of the pool's reset, which is a round trip."""


class TwoStatementFloor:
    """What two statements cost, with the messages numbered by the client."""

    name = "floor: 2 statements"

    def __init__(self, url: str) -> None:
        self.url = url
        self.heads: dict[str, int] = {}

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.url, min_size=1, max_size=10, reset=_keep)
        await self.pool.execute(TABLES)

    async def close(self) -> None:
        await self.pool.close()

    async def seed(self, conversation: str, messages: int) -> None:
        rows = [(conversation, n, orjson.dumps(message(n))) for n in range(1, messages + 1)]
        await self.pool.executemany("INSERT INTO floor_items VALUES ($1, $2, $3)", rows)
        await self.pool.execute("INSERT INTO floor_entries VALUES ($1, 'other', $2)", conversation, orjson.dumps(TEXT))
        self.heads[conversation] = messages

    async def turn(self, conversation: str) -> None:
        head = self.heads[conversation]
        async with self.pool.acquire() as connection:
            entries, items = await connection.fetchrow(READ, conversation, head - TAIL, head)
        _ = [orjson.loads(item) for item in items], [orjson.loads(entry) for entry in entries]
        pair = orjson.dumps(message(head)), orjson.dumps(message(head, "assistant"))
        async with self.pool.acquire() as connection:
            await connection.execute(WRITE, conversation, head + 1, *pair, orjson.dumps(head))
        self.heads[conversation] = head + 2
