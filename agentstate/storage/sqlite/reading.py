"""Reads of a SQLite state file. Each runs inside one read transaction, so it sees one commit's end."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from agentstate.storage.protocol import (
    FAILURE_SECONDS,
    JOURNAL_COUNT,
    ONCE_SECONDS,
    Entry,
    EntryPage,
    FeedItem,
    JournalRecord,
    LogItem,
    LogPage,
    OnceRecord,
    Snapshot,
    Stamp,
    Wants,
)
from agentstate.storage.sqlite.rows import (
    Log,
    State,
    damaged,
    entry_crc,
    item_of,
    items_of,
    load,
    record_crc,
    scope_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.scope import StateScope
    from agentstate.storage.sqlite.rows import Entries
    from agentstate.storage.sqlite.schema import Connection, Row, Statements

__all__ = [
    "failures",
    "feed",
    "find_item",
    "journal",
    "known_once",
    "outcome",
    "read_log",
    "scan",
    "snapshot",
    "text_after",
    "view",
]

ENTRIES: Final = "SELECT section, key, value, version, commit_id, expires, crc FROM entries WHERE scope = ?"
ENTRY: Final = f"{ENTRIES} AND section = ? AND key = ?"
ITEMS: Final = "SELECT seq, key & 0xffffffff, id, value, expires, mark, crc FROM items WHERE"
RANGE: Final = f"{ITEMS} key >= ? AND key < ? ORDER BY key"
ITEM: Final = f"{ITEMS} key >> 32 = ? AND id = ? AND mark = 1"
ONCE: Final = "SELECT key, fingerprint, commit_id, result, at, crc FROM once WHERE scope = ? AND key = ? AND at > ?"
JOURNAL: Final = (
    "SELECT place, version, commit_id, at, record, ranges, removed, crc FROM journal "
    "WHERE scope = ? AND version > ? AND record IS NOT NULL ORDER BY version LIMIT ?"
)
REMOVED: Final = "SELECT log, seq, position, id, value, expires, mark, crc FROM removed WHERE place = ? ORDER BY number"
OUTCOME: Final = """
SELECT j.version FROM scopes s JOIN journal j ON j.scope = s.number
    WHERE s.tenant = ?1 AND s.kind = ?2 AND s.id = ?3 AND j.commit_id = ?4
UNION ALL SELECT j.version FROM tombstones t JOIN journal j ON j.scope = -t.number
    WHERE t.tenant = ?1 AND t.kind = ?2 AND t.id = ?3 AND j.commit_id = ?4
LIMIT 1"""
FEED: Final = """
SELECT j.place, coalesce(s.tenant, t.tenant), coalesce(s.kind, t.kind), coalesce(s.id, t.id),
    j.version, j.commit_id, j.at
