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
    Keep,
    Lease,
    LogItem,
    OnceRecord,
    Part,
    Stamp,
)
from agentstate.storage.sqlite.check import Conditions
from agentstate.storage.sqlite.rows import UNIQUE, Log, State, entry_crc, item_crc, record_crc
from agentstate.storage.sqlite.scopes import bury, forget_failures, insert, remove_label, save_expiry, save_heads

if TYPE_CHECKING:
    from agentstate.storage.sqlite.known import KnownStates
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["Change"]

TRIM_EVERY: Final = 32

IN_RANGE: Final = "key >= ? AND key < ?"
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

    def __init__(
        self, connection: Connection, known: KnownStates, part: Part, *, now: float, lease: Lease | None
    ) -> None:
        """See `Conditions`."""
        super().__init__(connection, known, part, now=now, lease=lease)
        self._stamp = Stamp(0, 0)
        self._place = 0
        self._removed = 0

    def write(self, commit_id: int, once: OnceRecord | None) -> Committed:
        """Make the change of a checked part."""
        part = self._part
        if part.checks_only:
            return Committed(self._state.stamp, self._state.birth, {}, {}, self._state.expires)
        if self._fresh:
            empty = part.clear and not (part.puts or part.increments or part.appends)
            self._begin_anew(commit_id, dropped=empty)
            if empty:
                self._known.drop(part.scope)
                return Committed(None, 0, {}, {})
        state = self._state
        before = (state.owner, state.parent, state.labels, state.expires)
        state.version, state.commit_id, state.updated = state.version + 1, commit_id, self._now
        self._stamp = state.stamp
        touched = self._shrink_logs() if part.cuts or part.trims or part.edits else set[str]()
        items, ranges = self._plan_items()
        puts, deletes = self._plan_entries()
        self._change_meta()
        if once is not None:
            state.once_count += 1
        self._save(before)
        number = state.number
        if deletes:
            sql = "DELETE FROM entries WHERE scope = ? AND section = ? AND key = ?"
            self._db.executemany(sql, [(number, *at) for at in deletes])
        if puts:
            self._db.executemany(PUT_ENTRY, [(number, *row) for row in puts])
        if items:
            self._db.executemany(ADD_ITEM, items)
        self._add_record(ranges)
        if once is not None:
            self._remember_once(once)
        self._known.keep(state)
        logs = {name: state.logs[name].view() for name in {*ranges, *touched}}
        return Committed(self._stamp, state.birth, logs, self._counters, state.expires)

    def _begin_anew(self, commit_id: int, *, dropped: bool) -> None:
        scope, old = self._part.scope, self._state
        if old.number:
            bury(self._db, old, self._now, dropped=dropped)
            version = old.version
        else:
            sql = "SELECT version FROM tombstones WHERE tenant = ? AND kind = ? AND id = ?"
            row = self._db.execute(sql, (scope.tenant, scope.kind, scope.id)).fetchone()
            version = row[0] if row is not None else 0
            if dropped:
                forget_failures(self._db, scope)
        row = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM scopes").fetchone()
        assert row is not None
        self._state = State(scope, row[0], version, birth=commit_id, created=self._now)
        self._sections.clear()
        self._found.clear()

    def _shrink_logs(self) -> set[str]:
        part, state, touched = self._part, self._state, set[str]()
        if part.record is not None:
            # The record's own place, known before it is written: nobody else can write meanwhile.
            row = self._db.execute("SELECT coalesce(max(place), 0) + 1 FROM journal").fetchone()
            assert row is not None
            self._place = row[0]
        for cut in part.cuts:
            log = state.logs.get(cut.log)
            if log is not None and cut.position <= log.head and log.first <= log.head:
                start = max(cut.position, log.first)
                self._take_out(cut.log, log, start, log.head + 1)
                log.head = start - 1
                touched.add(cut.log)
        for trim in part.trims:
            log = state.logs.get(trim.log)
            if log is not None and log.first < trim.position and log.first <= log.head:
                end = min(trim.position, log.head + 1)
                self._take_out(trim.log, log, log.first, end)
                log.first = end
                touched.add(trim.log)
        for edit in part.edits:
            self._edit(edit.log, edit.position, edit.value)
            touched.add(edit.log)
        return touched

    def _take_out(self, name: str, log: Log, start: int, end: int) -> None:
        where = (log.key(start), log.key(end))
        self._keep_removed(name, log, start, end)
        row = self._db.execute(f"SELECT sum(length(value)) FROM items WHERE {IN_RANGE}", where).fetchone()  # noqa: S608
        log.size -= row[0] if row is not None and row[0] is not None else 0
        self._db.execute(f"DELETE FROM items WHERE {IN_RANGE}", where)  # noqa: S608
        log.stamp = self._stamp

    def _keep_removed(self, name: str, log: Log, start: int, end: int) -> None:
        if self._place:
            number = self._removed - log.key(start)
            self._db.execute(KEEP_REMOVED, (self._place, number, name, log.key(start), log.key(end)))
            self._removed += end - start

    def _edit(self, name: str, position: int, value: bytes) -> None:
        log = self._state.logs[name]
        key = log.key(position)
        self._keep_removed(name, log, position, position + 1)
        sql = "SELECT seq, id, expires, mark, length(value) FROM items WHERE key = ?"
        row = self._db.execute(sql, (key,)).fetchone()
        assert row is not None
        seq, item_id, expires, mark, length = row
        mark = mark if mark == UNIQUE else 0
        crc = item_crc(LogItem(seq, position, item_id, value, expires), mark)
        self._db.execute("UPDATE items SET value = ?, mark = ?, crc = ? WHERE key = ?", (value, mark, crc, key))
        log.size += len(value) - length
        log.stamp = self._stamp

    def _plan_items(self) -> tuple[list[tuple[object, ...]], dict[str, tuple[int, int]]]:
        rows: list[tuple[object, ...]] = []
        ranges: dict[str, tuple[int, int]] = {}
        seen: set[tuple[str, str]] = set()
        for name, item_id, value, ttl, unique in self._part.appends:
            log = self._state.logs.get(name)
            if log is None:
                log = self._state.logs[name] = Log(self._new_log(name), self._stamp)
            if unique and ((name, item_id) in seen or self._knows(log, item_id)):
                continue
            expires = None if ttl is None else self._now + ttl
            item = LogItem(log.next_seq, log.head + 1, item_id, value, expires)
            mark = UNIQUE if unique else 0
            crc = item_crc(item, mark)
            rows.append((log.key(item.position), item.seq, item_id, value, expires, mark, crc))
            if unique:
                seen.add((name, item_id))
            log.head, log.next_seq = item.position, item.seq + 1
            log.size += len(value)
            log.stamp = self._stamp
            ranges[name] = (ranges.get(name, (item.seq,))[0], item.seq)
        return rows, ranges

    def _new_log(self, name: str) -> int:
        self._db.execute("INSERT INTO logs(scope, name) VALUES(?, ?)", (self._state.number, name))
        return self._db.last_insert_rowid()

    def _knows(self, log: Log, item_id: str) -> bool:
        sql = "SELECT 1 FROM items WHERE key >> 32 = ? AND id = ? AND mark = 1"
        return self._db.execute(sql, (log.number, item_id)).fetchone() is not None

    def _plan_entries(self) -> tuple[list[tuple[object, ...]], list[tuple[str, str]]]:
        part, state, deletes = self._part, self._state, list[tuple[str, str]]()
        new: dict[tuple[str, str], tuple[bytes | int, float | None]] = {}
        for at in part.deletes:
            if self._discard(at):
                deletes.append(at)
                state.sections[at[0]] = self._stamp
        for section, key, value, ttl in part.puts:
            new[section, key] = (value, None if ttl is None else self._now + ttl)
        for at, number in self._counters.items():
            found = self._find(*at)
            new[at] = (number, found.expires if found is not None and found.live(self._now) else None)
        rows: list[tuple[object, ...]] = []
        for (section, key), (content, expires) in new.items():
            self._discard((section, key))
            state.entry_bytes += len(key) + (8 if isinstance(content, int) else len(content))
            state.sections[section] = self._stamp
            crc = entry_crc(section, key, content, self._stamp, expires)
            rows.append((section, key, content, *self._stamp, expires, crc))
        return rows, deletes

    def _discard(self, at: tuple[str, str]) -> bool:
        found = self._find(*at)
        if found is None:
            return False
        self._state.entry_bytes -= found.size(at[1])
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

    def _save(self, before: tuple[str | None, str | None, dict[str, str], float | None]) -> None:
        state = self._state
        if not self._fresh:
            save_heads(self._db, state)
            if (state.owner, state.parent, state.labels) != before[:3]:
                sql = "UPDATE scopes SET owner = ?, parent = ?, labels = ? WHERE number = ?"
                self._db.execute(sql, (state.owner, state.parent, state.pack_labels(), state.number))
            if state.expires != before[3]:
                save_expiry(self._db, state)
        else:
            insert(self._db, state)
        if before[2] or state.labels:
            self._save_labels(before[2])

    def _save_labels(self, before: dict[str, str]) -> None:
        state, scope = self._state, self._part.scope
        for name in before.keys() - state.labels.keys():
            remove_label(self._db, state, name, before[name])
        for name, value in state.labels.items():
            if before.get(name, value) != value:
                remove_label(self._db, state, name, before[name])
            row = (scope.tenant, name, value, scope.kind, scope.id, state.updated, state.number)
            self._db.execute("REPLACE INTO labels VALUES(?, ?, ?, ?, ?, ?, ?)", row)

    def _add_record(self, ranges: dict[str, tuple[int, int]]) -> None:
        state, record = self._state, self._part.record
        told = orjson.dumps(ranges).decode() if ranges and record is not None else None
        crc = record_crc(record, f"{state.version} {state.commit_id} {self._now} {told}")
        self._db.execute(ADD_RECORD, (state.number, *self._stamp, self._now, record, told, int(self._removed > 0), crc))
        if state.version % TRIM_EVERY == 0 and state.version > JOURNAL_COUNT:
            old = (state.number, state.version - JOURNAL_COUNT)
            where = "WHERE scope = ? AND version <= ?"
            self._db.execute(
                f"DELETE FROM removed WHERE place IN (SELECT place FROM journal {where} AND removed)",  # noqa: S608
                old,
            )
            self._db.execute(f"DELETE FROM journal {where}", old)  # noqa: S608

    def _remember_once(self, once: OnceRecord) -> None:
        number, count = self._state.number, self._state.once_count
        crc = record_crc(once.result, f"{once.key}\0{once.fingerprint}\0{once.commit_id} {self._now}")
        row = (number, once.key, once.fingerprint, once.commit_id, once.result, self._now, count, crc)
        self._db.execute("REPLACE INTO once VALUES(?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute(FORGET_ONCE, (number, count - ONCE_COUNT, self._now - ONCE_SECONDS))
