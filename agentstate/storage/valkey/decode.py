"""From the scripts' replies, and the bytes at rest, to the values of the protocol.

Whatever can't be read is a `DamagedStateError`: it was not written by `commit.lua`.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import unquote

from agentstate.errors import DamagedStateError
from agentstate.storage.protocol import (
    Committed,
    Entry,
    Holder,
    Lease,
    LogItem,
    LogView,
    OnceRecord,
    Snapshot,
    Stamp,
)
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import LeaseRequest, Wants

Given = ParamSpec("Given")
Result = TypeVar("Result")
Record = dict[bytes, bytes]


def damaged(scope: StateScope, what: object) -> DamagedStateError:
    """Return the error for stored bytes that can't be what was written."""
    return DamagedStateError(
        f"{scope} is damaged: {what}.",
        scope=scope,
        remedy="Restore it from a backup, or drop it; it was left as it is.",
    )


def lacking(scope: StateScope, what: bytes) -> DamagedStateError:
    """Return the error for a state a part of which is gone, as its record tells."""
    return damaged(scope, f"less of its {unquote(what.decode())} is there than its record says")


def reading(
    read: Callable[Concatenate[StateScope, Given], Result],
) -> Callable[Concatenate[StateScope, Given], Result]:
    """Turn what goes wrong while decoding into `DamagedStateError`."""

    @wraps(read)
    def guarded(scope: StateScope, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return read(scope, *args, **kwargs)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise damaged(scope, repr(error)) from error

    return guarded


@lru_cache(maxsize=1024)
def plain_name(encoded: bytes) -> str:
    """Return the name that `name` encoded."""
    return unquote(encoded.decode(), errors="strict")


@lru_cache(maxsize=4096)
def stamp_of(raw: bytes) -> Stamp:
    """Return the stamp that is written ``version-commit``."""
    version, _, commit = raw.partition(b"-")
    return new(Stamp, (int(version), int(commit, 16)))


@lru_cache(maxsize=4096)
def _record_field(field: bytes) -> tuple[bytes, str]:
    """Return what a field of a record is about, and the section or log of that name."""
    kind, colon, encoded = field.partition(b":")
    return (kind, plain_name(encoded)) if colon else (b"", "")


@lru_cache(maxsize=4096)
def _entry_field(field: bytes) -> tuple[bytes, tuple[str, str]] | None:
    """Return the field with the value, and section and key, from the field that says of an entry what it is."""
    if field[:1] != b"#":
        return None
    section, _, key = field[1:].partition(b"/")
    return field[1:], (plain_name(section), key.decode())


def record_of(flat: list[bytes]) -> Record:
    """Return a record from its fields and values."""
    pairs = iter(flat)
    return dict(zip(pairs, pairs, strict=True))


def time_of(raw: bytes | None) -> float | None:
    """Return a time that may be absent."""
    return float(raw) if raw else None


def text_of(raw: bytes | None) -> str | None:
    """Return text that may be absent."""
    return None if raw is None else raw.decode()


def labels_of(raw: bytes | None) -> dict[str, str]:
    """Return labels that may be absent."""
    if not raw:
        return {}
    return {unquote(key): unquote(value) for key, value in (pair.split("=") for pair in raw.decode().split("&"))}


def log_view(raw: bytes, tail: list[bytes] | None = None, now: float = 0.0) -> LogView:
    """Return the head of a log from its record, with its last items."""
    stamp, first, last, next_seq, size = raw.split(b" ")
    head = int(last)
    items = _tail(tail, head, now) if tail else ()
    return new(LogView, (int(first), head, int(next_seq), stamp_of(stamp), int(size), items))


def log_item(raw: bytes, position: int, now: float | None) -> LogItem:
    """Return an item; one that has expired by ``now`` is empty, as if it had been swept."""
    seq, marks, identifier, value = raw.split(b" ", 3)
    escaped, expires = b"%" in marks, marks.lstrip(b"u%")
    item_id = unquote(identifier.decode(), errors="strict") if escaped else identifier.decode()
    if expires == b"-":
        return LogItem(int(seq), position, item_id, value, None)
    expires_at = float(expires)
    gone = now is not None and expires_at <= now
    return LogItem(int(seq), position, item_id, b"" if gone else value, expires_at)


def entry_of(value: bytes, about: bytes, now: float) -> Entry | None:
    """Return an entry that hasn't expired by ``now``."""
    stamp, _, kind = about.split(b" ")
    if kind == b"v":
        return new(Entry, (value, stamp_of(stamp), None))
    expires_at = float(kind[1:]) if len(kind) > 1 else None
    if expires_at is not None and expires_at <= now:
        return None
    return Entry(int(value) if kind[:1] == b"n" else value, stamp_of(stamp), expires_at)


def _entries(flat: list[bytes], wants: Wants, now: float) -> dict[tuple[str, str], Entry]:
    values = record_of(flat)
    left = len(values)
    wanted, keys = wants.sections, wants.keys
    found: dict[tuple[str, str], Entry] = {}
    for field, about in values.items():
        named = _entry_field(field)
        if named is None:
            continue
        left -= 2
        plain, at = named
        if wanted is None or at[0] in wanted or at in keys:
            entry = entry_of(values[plain], about, now)
            if entry is not None:
                found[at] = entry
    if left:
        raise ValueError("an entry lacks its value or its stamp")
    return found


@reading
def once_of(scope: StateScope, key: str, raw: bytes) -> OnceRecord:
    """Return what an idempotency key did."""
    del scope
    at, commit, size, kind, rest = raw.split(b" ", 4)
    length = int(size)
    result = rest[length + 1 :] if kind == b"=" else None
    return OnceRecord(key, rest[:length].decode(), int(commit, 16), result, float(at))


@reading
def snapshot_of(
    scope: StateScope, reply: list[Any], wants: Wants, request: LeaseRequest | None, once: str | None, retention: float
) -> Snapshot:
    """Return what ``read.lua`` replied."""
    about = reply[0]
    if about == b"held":
        return Snapshot(scope=scope, now=float(reply[1]), holder=Holder(reply[3].decode(), float(reply[2])))
    if about == b"damaged":
        raise lacking(scope, reply[1])
    said, expires, *lent = about.split()
    now, lease = float(said), None
    if request is not None:
        counter, until = lent
        lease = new(Lease, (scope, request.nonce, int(counter), float(until)))
    if len(reply) == 1:
        return Snapshot(scope=scope, now=now, lease=lease)
    _, flat, entries, raw_once, *tails = reply
    record = record_of(flat)
    sections, logs = heads_of(record, {log: items for (log, _), items in zip(wants.tails, tails, strict=True)}, now)
    known = once_of(scope, once, raw_once) if once is not None and raw_once is not None else None
    stamp, updated, size, birth, created = head_of(record[b"head"])
    owner, parent = record.get(b"owner"), record.get(b"parent")
    return Snapshot(
        scope=scope,
        now=now,
        stamp=stamp,
        birth=birth,
        owner=None if owner is None else owner.decode(),
        parent=None if parent is None else parent.decode(),
        labels=labels_of(record.get(b"labels")),
        created_at=created,
        updated_at=updated,
        expires_at=None if expires == b"-" else float(expires),
        entries=_entries(entries, wants, now),
        complete=size <= wants.inline_bytes,
        sections=sections,
        logs=logs,
        entry_bytes=size,
        lease=lease,
        once=known if known is not None and known.at > now - retention else None,
    )


def head_of(raw: bytes) -> tuple[Stamp, float, int, int, float]:
    """Return stamp, time of the last change, bytes of the entries, birth and time of creation from a head."""
    stamp, updated, size, birth, created = raw.split(b" ")
    return stamp_of(stamp), float(updated), int(size), int(birth, 16), float(created)


def heads_of(
    record: Record, tails: Mapping[str, list[bytes]], now: float
) -> tuple[dict[str, Stamp], dict[str, LogView]]:
    """Return the stamps of sections, and the heads of logs with their last items."""
    sections: dict[str, Stamp] = {}
    logs: dict[str, LogView] = {}
    for field, raw in record.items():
        kind, named = _record_field(field)
        if kind == b"log":
            logs[named] = log_view(raw, tails.get(named), now)
        elif kind == b"section":
            sections[named] = stamp_of(raw)
    return sections, logs


def _tail(items: list[bytes], head: int, now: float) -> tuple[LogItem, ...]:
    # As `log_item`, written out: this is most of what a turn's read costs here.
    found: list[LogItem] = []
    position = head - len(items)
    for raw in items:
        position += 1
        seq, marks, identifier, value = raw.split(b" ", 3)
        if marks == b"-":
            found.append(new(LogItem, (int(seq), position, identifier.decode(), value, None)))
        else:
            found.append(log_item(raw, position, now))
    return tuple(found)


@reading
def committed_of(
    scope: StateScope, reply: bytes, commit_id: int, logs: Collection[str], counters: Collection[tuple[str, str]]
) -> Committed:
    """Return what ``commit.lua`` replied to a commit that was done, now or when it was sent before."""
    del scope
    if reply == b"-":
        return Committed(None, 0, {}, {})
    version, birth, expires, *words = reply.split(b" ")
    stamp, at = new(Stamp, (int(version), commit_id)), 0
    views: dict[str, LogView] = {}
    for log in logs:
        if words[at] == b"-":
            at += 1
        else:
            first, head, next_seq, size = map(int, words[at : at + 4])
            views[log] = new(LogView, (first, head, next_seq, stamp, size, ()))
            at += 4
    sums = {one: int(word) for one, word in zip(counters, words[at:], strict=True)} if counters else {}
    return new(Committed, (stamp, int(birth, 16), views, sums, None if expires == b"-" else float(expires)))