FROM journal j LEFT JOIN scopes s ON s.number = j.scope LEFT JOIN tombstones t ON t.number = -j.scope
WHERE j.place > ? ORDER BY j.place LIMIT ?"""


def snapshot(
    connection: Statements, scope: StateScope, wants: Wants, now: float, once: str | None, was: State | None
) -> tuple[Snapshot, State | None]:
    """Return what was wanted of a state, and what is known of it thereby.

    ``was`` is what was known before: as far as the state's row is the same, nothing else is read.
    """
    state = load(connection, scope, was)
    if state is None or not state.alive(now):
        return Snapshot(scope=scope, now=now), None
    state = _completed(connection, state, wants)
    found = view(state, wants, now, _asked(connection, state, wants) if state.entries is None else {})
    if once is not None:
        found.once = known_once(connection, state, once, now)
    return found, state


def _completed(connection: Statements, state: State, wants: Wants) -> State:
    """Return a state of which everything wanted is known, but for entries that are too many."""
    entries, mortal, logs = state.entries, state.mortal, state.logs.copy()
    if entries is None:
        # Of what is looked up by key nothing is known beforehand.
        mortal = True
        if state.entry_bytes <= wants.inline_bytes:
            entries = _entries(connection, state)
            mortal = any(entry.expires_at is not None for entry in entries.values())
    for name, count in wants.tails:
        log = logs.get(name)
        if log is not None and len(log.items) < min(count, log.head - log.first + 1):
            first = max(log.first, log.head - count + 1)
            rows = _rows(connection, log, first, log.head + 1)
            logs[name] = replace(log, items=items_of(state.scope, name, rows, first, log.head))
    return replace(state, entries=entries, mortal=mortal, logs=logs)


def view(state: State, wants: Wants, now: float, asked: Entries) -> Snapshot:
    """Return what is wanted of a state; ``asked`` are the entries of ``wants.keys`` when not all are known."""
    if not state.alive(now):
        return Snapshot(scope=state.scope, now=now)
    sections, keys, tails, inline_bytes = wants
    complete = state.entries is not None and state.entry_bytes <= inline_bytes
    if state.entries is None:
        found = asked
    elif not complete:
        found = {at: state.entries[at] for at in keys if at in state.entries}
    elif sections is None:
        found = state.entries.copy()
    else:
        found = {at: entry for at, entry in state.entries.items() if at[0] in sections or at in keys}
    if state.mortal:
        found = {at: entry for at, entry in found.items() if entry.expires_at is None or entry.expires_at > now}
    counts = dict(tails)
    return Snapshot(
        scope=state.scope,
        now=now,
        stamp=state.stamp,
        birth=state.birth,
        owner=state.owner,
        parent=state.parent,
        labels=state.labels,
        created_at=state.created,
        updated_at=state.updated,
        expires_at=state.expires,
        entries=found,
        complete=complete,
        sections=state.sections.copy(),
        logs={name: log.view(counts.get(name, 0)) for name, log in state.logs.items()},
        entry_bytes=state.entry_bytes,
    )


def _entries(connection: Statements, state: State) -> Entries:
    found = _collect(state.scope, connection.execute(ENTRIES, (state.number,)))
    sizes = [len(key) + (8 if isinstance(value, int) else len(value)) for (_, key), (value, _, _) in found.items()]
    if sum(sizes) != state.entry_bytes:
        raise damaged(state.scope, "the count of its entries' bytes")
    return found


def _asked(connection: Statements, state: State, wants: Wants) -> Entries:
    found: Entries = {}
    for section, key in wants.keys:
        if section in state.sections:
            found |= _collect(state.scope, connection.execute(ENTRY, (state.number, section, key)))
    return found


def _collect(scope: StateScope, rows: Iterable[Row]) -> Entries:
    """Return the entries of rows, the expired ones too."""
    found: Entries = {}
    for section, key, value, version, commit_id, expires, crc in rows:
        stamp = Stamp(version, commit_id)
        if entry_crc(section, key, value, stamp, expires) != crc:
            raise damaged(scope, f"{section}/{key}")
        found[section, key] = Entry(value, stamp, expires)
    return found


def known_once(connection: Statements, state: State, key: str, now: float) -> OnceRecord | None:
    """Return what an idempotency key did, within its retention."""
    row = connection.execute(ONCE, (state.number, key, now - ONCE_SECONDS)).fetchone()
    if row is None:
        return None
    found = OnceRecord(*row[:5])
    if record_crc(found.result, f"{found.key}\0{found.fingerprint}\0{found.commit_id} {found.at}") != row[5]:
        raise damaged(state.scope, f"what its idempotency key {key!r} did")
    return found


def _live(connection: Connection, scope: StateScope, now: float) -> State | None:
    state = load(connection, scope)
    return state if state is not None and state.alive(now) else None


def read_log(
    connection: Connection,
    scope: StateScope,
    name: str,
    now: float,
    *,
    start: int | None,
    end: int | None,
    limit: int | None,
) -> LogPage:
    """Return a page of a log; see `Storage.read_log`."""
    state = _live(connection, scope, now)
    log = state.logs.get(name) if state is not None else None
    if state is None or log is None:
        return LogPage(None, ())
    low = log.first if start is None else max(start, log.first)
    high = log.head + 1 if end is None else min(end, log.head + 1)
    if limit is not None and start is not None:
        high = min(high, low + limit)
    elif limit is not None:
        low = max(low, high - limit)
    rows = _rows(connection, log, low, high) if low < high else ()
    return LogPage(log.view(), items_of(scope, name, rows, low, high - 1))


def _rows(connection: Statements, log: Log, start: int, end: int) -> list[Row]:
    return connection.execute(RANGE, (log.key(start), log.key(end))).fetchall()


def find_item(connection: Connection, scope: StateScope, log: str, name: str, now: float) -> LogItem | None:
    """Return the item with a unique id."""
    state = _live(connection, scope, now)
    found = state.logs.get(log) if state is not None else None
    row = connection.execute(ITEM, (found.number, name)).fetchone() if found is not None else None
    return None if row is None else item_of(scope, log, row)


def scan(
    connection: Connection,
    scope: StateScope,
    section: str,
    now: float,
    *,
    prefix: str,
    cursor: str | None,
    limit: int,
) -> EntryPage:
    """Return live entries in the order of their keys."""
    state = _live(connection, scope, now)
    if state is None:
        return EntryPage((), None)
    conditions, values = ["section = ?", "(expires IS NULL OR expires > ?)"], [state.number, section, now]
    if prefix:
        conditions.append("key >= ?")
        values.append(prefix)
        if (after := text_after(prefix)) is not None:
            conditions.append("key < ?")
            values.append(after)
    if cursor is not None:
        conditions.append("key > ?")
        values.append(cursor)
    sql = f"{ENTRIES} AND {' AND '.join(conditions)} ORDER BY key LIMIT ?"
    found = _collect(scope, connection.execute(sql, (*values, limit + 1)))
    page = [(key, entry) for (_, key), entry in found.items()]
    return EntryPage(tuple(page[:limit]), page[limit - 1][0] if len(page) > limit else None)


def text_after(prefix: str) -> str | None:
    """Return the least text greater than every text with this prefix; ``None`` if there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return None
    # Surrogates are no characters: what follows U+D7FF is U+E000.
    following = "\ue000" if stem[-1] == "\ud7ff" else chr(ord(stem[-1]) + 1)
    return stem[:-1] + following


