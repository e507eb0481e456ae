"""From the scripts' replies to the values of the protocol: pages, journals, feeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    EntryPage,
    FeedItem,
    JournalRecord,
    LogItem,
    LogPage,
    ScopeInfo,
    Swept,
)
from agentstate.storage.valkey.decode import (
    Record,
    entry_of,
    head_of,
    heads_of,
    labels_of,
    lacking,
    log_item,
    log_view,
    plain_name,
    reading,
    record_of,
    stamp_of,
    text_of,
    time_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentstate.storage.protocol import Entry


@reading
def journal_of(scope: StateScope, records: Iterable[bytes]) -> tuple[JournalRecord, ...]:
    """Return the records of a journal."""
    del scope
    return tuple(map(_journal_record, records))


def _journal_record(raw: bytes) -> JournalRecord:
    head, _, body = raw.partition(b"\n")
    stamp, at, removed_size, *appended = head.split()
    start = int(removed_size)
    words = iter(appended)
    ranges = {plain_name(log): (int(next(words)), int(next(words))) for log in words}
    removed: dict[str, list[LogItem]] = {}
    for log, item in _removed(body[:start]):
        removed.setdefault(log, []).append(item)
    gone = {log: tuple(items) for log, items in removed.items()}
    return JournalRecord(stamp_of(stamp), float(at), body[start:], ranges, gone)


def _removed(raw: bytes) -> Iterator[tuple[str, LogItem]]:
    at = 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        log, position, size = raw[at:end].split(b" ")
        at = end + 1 + int(size)
        yield plain_name(log), log_item(raw[end + 1 : at], int(position), None)


def feed_of(entries: Iterable[list[Any]]) -> tuple[FeedItem, ...]:
    """Return the items of a feed."""
    return tuple(_feed_item(identifier, record_of(flat)) for identifier, flat in entries)


def _feed_item(identifier: bytes, record: Record) -> FeedItem:
    raw, at, address = record[b"is"].split(b" ", 2)
    stamp = None if raw == b"-" else stamp_of(raw)
    return FeedItem(identifier.decode(), StateScope.parse(address.decode()), stamp, float(at))


@reading
def info_of(scope: StateScope, flat: list[bytes]) -> ScopeInfo | None:
    """Return what a listing says of a state; ``None`` when it has gone."""
    record = record_of(flat)
    if b"head" not in record:
        return None
    _, logs = heads_of(record, {}, 0.0)
    stamp, updated, size, _, created = head_of(record[b"head"])
    return ScopeInfo(
        scope,
        stamp,
        text_of(record.get(b"owner")),
        created,
        updated,
        time_of(record.get(b"expires")),
        labels_of(record.get(b"labels")),
        size,
        {log: view.head - view.first + 1 for log, view in logs.items()},
    )


@reading
def log_page_of(scope: StateScope, reply: list[Any]) -> LogPage:
    """Return what ``log.lua`` replied."""
    if not reply:
        return LogPage(None, ())
    if reply[0] == b"damaged":
        raise lacking(scope, reply[1])
    raw, low, items, now = reply
    at = float(now)
    return LogPage(log_view(raw), tuple([log_item(one, position, at) for position, one in enumerate(items, int(low))]))


@reading
def found_item_of(scope: StateScope, reply: list[Any]) -> LogItem | None:
    """Return what ``find.lua`` replied."""
    if not reply:
        return None
    if reply[0] == b"damaged":
        raise lacking(scope, reply[1])
    position, raw, now = reply
    item = log_item(raw, int(position), None)
    return None if item.expires_at is not None and item.expires_at <= float(now) else item


@reading
def entry_page_of(scope: StateScope, reply: list[Any], now: float) -> EntryPage:
    """Return what ``scan.lua`` replied."""
    del scope
    flat, more = reply
    found: list[tuple[str, Entry]] = []
    for field, value, about in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        entry = entry_of(value, about, now)
        if entry is not None:
            found.append((field.partition(b"/")[2].decode(), entry))
    return EntryPage(tuple(found), found[-1][0] if more else None)


def swept_of(before: Swept, reply: list[Any]) -> Swept:
    """Return what has been swept with what ``sweep.lua`` replied."""
    addresses, entries, items, more = reply
    scopes = tuple(StateScope.parse(one.decode()) for one in addresses)
    return Swept((*before.scopes, *scopes), before.entries + entries, before.items + items, done=not more)
