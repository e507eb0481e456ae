"""From the scripts' replies, and the bytes at rest, to the values of the protocol.

Whatever can't be read is a `DamagedStateError`: it was not written by `commit.lua`.
"""

from __future__ import annotations

from functools import lru_cache, partial, wraps
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
from agentstate.storage.valkey.encode import name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import LeaseRequest, Wants

Given = ParamSpec("Given")
Result = TypeVar("Result")
Record = dict[bytes, bytes]

# What `LogItem(...)` does, without the call of a Python function in between.
_log_item: Callable[[tuple[int, int, str, bytes, float | None]], LogItem] = partial(vars(tuple)["__new__"], LogItem)


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


@lru_cache(maxsize=1024)
def stamp_of(raw: bytes) -> Stamp:
    """Return the stamp that is written ``version-commit``."""
    version, _, commit = raw.partition(b"-")
    return Stamp(int(version), int(commit, 16))


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
    first, last, next_seq, size, stamp = raw.split(b" ")
    head = int(last)
    items = _tail(tail, head, now) if tail else ()
    return LogView(int(first), head, int(next_seq), stamp_of(stamp), int(size), items)


def item_id_of(raw: bytes) -> str:
    """Return the id that `item_id` encoded."""
    return unquote(raw.decode(), errors="strict") if b"%" in raw else raw.decode()


def log_item(raw: bytes, position: int, now: float | None) -> LogItem:
    """Return an item; one that has expired by ``now`` is empty, as if it had been swept."""
    seq, expires, _, identifier, value = raw.split(b" ", 4)
    if expires == b"-":
        return LogItem(int(seq), position, item_id_of(identifier), value, None)
    expires_at = float(expires)
    gone = now is not None and expires_at <= now
    return LogItem(int(seq), position, item_id_of(identifier), b"" if gone else value, expires_at)


def entry_of(value: bytes, about: bytes, now: float) -> Entry | None:
    """Return an entry that hasn't expired by ``now``."""
    stamp, kind, size = about.split(b" ", 2)
    expires_at = None
    if b" " in size:
        expires_at = float(size.partition(b" ")[2])
        if expires_at <= now:
            return None
    return Entry(int(value) if kind == b"n" else value, stamp_of(stamp), expires_at)


def _entries(flat: list[bytes], wants: Wants, now: float) -> dict[tuple[str, str], Entry]:
    values = record_of(flat)
    left = len(values)
    wanted = None if wants.sections is None else {*wants.sections}
    found: dict[tuple[str, str], Entry] = {}
    for field, about in values.items():
        if field[:1] != b"#":
            continue
        left -= 2
        plain = field[1:]
        section, _, key = plain.partition(b"/")
        at = (plain_name(section), key.decode())
        if wanted is not None and at[0] not in wanted and at not in wants.keys:
            continue
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
    now = float(reply[0])
    if reply[1] == b"held":
        return Snapshot(scope=scope, now=now, holder=Holder(reply[2].decode(), float(reply[3])))
    if reply[1] == b"damaged":
        raise lacking(scope, reply[2])
    lease = None
    if request is not None:
        counter, until = reply[1].split(b" ")
        lease = Lease(scope, request.nonce, int(counter), float(until))
    if len(reply) == 2:  # noqa: PLR2004 - an absent state has no more to say
        return Snapshot(scope=scope, now=now, lease=lease)
    _, _, expires, flat, entries, tails, raw_once = reply
    record = record_of(flat)
    sections, logs = heads_of(record, {log: items for (log, _), items in zip(wants.tails, tails, strict=True)}, now)
    known = once_of(scope, once, raw_once) if once is not None and raw_once is not None else None
    stamp, updated, size = head_of(record[b"head"])
    birth, created = born_of(record[b"born"])
    return Snapshot(
        scope=scope,
        now=now,
        stamp=stamp,
        birth=birth,
        owner=text_of(record.get(b"owner")),
        parent=text_of(record.get(b"parent")),
        labels=labels_of(record.get(b"labels")),
        created_at=created,
        updated_at=updated,
        expires_at=time_of(expires),
        entries=_entries(entries, wants, now),
        complete=size <= wants.inline_bytes,
        sections=sections,
        logs=logs,
        entry_bytes=size,
        lease=lease,
        once=known if known is not None and known.at > now - retention else None,
    )


def head_of(raw: bytes) -> tuple[Stamp, float, int]:
    """Return stamp, time of the last change and entry bytes from a record's head."""
    stamp, updated, size = raw.split(b" ")
    return stamp_of(stamp), float(updated), int(size)


def born_of(raw: bytes) -> tuple[int, float]:
    """Return birth and time of creation."""
    birth, created = raw.split(b" ")
    return int(birth, 16), float(created)


def heads_of(
    record: Record, tails: Mapping[str, list[bytes]], now: float
) -> tuple[dict[str, Stamp], dict[str, LogView]]:
    """Return the stamps of sections, and the heads of logs with their last items."""
    sections: dict[str, Stamp] = {}
    logs: dict[str, LogView] = {}
    for field, raw in record.items():
        if field[:4] == b"log:":
            log = plain_name(field[4:])
            logs[log] = log_view(raw, tails.get(log), now)
        elif field[:8] == b"section:":
            sections[plain_name(field[8:])] = stamp_of(raw)
    return sections, logs


def _tail(items: list[bytes], head: int, now: float) -> tuple[LogItem, ...]:
    # As `log_item`, written out: this is most of what a turn's read costs here.
    found: list[LogItem] = []
    position = head - len(items)
    for raw in items:
        position += 1
        seq, expires, _, identifier, value = raw.split(b" ", 4)
        if expires == b"-" and b"%" not in identifier:
            found.append(_log_item((int(seq), position, identifier.decode(), value, None)))
        else:
            found.append(log_item(raw, position, now))
    return tuple(found)


@reading
def committed_of(
    scope: StateScope, reply: list[Any], commit_id: int, logs: list[str], counters: list[Any]
) -> Committed:
    """Return what ``commit.lua`` replied to a commit that was done, now or when it was sent before."""
    del scope
    if reply[0] == b"dropped":
        return Committed(None, 0, {}, {})
    if reply[0] == b"again":
        return _done_before(reply[1], record_of(reply[2]), commit_id, logs, counters)
    _, version, birth, expires, *rest = reply
    stamp = Stamp(int(version), commit_id)
    views: dict[str, LogView] = {}
    for log, raw in zip(logs, rest, strict=False):
        if raw:
            first, head, next_seq, size = raw.split(b" ")
            views[log] = LogView(int(first), int(head), int(next_seq), stamp, int(size))
    sums = {at: int(value) for at, value in zip(counters, rest[len(logs) :], strict=True)}
    return Committed(stamp, int(birth, 16), views, sums, time_of(expires))


def _done_before(known: bytes, record: Record, commit_id: int, logs: list[str], counters: list[Any]) -> Committed:
    version, heads, sums = known.split(b" ")
    if version == b"-":
        return Committed(None, 0, {}, {})
    stamp = Stamp(int(version), commit_id)
    views: dict[str, LogView] = {}
    for log, head in zip(logs, heads.split(b","), strict=False):
        raw = record.get(b"log:" + name(log).encode())
        if head != b"-" and raw is not None:
            # What others did since may show in the rest; the head is where this commit left it.
            views[log] = log_view(raw)._replace(head=int(head), stamp=stamp)
    values = {at: int(value) for at, value in zip(counters, sums.split(b","), strict=False)}
    birth = born_of(record[b"born"])[0] if b"born" in record else 0
    return Committed(stamp, birth, views, values, time_of(record.get(b"expires")))
