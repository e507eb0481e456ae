"""The writing of a commit on a RocksDB store: its rows go into one batch, once its conditions were found to hold.

Nothing is changed here but the batch and a copy of the state's head, so that a batch that wasn't
written has not happened. The batch is applied in its order: what is deleted may be put again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.protocol import (
    JOURNAL_COUNT,
    ONCE_COUNT,
    ONCE_SECONDS,
    Committed,
    Entry,
    Keep,
    Kept,
    Lease,
    LogItem,
    OnceRecord,
    Part,
    Stamp,
)
from agentstate.storage.rocksdb.check import Conditions
from agentstate.storage.rocksdb.heads import bury, forget_failures, save
from agentstate.storage.rocksdb.history import Removed, add_to_feed, pack_commit, tombstone_of
from agentstate.storage.rocksdb.keys import (
    address,
    counted,
    entry_key,
    expiry_key,
    id_key,
    item_key,
    journal_key,
    once_key,
)
from agentstate.storage.rocksdb.reading import items_between, once_at
from agentstate.storage.rocksdb.rows import UNIQUE, Log, State, pack_entry, pack_item, packed_json, packed_record

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.rocksdb.engine import Engine

__all__ = ["Change"]

FORGET_AT_ONCE: Final = 4


class Change(Conditions):
    """One part of a commit, on its way into a batch."""

    def __init__(self, engine: Engine, part: Part, *, now: float, lease: Lease | None) -> None:
        """See `Conditions`."""
        super().__init__(engine, part, now=now, lease=lease)
        self._batch: Any = None
        self._state = self._old
        self._stamp = Stamp(0, 0)
        self._removed: Removed = {}
        self._gone: set[tuple[str, str]] = set()

    @property
    def scope(self) -> StateScope:
        """Whose part it is."""
        return self._part.scope

    @property
    def changes(self) -> bool:
        """Whether the part does more than check."""
        return not self._part.checks_only

    @property
    def head(self) -> State | None:
        """The state as it is once the batch is written."""
        return self._state if self._state.number else None

    def write(self, batch: Any, commit_id: int, once: OnceRecord | None) -> Committed:
        """Put the change of a checked part into a batch."""
        part, self._batch = self._part, batch
        if part.checks_only:
            old = self._old
            return Committed(old.stamp if old.number else None, old.birth, {}, {}, old.expires)
        before = self._old
        if self._fresh:
            empty = part.clear and not (part.puts or part.increments or part.appends)
            self._begin_anew(commit_id, dropped=empty)
            if empty:
                return Committed(None, 0, {}, {})
            before = State(part.scope)
        else:
            self._state = before.copy()
        state = self._state
        state.version, state.commit_id, state.updated = state.version + 1, commit_id, self._now
        if part.kept is not None:
            self._keep(part.kept)
        self._stamp = state.stamp
        if part.cuts or part.trims or part.edits:
            self._shrink_logs()
        ranges = self._append() if part.appends else {}
        self._change_entries()
        self._change_meta()
        if once is not None:
            self._remember_once(once)
        save(batch, before, state)
        self._add_record(ranges)
        touched = {name: state.logs[name].view() for name in (ranges | self._removed if self._removed else ranges)}
        return Committed(self._stamp, state.birth, touched, self._counters, state.expires)

    def _begin_anew(self, commit_id: int, *, dropped: bool) -> None:
        scope, old, engine = self._part.scope, self._old, self._engine
        version = old.version
        if old.number:
            bury(engine, self._batch, old, self._now, dropped=dropped)
        else:
            version = tombstone_of(engine, scope)[0]
            if dropped:
                forget_failures(engine, self._batch, scope)
        self._found.clear()
        number = 0 if dropped else engine.next_number(self._batch)
        self._state = State(scope, number, version, birth=commit_id, floor=version, created=self._now)

    def _keep(self, kept: Kept) -> None:
        state = self._state
        state.version, state.updated = max(state.version, kept.version), kept.updated_at
        if self._fresh:
            state.created = kept.created_at

    # -- logs ------------------------------------------------------------------------------

    def _shrink_logs(self) -> None:
        for cut in self._part.cuts:
            log = self._state.logs.get(cut.log)
            if log is not None:
                start = max(cut.position, log.first)
                self._take_out(cut.log, log, start, log.head + 1)
                log.head = min(log.head, start - 1)
        for trim in self._part.trims:
            log = self._state.logs.get(trim.log)
            if log is not None:
                end = min(trim.position, log.head + 1)
                self._take_out(trim.log, log, log.first, end)
                log.first = max(log.first, end)
        for edit in self._part.edits:
            self._edit(edit.log, edit.position, edit.value)

    def _take_out(self, name: str, log: Log, start: int, end: int) -> None:
        batch = self._batch
        for key, item, mark in items_between(self._engine, self._state, log, start, end):
            batch.delete(key)
            if mark == UNIQUE:
                batch.delete(id_key(self._state.number, log.number, item.id))
                self._gone.add((name, item.id))
            if item.expires_at is not None:
                batch.delete(expiry_key(item.expires_at, key))
            log.size -= len(item.value)
            log.stamp = self._stamp
            self._removed.setdefault(name, []).append(item)

    def _edit(self, name: str, position: int, value: bytes) -> None:
        log = self._state.logs[name]
        old, mark = self._item(log.number, position)
        self._put_item(log, old._replace(value=value), mark if mark == UNIQUE else 0)
        log.size += len(value) - len(old.value)
        log.stamp = self._stamp
        self._removed.setdefault(name, []).append(old)

    def _put_item(self, log: Log, item: LogItem, mark: int) -> None:
        key = item_key(self._state.number, log.number, item.position)
        self._batch.put(key, pack_item(key, item, mark))
        if item.expires_at is not None:
            self._batch.put(expiry_key(item.expires_at, key), address(self._state.scope))

    def _append(self) -> dict[str, tuple[int, int]]:
        state, stamp = self._state, self._stamp
        ranges: dict[str, tuple[int, int]] = {}
        added: set[tuple[str, str]] = set()
        for name, item_id, value, ttl, unique in self._part.appends:
            log = state.logs.get(name)
            if log is None:
                first = 1 if self._part.kept is None else self._part.kept.firsts.get(name, 1)
                log = state.logs[name] = Log(len(state.logs), stamp, first, first - 1, first)
            if unique:
                if (name, item_id) in added or self._knows(name, log, item_id):
                    continue
                added.add((name, item_id))
            seq, log.next_seq, log.head = log.next_seq, log.next_seq + 1, log.head + 1
            item = LogItem(seq, log.head, item_id, value, None if ttl is None else self._now + ttl)
            self._put_item(log, item, UNIQUE if unique else 0)
            if unique:
                key = id_key(state.number, log.number, item_id)
                self._batch.put(key, packed_json(key, log.head))
            log.size += len(value)
            log.stamp = stamp
            ranges[name] = (ranges.get(name, (seq,))[0], seq)
        return ranges

    def _knows(self, name: str, log: Log, item_id: str) -> bool:
        """Return whether the log holds a unique item, and this commit hasn't taken it out."""
        if self._fresh or (name, item_id) in self._gone:
            return False
        return self._engine.get(id_key(self._state.number, log.number, item_id)) is not None

    # -- entries ---------------------------------------------------------------------------

    def _change_entries(self) -> None:
        part, state, now = self._part, self._state, self._now
        for at in part.deletes:
            if self._discard(at):
                self._batch.delete(entry_key(state.number, *at))
                state.sections[at[0]] = self._stamp
        for section, key, value, ttl in part.puts:
            self._put_entry((section, key), value, None if ttl is None else now + ttl)
        for at, number in self._counters.items():
            old = None if self._fresh else self._find(at)
            self._put_entry(at, number, old.expires_at if old is not None and self._is_live(old) else None)

    def _put_entry(self, at: tuple[str, str], value: bytes | int, expires: float | None) -> None:
        state = self._state
        self._discard(at)
        key = entry_key(state.number, *at)
        self._batch.put(key, pack_entry(key, value, self._stamp, expires))
        if expires is not None:
            self._batch.put(expiry_key(expires, key), address(state.scope))
        state.entry_bytes += len(at[1]) + (8 if isinstance(value, int) else len(value))
        state.sections[at[0]] = self._stamp
        self._found[at] = Entry(value, self._stamp, expires)

    def _discard(self, at: tuple[str, str]) -> bool:
        old = self._found.get(at) if self._fresh else self._find(at)
        if old is None:
            return False
        self._state.entry_bytes -= len(at[1]) + (8 if isinstance(old.value, int) else len(old.value))
        if old.expires_at is not None:
            self._batch.delete(expiry_key(old.expires_at, entry_key(self._state.number, *at)))
        self._found[at] = None
        return True

    # -- the rest --------------------------------------------------------------------------

    def _change_meta(self) -> None:
        part, state = self._part, self._state
        if not isinstance(part.owner, Keep):
            state.owner = part.owner
        if not isinstance(part.parent, Keep):
            state.parent = part.parent
        if not isinstance(part.labels, Keep):
            state.labels = dict(part.labels)
        if not isinstance(part.ttl, Keep) and (part.sliding or self._fresh or part.ttl is None):
            state.expires = None if part.ttl is None else self._now + part.ttl

    def _add_record(self, ranges: dict[str, tuple[int, int]]) -> None:
        state, batch = self._state, self._batch
        key = journal_key(state.number, state.version)
        kept = self._removed if self._part.record is not None else {}
        batch.put(key, pack_commit(key, state, self._part.record, ranges, kept))
        if state.version - JOURNAL_COUNT > state.floor:
            batch.delete(journal_key(state.number, state.version - JOURNAL_COUNT))
        add_to_feed(self._engine, batch, state.scope, state.stamp, self._now)

    def _remember_once(self, once: OnceRecord) -> None:
        state, batch = self._state, self._batch
        state.once_last += 1
        self._forget_once(state)
        key, order = once_key(state.number, once.key), counted(b"q", state.number, state.once_last)
        told = (once.fingerprint, once.commit_id, once.result is not None, self._now, state.once_last)
        batch.put(key, packed_record(key, told, once.result or b""))
        batch.put(order, packed_json(order, once.key))

    def _forget_once(self, state: State) -> None:
        """Forget the oldest keys that are too old or too many, a few at a time."""
        for _ in range(FORGET_AT_ONCE):
            first = state.once_first
            found = once_at(self._engine, state, first) if first < state.once_last else None
            if found is None:
                return
            name, at, count = found
            if first > state.once_last - ONCE_COUNT and at > self._now - ONCE_SECONDS:
                return
            if count == first:
                self._batch.delete(once_key(state.number, name))
            self._batch.delete(counted(b"q", state.number, first))
            state.once_first += 1