def outcome(connection: Connection, scope: StateScope, commit_id: int) -> Stamp | None:
    """Return the stamp a commit made, as long as the journal knows it."""
    row = connection.execute(OUTCOME, (scope.tenant, scope.kind, scope.id, commit_id)).fetchone()
    return None if row is None else Stamp(row[0], commit_id)


def journal(connection: Connection, scope: StateScope, now: float, after: int, limit: int) -> tuple[JournalRecord, ...]:
    """Return the records of a live state after a version."""
    state = _live(connection, scope, now)
    if state is None:
        return ()
    after = max(after, state.stamp.version - JOURNAL_COUNT)
    rows = connection.execute(JOURNAL, (state.number, after, limit)).fetchall()
    return tuple(_record(connection, scope, row) for row in rows)


def _record(connection: Connection, scope: StateScope, row: Row) -> JournalRecord:
    place, version, commit_id, at, record, ranges, with_removed, crc = row
    if record_crc(record, f"{version} {commit_id} {at} {ranges}") != crc:
        raise damaged(scope, f"the journal record of version {version}")
    removed: dict[str, list[LogItem]] = {}
    if with_removed:
        for log, *item in connection.execute(REMOVED, (place,)):
            removed.setdefault(log, []).append(item_of(scope, log, tuple(item)))
    told = {name: (first, last) for name, (first, last) in orjson.loads(ranges).items()} if ranges else {}
    gone = {name: tuple(items) for name, items in removed.items()}
    return JournalRecord(Stamp(version, commit_id), at, record, told, gone)


def failures(connection: Connection, scope: StateScope, now: float) -> tuple[bytes, ...]:
    """Return what failed turns left, oldest first."""
    sql = "SELECT record, at, crc FROM failures WHERE address = ? AND at > ? ORDER BY number"
    found = connection.execute(sql, (scope.text, now - FAILURE_SECONDS)).fetchall()
    if any(record_crc(record, str(at)) != crc for record, at, crc in found):
        raise damaged(scope, "the record of a failed turn")
    return tuple(record for record, _, _ in found)


def feed(connection: Connection, after: str | None, limit: int) -> tuple[FeedItem, ...]:
    """Return commits in commit order."""
    return tuple(
        FeedItem(str(place), scope_of(tenant, kind, name), None if commit_id is None else Stamp(version, commit_id), at)
        for place, tenant, kind, name, version, commit_id, at in connection.execute(FEED, (int(after or 0), limit))
    )
