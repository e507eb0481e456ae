"""The head of a state in a RocksDB store, with all that lists it: saved, and removed; and failed turns."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.protocol import FAILURE_COUNT, FAILURE_SECONDS
from agentstate.storage.rocksdb.history import add_to_feed, last_commits
from agentstate.storage.rocksdb.keys import (
    NUMBER,
    TIME,
    after_prefix,
    expiry_key,
    failures_prefix,
    head_key,
    listing_keys,
    number_prefix,
    tombstone_key,
)
from agentstate.storage.rocksdb.rows import packed_json, packed_record, unpacked_record

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.engine import Engine
    from agentstate.storage.rocksdb.rows import State

__all__ = ["add_failure", "bury", "failures", "forget_failures", "save"]

TOMBSTONE_SECONDS: Final = 7 * 24 * 3600.0
ROW_KINDS: Final = (b"e", b"i", b"d", b"j", b"k", b"q")
FEW: Final = 200


def save(batch: Any, old: State, new: State) -> None:
    """Put a state's head into a batch, with what lists it. ``old`` has number 0 where none was stored."""
    key = head_key(new.scope)
    batch.put(key, new.packed(key))
    if old.updated != new.updated or old.owner != new.owner or old.labels != new.labels or not old.number:
        known = listing_keys(old.scope, old.owner, old.labels, old.updated) if old.number else set[bytes]()
        wanted = listing_keys(new.scope, new.owner, new.labels, new.updated)
        for gone in known - wanted:
            batch.delete(gone)
        for made in wanted - known:
            batch.put(made, b"")
    if old.expires != new.expires:
        if old.number and old.expires is not None:
            batch.delete(expiry_key(old.expires, key))
        if new.expires is not None:
            batch.put(expiry_key(new.expires, key), b"")


def bury(engine: Engine, batch: Any, state: State, now: float, *, dropped: bool) -> None:
    """Remove a state. A tombstone keeps its version and last commits; ``dropped`` tells the feed."""
    scope, key = state.scope, head_key(state.scope)
    tombstone, until = tombstone_key(scope), now + TOMBSTONE_SECONDS
    commits = [tuple(stamp) for stamp in last_commits(engine, state)]
    batch.put(tombstone, packed_json(tombstone, (state.version, until, commits)))
    batch.put(expiry_key(until, tombstone), b"")
    batch.delete(key)
    if state.expires is not None:
        batch.delete(expiry_key(state.expires, key))
    for listed in listing_keys(scope, state.owner, state.labels, state.updated):
        batch.delete(listed)
    for kind in ROW_KINDS:
        _erase(engine, batch, number_prefix(kind, state.number))
    if dropped:
        forget_failures(engine, batch, scope)
        add_to_feed(engine, batch, scope, None, now)


def _erase(engine: Engine, batch: Any, prefix: bytes) -> None:
    """Delete all rows with a prefix: a few one by one, many as a range, which readers then pay for a while."""
    end = after_prefix(prefix)
    keys = [key for key, _ in islice(engine.walk(prefix, end), FEW + 1)]
    if len(keys) > FEW:
        batch.delete_range(prefix, end)
        return
    for key in keys:
        batch.delete(key)


# -- failed turns -------------------------------------------------------------------------


def add_failure(engine: Engine, batch: Any, scope: StateScope, record: bytes, now: float) -> None:
    """Keep what a failed turn left, and forget what is too old or too much."""
    prefix = failures_prefix(scope)
    rows = [key for key, _ in engine.walk(prefix, after_prefix(prefix))]
    old = [key for key in rows if _failed_at(prefix, key) <= now - FAILURE_SECONDS]
    for key in {*old, *rows[: len(rows) + 1 - FAILURE_COUNT]} if len(rows) >= FAILURE_COUNT else old:
        batch.delete(key)
        batch.delete(expiry_key(_failed_at(prefix, key) + FAILURE_SECONDS, key))
    count = NUMBER.unpack(rows[-1][-NUMBER.size :])[0] + 1 if rows else 0
    key = prefix + TIME.pack(now) + NUMBER.pack(count)
    batch.put(key, packed_record(key, now, record))
    batch.put(expiry_key(now + FAILURE_SECONDS, key), b"")


def _failed_at(prefix: bytes, key: bytes) -> float:
    at: float = TIME.unpack_from(key, len(prefix))[0]
    return at


def failures(engine: Engine, scope: StateScope, now: float) -> tuple[bytes, ...]:
    """Return what failed turns left, oldest first."""
    prefix = failures_prefix(scope)
    rows = engine.walk(prefix, after_prefix(prefix))
    found = (unpacked_record(scope, key, row, "the record of a failed turn") for key, row in rows)
    return tuple(record for at, record in found if at > now - FAILURE_SECONDS)


def forget_failures(engine: Engine, batch: Any, scope: StateScope) -> None:
    """Remove what failed turns of a state left."""
    prefix = failures_prefix(scope)
    for key, _ in engine.walk(prefix, after_prefix(prefix)):
        batch.delete(key)
