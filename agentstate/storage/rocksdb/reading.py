"""Reads of a RocksDB store, made while its lock is held, or over a view of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.storage.protocol import (
    ONCE_SECONDS,
    Entry,
    EntryPage,
    LogItem,
    OnceRecord,
    Snapshot,
    Wants,
)
from agentstate.storage.rocksdb.keys import (
    after_prefix,
    counted,
    entry_key,
    entry_name,
    id_key,
    item_key,
    number_prefix,
    once_key,
    section_prefix,
)
from agentstate.storage.rocksdb.rows import (
    Log,
    State,
    damaged,
    unpack_entry,
    unpack_item,
    unpack_items,
    unpacked_json,
    unpacked_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentstate.storage.rocksdb.engine import Engine

__all__ = [
    "Range",
    "few_items",
    "find_item",
    "find_position",
    "items_between",
    "known_once",
    "once_at",
    "page_range",
    "scan",
    "snapshot",
    "tails_of",
]

Range = tuple[int, int]


def snapshot(engine: Engine, state: State, wants: Wants, now: float, once: str | None) -> Snapshot:
    """Return what was wanted of a live state, but the items of its logs."""
    scope, complete = state.scope, state.entry_bytes <= wants.inline_bytes
    return Snapshot(
        scope=scope,
        now=now,
        stamp=state.stamp,
        birth=state.birth,
        owner=state.owner,
        parent=state.parent,
        labels=state.labels,
        created_at=state.created,
        updated_at=state.updated,
        expires_at=state.expires,
        entries=_entries(engine, state, wants, now, complete=complete),
        complete=complete,
        sections=state.sections.copy(),
        logs={name: log.view() for name, log in state.logs.items()},
        entry_bytes=state.entry_bytes,
        once=known_once(engine, state, once, now) if once is not None else None,
    )


def _entries(engine: Engine, state: State, wants: Wants, now: float, *, complete: bool) -> dict[tuple[str, str], Entry]:
    found: dict[tuple[str, str], Entry] = {}
    if complete and state.sections:
        prefix = number_prefix(b"e", state.number)
        for key, row in engine.rows(prefix, after_prefix(prefix)):
            at = entry_name(key)
            if wants.sections is None or at[0] in wants.sections:
                _collect(found, at, unpack_entry(state.scope, key, row), now)
    for at in wants.keys:
        if at not in found and at[0] in state.sections:
            wanted = entry_key(state.number, *at)
            value = engine.get(wanted)
            if value is not None:
                _collect(found, at, unpack_entry(state.scope, wanted, value), now)
    return found


def _collect(into: dict[tuple[str, str], Entry], at: tuple[str, str], entry: Entry, now: float) -> None:
    if entry.expires_at is None or entry.expires_at > now:
        into[at] = entry


def scan(
    engine: Engine, state: State, *, section: str, prefix: str, cursor: str | None, now: float, limit: int
) -> Callable[[], EntryPage]:
    """Return what makes a page of live entries in the order of their keys, as they are now."""
    stem = section_prefix(state.number, section)
    start, end = stem + prefix.encode(), after_prefix(stem + prefix.encode())
    if cursor is not None:
        start = max(start, stem + cursor.encode() + b"\0")
    rows = engine.walk(start, end)

    def page() -> EntryPage:
        found: list[tuple[str, Entry]] = []
        for key, row in rows:
            entry = unpack_entry(state.scope, key, row)
            if entry.expires_at is None or entry.expires_at > now:
                if len(found) == limit:
                    return EntryPage(tuple(found), found[-1][0])
                found.append((entry_name(key)[1], entry))
        return EntryPage(tuple(found), None)

    return page


# -- logs ---------------------------------------------------------------------------------


def page_range(log: Log, start: int | None, end: int | None, limit: int | None) -> Range:
    """Return which positions of a log are asked for: from the first on, before the second."""
    low = log.first if start is None else max(start, log.first)
    high = log.head + 1 if end is None else min(end, log.head + 1)
    if limit is not None and start is not None:
        high = min(high, low + limit)
    elif limit is not None:
        low = max(low, high - limit)
    return low, max(high, low)


def tails_of(state: State, wants: Wants) -> dict[str, Range]:
    """Return which positions the wanted tails are."""
    known = ((name, state.logs.get(name), count) for name, count in wants.tails)
    return {
        name: (max(log.first, log.head - count + 1), log.head + 1)
        for name, log, count in known
        if log is not None and count > 0
    }


def few_items(engine: Engine, state: State, log: Log, start: int, end: int) -> tuple[LogItem, ...]:
    """Return the items with ``start <= position < end``, which must all be there, where they are few."""
    if start >= end:
        return ()
    first, number = item_key(state.number, log.number, start), log.number
    rows = engine.rows(first, item_key(state.number, number, end))
    # Positions are whole numbers: as many rows as places, the first one in its place, are all of them.
    if len(rows) != end - start or rows[0][0] != first:
        raise damaged(state.scope, "a log, which lacks items,")
    return unpack_items(state.scope, rows, start)


def items_between(engine: Engine, state: State, log: Log, start: int, end: int) -> Iterator[tuple[bytes, LogItem, int]]:
    """Return the items with ``start <= position < end``, which must all be there, with their keys and marks.

    They are as they are now, and may be taken later.
    """
    if start >= end:
        return iter(())
    rows = engine.walk(item_key(state.number, log.number, start), item_key(state.number, log.number, end))
    return _items(state, log, rows, start, end)


def _items(
    state: State, log: Log, rows: Iterator[tuple[bytes, bytes]], start: int, end: int
) -> Iterator[tuple[bytes, LogItem, int]]:
    position = start
    for key, row in rows:
        if key != item_key(state.number, log.number, position):
            break
        yield key, *unpack_item(state.scope, key, row, position)
        position += 1
    if position != end:
        raise damaged(state.scope, f"a log, which lacks item {position},")


def find_position(engine: Engine, state: State, log: Log, name: str) -> int | None:
    """Return where the item with a unique id is."""
    key = id_key(state.number, log.number, name)
    row = engine.get(key)
    return None if row is None else unpacked_json(state.scope, key, row, "the index of its items")


def find_item(engine: Engine, state: State, log: Log, name: str) -> LogItem | None:
    """Return the item with a unique id."""
    position = find_position(engine, state, log, name)
    if position is None:
        return None
    return next(item for _, item, _ in items_between(engine, state, log, position, position + 1))


# -- idempotency keys ---------------------------------------------------------------------


def known_once(engine: Engine, state: State, key: str, now: float) -> OnceRecord | None:
    """Return what an idempotency key did, within its retention."""
    if not state.once_last:
        return None
    at = once_key(state.number, key)
    row = engine.get(at)
    if row is None:
        return None
    (fingerprint, commit_id, kept, when, _), result = unpacked_record(state.scope, at, row, "an idempotency key")
    if when <= now - ONCE_SECONDS:
        return None
    return OnceRecord(key, fingerprint, commit_id, result if kept else None, when)


def once_at(engine: Engine, state: State, count: int) -> tuple[str, float, int] | None:
    """Return the idempotency key that came as number ``count``: its name, when it came last, and as which."""
    order = counted(b"q", state.number, count)
    row = engine.get(order)
    if row is None:
        return None
    name: str = unpacked_json(state.scope, order, row, "an idempotency key")
    key = once_key(state.number, name)
    row = engine.get(key)
    if row is None:
        return name, 0.0, count
    told, _ = unpacked_record(state.scope, key, row, "an idempotency key")
    return name, told[3], told[4]
