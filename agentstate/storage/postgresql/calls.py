"""The statements that are sent: one call of a stored function each, with nothing but arguments in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentstate.storage.postgresql.layout import quoted, release

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Calls"]

JOURNAL: Final = """
SELECT j.version, j.commit_id, j.at, j.record, j.ranges::text, j.crc, r.*
FROM {schema}.states s
JOIN {schema}.journal j ON j.scope = s.number
LEFT JOIN LATERAL (
    SELECT array_agg(x.log), array_agg(x.seq), array_agg(x.position), array_agg(x.id), array_agg(x.value),
        array_agg(x.expires), array_agg(x.crc)
    FROM (SELECT * FROM {schema}.removed y WHERE y.scope = j.scope AND y.version = j.version ORDER BY y.number) x
) r ON true
WHERE s.tenant = $2 AND s.kind = $3 AND s.id = $4 AND s.birth <> 0
    AND (s.expires IS NULL OR s.expires > coalesce($1, extract(epoch FROM clock_timestamp())))
    AND j.version > greatest($5, s.version - 1000) AND j.record IS NOT NULL
ORDER BY j.version LIMIT $6"""
SCAN: Final = """
SELECT coalesce($1, extract(epoch FROM clock_timestamp()))::double precision AS now,
    e.section, e.key, e.value, e.counter, e.version, e.commit_id, e.expires, e.crc
FROM {schema}.states s JOIN {schema}.entries e ON e.scope = s.number
WHERE s.tenant = $2 AND s.kind = $3 AND s.id = $4 AND s.birth <> 0
    AND (s.expires IS NULL OR s.expires > coalesce($1, extract(epoch FROM clock_timestamp())))
    AND e.section = $5 AND e.key >= $6 AND ($7::text IS NULL OR e.key < $7) AND ($8::text IS NULL OR e.key > $8)
    AND (e.expires IS NULL OR e.expires > coalesce($1, extract(epoch FROM clock_timestamp())))
ORDER BY e.key LIMIT $9"""
FIND: Final = """
SELECT i.seq, i.position, i.id, i.value, i.expires, i.crc
FROM {schema}.states s JOIN {schema}.items i ON i.scope = s.number
WHERE s.tenant = $2 AND s.kind = $3 AND s.id = $4 AND s.birth <> 0
    AND (s.expires IS NULL OR s.expires > coalesce($1, extract(epoch FROM clock_timestamp())))
    AND i.log = $5 AND i.id = $6 AND i.mark = 1"""
OUTCOME: Final = """
SELECT j.version FROM {schema}.states s JOIN {schema}.journal j ON j.scope = s.number
WHERE s.tenant = $1 AND s.kind = $2 AND s.id = $3 AND j.commit_id = $4 AND NOT j.dropped"""
TOUCH: Final = """
UPDATE {schema}.states SET expires = $5 + $6 WHERE tenant = $1 AND kind = $2 AND id = $3 AND birth = $4
    AND expires > $5 AND expires - $5 < $6 / 2
RETURNING expires"""
FAILURES: Final = """
SELECT record, crc FROM {schema}.failures
WHERE tenant = $2 AND kind = $3 AND id = $4 AND at > coalesce($1, extract(epoch FROM clock_timestamp())) - 604800
ORDER BY number"""


class Calls:
    """The statements for one schema."""

    def __init__(self, schema_name: str) -> None:
        """Quote the schema's name, which is the only thing that is put into a statement."""
        schema = quoted(schema_name)

        def function(name: str, count: int) -> str:
            places = ", ".join(f"${number}" for number in range(1, count + 1))
            return f"SELECT * FROM {schema}.{name}_{release()}({places})"  # noqa: S608 - a name of ours

        statement: Callable[[str], str] = lambda text: text.replace("{schema}", schema)  # noqa: E731
        self.look = function("look", 11)
        self.enter = function("enter", 17)
        self.touch = statement(TOUCH)
        self.commit = function("commit", 33)
        self.wait = function("wait", 5)
        self.leave = function("leave", 8)
        self.renew = function("renew", 6)
        self.drop = function("drop", 6)
        self.sweep = function("sweep", 2)
        self.log = function("log", 8)
        self.feed = function("feed", 4)
        self.page = function("page", 15)
        self.journal = statement(JOURNAL)
        self.scan = statement(SCAN)
        self.find = statement(FIND)
        self.outcome = statement(OUTCOME)
        self.failures = statement(FAILURES)
