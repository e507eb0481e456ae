"""The writing of a commit on a SQLite state file, once its conditions were found to hold.

What fails here is the engine's doing and undoes the whole transaction.
"""

from __future__ import annotations

from typing import Final

import orjson

from agentstate.storage.protocol import (
    JOURNAL_COUNT,
    KEEP,
    ONCE_COUNT,
    ONCE_SECONDS,
    Committed,
    Entry,
    Keep,
    LogItem,
    OnceRecord,
    Stamp,
)
from agentstate.storage.records import new
from agentstate.storage.sqlite.check import Conditions, entry_size, found_of
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

__all__ = ["Change"]

TRIM_EVERY: Final = 32
WHOLE_LOG: Final = 50  # items of a short log that are known without having been asked for

IN_RANGE: Final = "key >= ? AND key < ?"
DELETE_ENTRY: Final = "DELETE FROM entries WHERE scope = ? AND section = ? AND key = ?"
PUT_ENTRY: Final = "REPLACE INTO entries VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
ADD_ITEM: Final = "INSERT INTO items(key, seq, id, value, expires, mark, crc) VALUES(?, ?, ?, ?, ?, ?, ?)"
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

    def write(self, commit_id: int, once: OnceRecord | None) -> Committed:
        """Make the change of a checked part."""
        part, state = self._part, self._state
        if part.checks_only:
            return Committed(state.stamp, state.birth, {}, {}, state.expires)
        self._place, self._removed, self._short = 0, 0, set[str]()
        if self._fresh:
            empty = part.clear and not (part.puts or part.increments or part.appends)
            self._begin_anew(commit_id, dropped=empty)
            if empty:
                self._group.put(part.scope, None)
                return Committed(None, 0, {}, {})
        before, now = self._state, self._now
        version = before.stamp.version + 1
        if part.kept is not None:
            version, now = max(version, part.kept.version), part.kept.updated_at
        stamp = self._stamp = new(Stamp, (version, commit_id))
        state = self._state = before.following(stamp, now)
        if part.cuts or part.trims or part.edits:
            self._shrink_logs()
        ranges = self._append() if part.appends else {}
        if part.deletes or part.puts or self._counters:
            self._change_entries()
        if not (part.owner is part.parent is part.labels is part.ttl is KEEP):
            self._change_meta()
        if once is not None:
            state.once_count += 1
        self._save(before)
        self._add_record(ranges)
        if once is not None:
            self._remember_once(once)
        self._group.put(part.scope, state)
        touched = {*ranges, *self._short} if self._short else ranges
        logs = {name: state.logs[name].view() for name in touched}
        return new(Committed, (stamp, state.birth, logs, self._counters, state.expires))

    def _begin_anew(self, commit_id: int, *, dropped: bool) -> None:
        scope, old = self._part.scope, self._state
        if old.number:
            bury(self._pen, old, self._now, dropped=dropped)
            version = old.stamp.version
        else:
            sql = "SELECT version FROM tombstones WHERE tenant = ? AND kind = ? AND id = ?"
            row = self._pen.execute(sql, (scope.tenant, scope.kind, scope.id)).fetchone()
            version = row[0] if row is not None else 0
            if dropped:
                forget_failures(self._pen, scope)
        row = self._pen.execute("SELECT coalesce(max(number), 0) + 1 FROM scopes").fetchone()
        assert row is not None
        created = self._now if self._part.kept is None else self._part.kept.created_at
        self._state = State(scope, row[0], Stamp(version, 0), birth=commit_id, created=created, entries={})

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
        crc = item_crc(seq, position, item_id, value, expires, mark)
        self._pen.execute("UPDATE items SET value = ?, mark = ?, crc = ? WHERE key = ?", (value, mark, crc, key))
        log.size += len(value) - length
        self._short.add(name)

    def _append(self) -> dict[str, tuple[int, int]]:
        """Add items to logs; return the ``seq`` of the first and last that each got."""
        added: dict[str, list[LogItem]] = {}
        logs, stamp, now = self._state.logs, self._stamp, self._now
        for name, item_id, value, ttl, unique in self._part.appends:
            log = logs.get(name)
            if log is None:
                log = logs[name] = self._new_log(name)
            if unique and self._knows(log, item_id):
                continue
            if log.stamp is not stamp:
                log = self._log(name)
            position, seq = log.head + 1, log.next_seq
            expires, mark = None if ttl is None else now + ttl, UNIQUE if unique else 0
            crc = item_crc(seq, position, item_id, value, expires, mark)
            self._pen.later(ADD_ITEM).append((log.key(position), seq, item_id, value, expires, mark, crc))
            item = new(LogItem, (seq, position, item_id, value, expires))
            log.head, log.next_seq = position, seq + 1
            log.size += len(value)
            items = added.get(name)
            if items is None:
                added[name] = [item]
            else:
                items.append(item)
        ranges: dict[str, tuple[int, int]] = {}
        for name, items in added.items():
            # As many stay known as were before; of a short log more, since it grows.
            log = logs[name]
            known = log.items
            most = len(known)
            if most < WHOLE_LOG and most + len(items) == log.head - log.first + 1:
                most = WHOLE_LOG
            log.items = (*known, *items)[-most:] if most else ()
            ranges[name] = (items[0].seq, items[-1].seq)
        return ranges

    def _new_log(self, name: str) -> Log:
        self._pen.execute("INSERT INTO logs(scope, name) VALUES(?, ?)", (self._state.number, name))
        first = 1 if self._part.kept is None else self._part.kept.firsts.get(name, 1)
        return Log(self._pen.last_insert_rowid(), self._stamp, first, first - 1, first)

    def _knows(self, log: Log, item_id: str) -> bool:
        sql = "SELECT 1 FROM items WHERE key >> 32 = ? AND id = ? AND mark = 1"
        return self._pen.execute(sql, (log.number, item_id)).fetchone() is not None

    def _change_entries(self) -> None:
        part, state, now = self._part, self._state, self._now
        if state.entries is not None:
            state.entries = state.entries.copy()
        for at in part.deletes:
            found = self._find(at)
            if found is not None:
                self._pen.execute(DELETE_ENTRY, (state.number, *at))
                state.sections[at[0]] = self._stamp
                state.entry_bytes -= found.size
                self._set(at, None)
        for section, key, value, ttl in part.puts:
            self._put((section, key), value, None if ttl is None else now + ttl)
        for at, counted in self._counters.items():
            found = self._find(at)
            self._put(at, counted, found.expires if found is not None and found.live(now) else None)

    def _put(self, at: tuple[str, str], content: bytes | int, expires: float | None) -> None:
        state, stamp, (section, key) = self._state, self._stamp, at
        found = self._find(at)
        state.entry_bytes += entry_size(key, content) - (0 if found is None else found.size)
        state.sections[section] = stamp
        crc = entry_crc(section, key, content, stamp, expires)
        self._pen.later(PUT_ENTRY).append((state.number, section, key, content, *stamp, expires, crc))
        self._set(at, new(Entry, (content, stamp, expires)))
        if expires is not None:
            state.mortal = True

    def _set(self, at: tuple[str, str], entry: Entry | None) -> None:
        """Let `_find` return what this commit has made of an entry."""
        entries = self._state.entries
        if entries is None:
            self._found[at] = None if entry is None else found_of(at[1], entry)
        elif entry is None:
            del entries[at]
        else:
            entries[at] = entry

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
            self._pen.later(SAVE_HEADS).append(heads_row(state))
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
        state, record, (version, commit_id) = self._state, self._part.record, self._stamp
        told = orjson.dumps(ranges).decode() if ranges and record is not None else None
        crc = record_crc(record, f"{version} {commit_id} {self._now} {told}")
        row = (state.number, version, commit_id, self._now, record, told, int(self._removed > 0), crc)
        self._pen.later(ADD_RECORD).append(row)
        if version % TRIM_EVERY == 0 and version > JOURNAL_COUNT:
            old = (state.number, version - JOURNAL_COUNT)
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
