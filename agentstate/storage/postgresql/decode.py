"""Rows of the stored functions as the core takes them; what isn't as it was written is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from agentstate.errors import DamagedStateError
from agentstate.scope import StateScope
from agentstate.storage.postgresql.seals import damaged, entry_crc, item_crc, once_crc
from agentstate.storage.protocol import (
    Committed,
    Entry,
    FeedItem,
    Holder,
    JournalRecord,
    Lease,
    LogItem,
    LogView,
    OnceRecord,
    ScopeInfo,
    Snapshot,
    Stamp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentstate.storage.postgresql.encode import CommitCall
    from agentstate.storage.protocol import Wants

__all__ = [
    "committed_of",
    "entries_of",
    "feed_of",
    "info_of",
    "items_of",
    "journal_of",
    "scope_of",
    "snapshot_of",
    "views_of",
]

NO_VIEWS: dict[str, LogView] = {}


def scope_of(tenant: str, kind: str, name: str) -> StateScope:
    """Return the scope of a row; ``name`` is what `StateScope.id` was."""
    if kind == "step":
        return StateScope.make(kind, *StateScope.parse(f"step:{name}").ids, tenant=tenant)
    return StateScope(kind, (name,) if name else (), tenant)


def view_of(head: Sequence[int], items: tuple[LogItem, ...] = ()) -> LogView:
    """Return the head of a log as callers see it."""
    first, last, following, size, version, commit_id = head
    return LogView(first, last, following, Stamp(version, commit_id), size, items)


def views_of(scope: StateScope, logs: str) -> dict[str, LogView]:
    """Return the heads of logs."""
    if logs == "{}":
        return {}
    try:
        return {name: view_of(head) for name, head in orjson.loads(logs).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(scope, "the heads of its logs") from error


def snapshot_of(scope: StateScope, row: Any, wants: Wants, lease: Any, once: str | None) -> Snapshot:
    """Return what a read found.

    Raises:
        DamagedStateError: it isn't what was written.
    """
    now, counter, until, holder, since, _, _, version, commit_id, birth, created, updated, *rest = row
    if holder is not None:
        return Snapshot(scope=scope, now=now, holder=Holder(holder, since))
    taken = None if counter is None else Lease(scope, lease.nonce, counter, until)
    if version is None:
        return Snapshot(scope=scope, now=now, lease=taken)
    expires, entry_bytes, owner, parent, labels, sections, logs, *rest = rest
    complete = entry_bytes <= wants.inline_bytes
    entries, size = entries_of(scope, rest[:8], now)
    if complete and wants.sections is None and size != entry_bytes:
        raise damaged(scope, "the count of its entries' bytes")
    views = views_of(scope, logs)
    _add_tails(scope, views, wants, rest[8:15])
    try:
        stamps = {name: Stamp(*stamp) for name, stamp in orjson.loads(sections).items()} if sections != "{}" else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(scope, "the stamps of its sections") from error
    return Snapshot(
        scope=scope,
        now=now,
        stamp=Stamp(version, commit_id),
        birth=birth,
        owner=owner,
        parent=parent,
        labels={} if labels is None else orjson.loads(labels),
        created_at=created,
        updated_at=updated,
        expires_at=expires,
        entries=entries,
        complete=complete,
        sections=stamps,
        logs=views,
        entry_bytes=entry_bytes,
        lease=taken,
        once=None if once is None or rest[15] is None else _once_of(scope, once, rest[15:]),
    )


def entries_of(scope: StateScope, columns: Sequence[Any], now: float) -> tuple[dict[tuple[str, str], Entry], int]:
    """Return the live entries, and the bytes of all, live or not."""
    found: dict[tuple[str, str], Entry] = {}
    size = 0
    if columns[0] is None:
        return found, size
    for section, key, value, counter, version, commit_id, expires, crc in zip(*columns, strict=True):
        if value is None:
            size += len(key) + 8
        else:
            size += len(key) + len(value)
            if entry_crc(section, key, value) != crc:
                raise damaged(scope, f"{section}/{key}")
        if expires is None or expires > now:
            found[section, key] = Entry(counter if value is None else value, Stamp(version, commit_id), expires)
    return found, size


def _add_tails(scope: StateScope, views: dict[str, LogView], wants: Wants, columns: Sequence[Any]) -> None:
    if not wants.tails:
        return
    rows = list(zip(*columns, strict=True)) if columns[0] is not None else []
    for name, count in wants.tails:
        view = views.get(name)
        if view is None or count <= 0:
            continue
        mine = rows if len(wants.tails) == 1 else [row for row in rows if row[0] == name]
        low = max(view.first, view.head - count + 1)
        views[name] = view._replace(items=items_of(scope, name, (row[1:] for row in mine), low, view.head))


def items_of(scope: StateScope, log: str, rows: Iterable[Sequence[Any]], first: int, last: int) -> tuple[LogItem, ...]:
    """Return the items of rows that must be those from position ``first`` to ``last``, all of them."""
    items: list[LogItem] = []
    for seq, position, name, value, expires, crc in rows:
        # An expired item that was swept is empty.
        if item_crc(value) != crc and (value or expires is None):
            raise damaged(scope, f"item {position} of {log}")
        items.append(LogItem(seq, position, name, value, expires))
    if len(items) != max(last - first + 1, 0):
        raise damaged(scope, f"{log}, which lacks items,")
    return tuple(items)


def _once_of(scope: StateScope, key: str, row: Sequence[Any]) -> OnceRecord:
    fingerprint, commit_id, result, at, crc = row
    if once_crc(key, fingerprint, result) != crc:
        raise damaged(scope, f"what its idempotency key {key!r} did")
    return OnceRecord(key, fingerprint, commit_id, result, at)


def committed_of(call: CommitCall, row: Any) -> dict[StateScope, Committed]:
    """Return what a commit made of each part."""
    done: dict[StateScope, Committed] = {}
    sums, taken = row["sums"], 0
    for number, part in enumerate(call.parts):
        counters = call.counters[number]
        version, touched = row["versions"][number], row["touched"][number]
        if version is None:
            done[part.scope] = Committed(None, 0, {}, {})
        else:
            values = dict(zip(counters, sums[taken : taken + len(counters)], strict=True)) if counters else {}
            views = views_of(part.scope, touched) if touched != "{}" else NO_VIEWS
            stamp = Stamp(version, row["commits"][number])
            done[part.scope] = Committed(stamp, row["births"][number], views, values, row["ends"][number])
        taken += len(counters)
    return done


def journal_of(scope: StateScope, rows: Iterable[Any]) -> tuple[JournalRecord, ...]:
    """Return the records of a journal."""
    records: list[JournalRecord] = []
    for version, commit_id, at, record, ranges, crc, *removed in rows:
        if item_crc(record) != crc:
            raise damaged(scope, f"the journal record of version {version}")
        gone: dict[str, list[LogItem]] = {}
        if removed[0] is not None:
            for log, seq, position, name, value, expires, seal in zip(*removed, strict=True):
                (item,) = items_of(scope, log, [(seq, position, name, value, expires, seal)], position, position)
                gone.setdefault(log, []).append(item)
        told = {name: (first, last) for name, (first, last) in orjson.loads(ranges).items()} if ranges else {}
        kept = {name: tuple(items) for name, items in gone.items()}
        records.append(JournalRecord(Stamp(version, commit_id), at, record, told, kept))
    return tuple(records)


def info_of(tenant: str, row: Any) -> ScopeInfo:
    """Return what a listing says of a state."""
    kind, name, version, commit_id, owner, created, updated, expires, labels, entry_bytes, logs = row
    try:
        scope = scope_of(tenant, kind, name)
    except ValueError as error:
        raise DamagedStateError(f"{kind}:{name} is no address of a state.") from error
    lengths = {log: view.head - view.first + 1 for log, view in views_of(scope, logs).items()}
    told: dict[str, str] = {} if labels is None else orjson.loads(labels)
    return ScopeInfo(scope, Stamp(version, commit_id), owner, created, updated, expires, told, entry_bytes, lengths)


def feed_of(columns: Sequence[Any]) -> tuple[FeedItem, ...]:
    """Return a page of a feed."""
    if columns[0] is None:
        return ()
    return tuple(
        FeedItem(f"{xid}.{number}", scope_of(*place), None if commit_id is None else Stamp(version, commit_id), at)
        for xid, number, *place, version, commit_id, at in zip(*columns, strict=True)
    )
