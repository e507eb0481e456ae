"""The writing of a commit on a SQLite state file, once its conditions were found to hold.

What fails here is the engine's doing and undoes the whole transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from agentstate.storage.protocol import (
    JOURNAL_COUNT,
    ONCE_COUNT,
    ONCE_SECONDS,
    Committed,
    Entry,
    Keep,
    Lease,
    LogItem,
    OnceRecord,
    Part,
    Stamp,
)
from agentstate.storage.sqlite.check import Conditions
from agentstate.storage.sqlite.rows import UNIQUE, Log, State, entry_crc, item_crc, record_crc
from agentstate.storage.sqlite.scopes import (
    SAVE_HEADS,
    bury,
    forget_failures,
    heads_row,
    insert,
    remove_label,
    save_expiry,
)

if TYPE_CHECKING:
    from agentstate.storage.sqlite.known import KnownStates
    from agentstate.storage.sqlite.pen import Pen

__all__ = ["Change"]

TRIM_EVERY: Final = 32
WHOLE_LOG: Final = 50  # items of a short log that are known without having been asked for

IN_RANGE: Final = "key >= ? AND key < ?"
DELETE_ENTRY: Final = "DELETE FROM entries WHERE scope = ? AND section = ? AND key = ?"
PUT_ENTRY: Final = "REPLACE INTO entries VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
ADD_ITEM: Final = "INSERT INTO items VALUES(?, ?, ?, ?, ?, ?, ?)"
ADD_RECORD: Final = (
    "INSERT INTO journal(scope, version, commit_id, at, record, ranges, removed, crc) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
)
KEEP_REMOVED: Final = (
    "INSERT INTO removed SELECT ?, ? + key, ?, key & 0xffffffff, seq, id, value, expires, mark, crc FROM items "  # noqa: S608
    f"WHERE {IN_RANGE}"
)
FORGET_ONCE: Final = (
    "DELETE FROM once WHERE scope = ?1 AND number IN (SELECT number FROM once WHERE scope = ?1 "
    "ORDER BY number LIMIT 4) AND (number <= ?2 OR at <= ?3)"
)


class Change(Conditions):
    """One part of a commit, on its way into the file."""

    __slots__ = ("_place", "_removed", "_short", "_stamp")

    def __init__(self, pen: Pen, group: KnownStates, part: Part, *, now: float, lease: Lease | None) -> None:
        """See `Conditions`."""
        super().__init__(pen, group, part, now=now, lease=lease)
        self._stamp = Stamp(0, 0)
        self._place = 0
        self._removed = 0
        self._short: set[str] = set()

    def write(self, commit_id: int, once: OnceRecord | None) -> Committed:
        """Make the change of a checked part."""
        part, before = self._part, self._state
        if part.checks_only:
            return Committed(before.stamp, before.birth, {}, {}, before.expires)
        if self._fresh:
            empty = part.clear and not (part.puts or part.increments or part.appends)
            self._begin_anew(commit_id, dropped=empty)
            if empty:
                self._group.put(part.scope, None)
                return Committed(None, 0, {}, {})
        stamp = self._stamp = Stamp(self._state.version + 1, commit_id)
        state = self._state = self._state.following(stamp, self._now)
        if part.cuts or part.trims or part.edits:
            self._shrink_logs()
        ranges = self._append() if part.appends else {}
        if part.deletes or part.puts or self._counters:
            self._change_entries()
        self._change_meta()
        if once is not None:
            state.once_count += 1
        self._save(before)
        self._add_record(ranges)
        if once is not None:
            self._remember_once(once)
        self._group.put(part.scope, state)
        logs = {name: state.logs[name].view() for name in {*ranges, *self._short}}
        return Committed(stamp, state.birth, logs, self._counters, state.expires)

    def _begin_anew(self, commit_id: int, *, dropped: bool) -> None:
        scope, old = self._part.scope, self._state
        if old.number:
            bury(self._pen, old, self._now, dropped=dropped)
            version = old.version
        else:
            sql = "SELECT version FROM tombstones WHERE tenant = ? AND kind = ? AND id = ?"
            row = self._pen.execute(sql, (scope.tenant, scope.kind, scope.id)).fetchone()
            version = row[0] if row is not None else 0
            if dropped:
                forget_failures(self._pen, scope)
        row = self._pen.execute("SELECT coalesce(max(number), 0) + 1 FROM scopes").fetchone()
        assert row is not None
        self._state = State(scope, row[0], version, birth=commit_id, created=self._now, entries={})

    def _log(self, name: str) -> Log:
        """Return a log to be changed: a copy that is this commit's own."""
        log = self._state.logs[name]
        if log.stamp is not self._stamp:
            log = Log(log.number, self._stamp, log.first, log.head, log.next_seq, log.size, log.items)
            self._state.logs[name] = log
        return log

    def _shrink_logs(self) -> None:
        part, state = self._part, self._state
        if part.record is not None:
            # The record's own place, known before it is written: nobody else can write meanwhile.
            row = self._pen.execute("SELECT coalesce(max(place), 0) + 1 FROM journal").fetchone()
            assert row is not None
            self._place = row[0]
        for name, position in part.cuts:
            log = state.logs.get(name)
            if log is not None and position <= log.head and log.first <= log.head:
                log, start = self._log(name), max(position, log.first)
                self._take_out(name, log, start, log.head + 1)
                log.head = start - 1
        for name, position in part.trims:
            log = state.logs.get(name)
            if log is not None and log.first < position and log.first <= log.head:
                log, end = self._log(name), min(position, log.head + 1)
                self._take_out(name, log, log.first, end)
                log.first = end
        for edit in part.edits:
            self._edit(edit.log, edit.position, edit.value)
        for name in self._short:
            state.logs[name].items = ()

    def _take_out(self, name: str, log: Log, start: int, end: int) -> None:
        where = (log.key(start), log.key(end))
        self._keep_removed(name, log, start, end)
        row = self._pen.execute(f"SELECT sum(length(value)) FROM items WHERE {IN_RANGE}", where).fetchone()  # noqa: S608
        log.size -= row[0] if row is not None and row[0] is not None else 0
        self._pen.execute(f"DELETE FROM items WHERE {IN_RANGE}", where)  # noqa: S608
        self._short.add(name)

    def _keep_removed(self, name: str, log: Log, start: int, end: int) -> None:
        if self._place:
            number = self._removed - log.key(start)
            self._pen.execute(KEEP_REMOVED, (self._place, number, name, log.key(start), log.key(end)))
            self._removed += end - start

    def _edit(self, name: str, position: int, value: bytes) -> None:
        log = self._log(name)
        key = log.key(position)
        self._keep_removed(name, log, position, position + 1)
        sql = "SELECT seq, id, expires, mark, length(value) FROM items WHERE key = ?"
        row = self._pen.execute(sql, (key,)).fetchone()
        assert row is not None
        seq, item_id, expires, mark, length = row
        mark = mark if mark == UNIQUE else 0
        crc = item_crc(LogItem(seq, position, item_id, value, expires), mark)
        self._pen.execute("UPDATE items SET value = ?, mark = ?, crc = ? WHERE key = ?", (value, mark, crc, key))
        log.size += len(value) - length
        self._short.add(name)

    def _append(self) -> dict[str, tuple[int, int]]:
        """Add items to logs; return the ``seq`` of the first and last that each got."""
        added: dict[str, list[LogItem]] = {}
        logs, stamp, later = self._state.logs, self._stamp, self._pen.later
        for name, item_id, value, ttl, unique in self._part.appends:
            log = logs.get(name)
            if log is None:
                log = logs[name] = Log(self._new_log(name), stamp)
            if unique and self._knows(log, item_id):
                continue
            if log.stamp is not stamp:
                log = self._log(name)
            position, seq = log.head + 1, log.next_seq
            expires, mark = None if ttl is None else self._now + ttl, UNIQUE if unique else 0
            item = LogItem(seq, position, item_id, value, expires)
            later(ADD_ITEM, (log.key(position), seq, item_id, value, expires, mark, item_crc(item, mark)))
            log.head, log.next_seq = position, seq + 1
            log.size += len(value)
            added.setdefault(name, []).append(item)
        for name, items in added.items():
            # As many stay known as were before; of a short log more, since it grows.
            log = logs[name]
            known = log.items
            whole = len(known) + len(items) == log.head - log.first + 1
            most = max(len(known), WHOLE_LOG if whole else 0)
            log.items = (*known, *items)[-most:] if most else ()
        return {name: (items[0].seq, items[-1].seq) for name, items in added.items()}

    def _new_log(self, name: str) -> int:
        self._pen.execute("INSERT INTO logs(scope, name) VALUES(?, ?)", (self._state.number, name))
        return self._pen.last_insert_rowid()

    def _knows(self, log: Log, item_id: str) -> bool:
        sql = "SELECT 1 FROM items WHERE key >> 32 = ? AND id = ? AND mark = 1"
        return self._pen.execute(sql, (log.number, item_id)).fetchone() is not None

    def _change_entries(self) -> None:
        part, state, stamp, number = self._part, self._state, self._stamp, self._state.number
        if state.entries is not None:
            state.entries = state.entries.copy()
        for at in part.deletes:
            if self._discard(at):
                self._pen.execute(DELETE_ENTRY, (number, *at))
                state.sections[at[0]] = stamp
        new: dict[tuple[str, str], tuple[bytes | int, float | None]] = {}
        for section, key, value, ttl in part.puts:
            new[section, key] = (value, None if ttl is None else self._now + ttl)
        for at, counted in self._counters.items():
            found = self._find(at)
            new[at] = (counted, found.expires if found is not None and found.live(self._now) else None)
        for at, (content, expires) in new.items():
            section, key = at
            self._discard(at)
            state.entry_bytes += len(key) + (8 if isinstance(content, int) else len(content))
            state.sections[section] = stamp
            crc = entry_crc(section, key, content, stamp, expires)
            self._pen.later(PUT_ENTRY, (number, section, key, content, *stamp, expires, crc))
            if state.entries is not None:
                state.entries[at] = Entry(content, stamp, expires)

    def _discard(self, at: tuple[str, str]) -> bool:
        found = self._find(at)
        if found is None:
            return False
        self._state.entry_bytes -= found.size
        if self._state.entries is not None:
            del self._state.entries[at]
        self._found[at] = None
        return True

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

    def _save(self, before: State) -> None:
        state = self._state
        if self._fresh:
            insert(self._pen, state)
        else:
            self._pen.later(SAVE_HEADS, heads_row(state))
            if (state.owner, state.parent, state.labels) != (before.owner, before.parent, before.labels):
                sql = "UPDATE scopes SET owner = ?, parent = ?, labels = ? WHERE number = ?"
                self._pen.execute(sql, (state.owner, state.parent, state.pack_labels(), state.number))
            if state.expires != before.expires:
                save_expiry(self._pen, state)
        if before.labels or state.labels:
            self._save_labels(before.labels)

    def _save_labels(self, before: dict[str, str]) -> None:
        state, scope = self._state, self._part.scope
        for name in before.keys() - state.labels.keys():
            remove_label(self._pen, state, name, before[name])
        for name, value in state.labels.items():
            if before.get(name, value) != value:
                remove_label(self._pen, state, name, before[name])
            row = (scope.tenant, name, value, scope.kind, scope.id, state.updated, state.number)
            self._pen.execute("REPLACE INTO labels VALUES(?, ?, ?, ?, ?, ?, ?)", row)

    def _add_record(self, ranges: dict[str, tuple[int, int]]) -> None:
        state, record = self._state, self._part.record
        told = orjson.dumps(ranges).decode() if ranges and record is not None else None
        crc = record_crc(record, f"{state.version} {state.commit_id} {self._now} {told}")
        self._pen.later(ADD_RECORD, (state.number, *self._stamp, self._now, record, told, int(self._removed > 0), crc))
        if state.version % TRIM_EVERY == 0 and state.version > JOURNAL_COUNT:
            old = (state.number, state.version - JOURNAL_COUNT)
            where = "WHERE scope = ? AND version <= ?"
            self._pen.execute(
                f"DELETE FROM removed WHERE place IN (SELECT place FROM journal {where} AND removed)",  # noqa: S608
                old,
            )
            self._pen.execute(f"DELETE FROM journal {where}", old)  # noqa: S608

    def _remember_once(self, once: OnceRecord) -> None:
        number, count = self._state.number, self._state.once_count
        crc = record_crc(once.result, f"{once.key}\0{once.fingerprint}\0{once.commit_id} {self._now}")
        row = (number, once.key, once.fingerprint, once.commit_id, once.result, self._now, count, crc)
        self._pen.execute("REPLACE INTO once VALUES(?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._pen.execute(FORGET_ONCE, (number, count - ONCE_COUNT, self._now - ONCE_SECONDS))
