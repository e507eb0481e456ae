"""What happened to the states of a RocksDB store: commits with their journal records, tombstones, the feed."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from agentstate.scope import StateScope
from agentstate.storage.protocol import JOURNAL_COUNT, KNOWN_COMMITS, FeedItem, JournalRecord, LogItem, Stamp
from agentstate.storage.rocksdb.keys import FEED, NUMBER, after_prefix, journal_key, place_of, tombstone_key
from agentstate.storage.rocksdb.rows import packed_json, packed_record, unpacked_json, unpacked_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentstate.storage.rocksdb.engine import Engine
    from agentstate.storage.rocksdb.rows import State

__all__ = [
    "Removed",
    "add_to_feed",
    "feed",
    "journal",
    "last_commits",
    "outcome",
    "pack_commit",
    "tombstone_of",
]

Removed = dict[str, list[LogItem]]

FEED_COUNT: Final = 100_000
TRIM_EVERY: Final = 1024


# -- the journal --------------------------------------------------------------------------


def pack_commit(
    key: bytes, state: State, record: bytes | None, ranges: dict[str, tuple[int, int]], removed: Removed
) -> bytes:
    """Return a commit as it is stored: its journal record, if it has one, and the items it took out."""
    if record is None:
        return packed_record(key, (state.commit_id, state.updated), b"")
    items = [(name, item) for name, gone in removed.items() for item in gone]
    told = [(name, o.seq, o.position, o.id, o.expires_at, len(o.value)) for name, o in items]
    data = b"".join((record, *(item.value for _, item in items)))
    return packed_record(key, (state.commit_id, state.updated, len(record), ranges, told), data)


def journal(engine: Engine, state: State, *, after: int, limit: int) -> Callable[[], tuple[JournalRecord, ...]]:
    """Return what makes a page of the records of a state after a version, as they are now."""
    number, after = state.number, max(after, state.version - JOURNAL_COUNT, state.floor)
    rows = engine.walk(journal_key(number, after + 1), journal_key(number, state.version + 1))

    def page() -> tuple[JournalRecord, ...]:
        records = (_record(state.scope, key, row) for key, row in rows)
        return tuple(islice((record for record in records if record is not None), limit))

    return page


def _record(scope: StateScope, key: bytes, row: bytes) -> JournalRecord | None:
    told, data = unpacked_record(scope, key, row, "a journal record")
    if len(told) == 2:  # noqa: PLR2004 - a commit without a record
        return None
    commit_id, at, end, ranges, items = told
    removed: Removed = {}
    record = data[:end]
    for name, seq, position, item_id, expires, size in items:
        removed.setdefault(name, []).append(LogItem(seq, position, item_id, data[end : end + size], expires))
        end += size
    return JournalRecord(
        Stamp(NUMBER.unpack_from(key, 1 + NUMBER.size)[0], commit_id),
        at,
        record,
        {name: (first, last) for name, (first, last) in ranges.items()},
        {name: tuple(gone) for name, gone in removed.items()},
    )


def _commits(engine: Engine, state: State) -> Iterator[Stamp]:
    """Return the stamps of a state's commits, the last one first."""
    first = max(state.floor, state.version - JOURNAL_COUNT)
    rows = engine.walk(journal_key(state.number, first + 1), journal_key(state.number, state.version + 1), reverse=True)
    for key, row in rows:
        told, _ = unpacked_record(state.scope, key, row, "a journal record")
        yield Stamp(NUMBER.unpack_from(key, 1 + NUMBER.size)[0], told[0])


def last_commits(engine: Engine, state: State) -> list[Stamp]:
    """Return the last commits at a state's address, this incarnation's and earlier ones', the last one first."""
    known = [*islice(_commits(engine, state), KNOWN_COMMITS), *tombstone_of(engine, state.scope)[2]]
    return known[:KNOWN_COMMITS]


def outcome(engine: Engine, scope: StateScope, commit_id: int) -> Stamp | None:
    """Return the stamp a commit made, as long as the journal or the tombstone knows it."""
    state = engine.head(scope)
    known = _commits(engine, state) if state is not None else iter(())
    found = next((stamp for stamp in known if stamp.commit_id == commit_id), None)
    if found is None:
        found = next((stamp for stamp in tombstone_of(engine, scope)[2] if stamp.commit_id == commit_id), None)
    return found


def tombstone_of(engine: Engine, scope: StateScope) -> tuple[int, float, list[Stamp]]:
    """Return the last version at an address, until when that is kept, and the last commits; or zeroes."""
    key = tombstone_key(scope)
    row = engine.get(key)
    if row is None:
        return 0, 0.0, []
    version, until, commits = unpacked_json(scope, key, row, "its tombstone")
    return version, until, [Stamp(*stamp) for stamp in commits]


# -- the feed -----------------------------------------------------------------------------


def add_to_feed(engine: Engine, batch: Any, scope: StateScope, stamp: Stamp | None, at: float) -> None:
    """Put a commit, or a drop (``stamp`` is ``None``), at the end of the feed, and forget its beginning."""
    engine.place += 1
    key = FEED + NUMBER.pack(engine.place)
    batch.put(key, packed_json(key, (scope.text, None if stamp is None else tuple(stamp), at)))
    if engine.place % TRIM_EVERY == 0 and engine.place > FEED_COUNT:
        batch.delete_range(FEED, FEED + NUMBER.pack(engine.place - FEED_COUNT))


def feed(engine: Engine, after: str | None, limit: int) -> tuple[FeedItem, ...]:
    """Return commits in commit order."""
    items: list[FeedItem] = []
    start = FEED + NUMBER.pack(int(after or 0) + 1)
    for key, row in islice(engine.walk(start, after_prefix(FEED)), limit):
        text, stamp, at = unpacked_json(None, key, row, "its feed")
        items.append(FeedItem(str(place_of(key)), StateScope.parse(text), None if stamp is None else Stamp(*stamp), at))
    return tuple(items)
