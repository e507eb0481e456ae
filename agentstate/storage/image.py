"""One state in memory: how a part of a commit changes it.

The memory backend keeps images; the file backend rebuilds them from its log. Both apply a part by
the same two steps, so they can't differ: `Image.validate` raises whatever there is to raise and changes
nothing; `Image.apply` can't fail. Neither awaits, so whoever holds the image's lock has all-or-nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from agentstate.errors import ConflictError, UnsupportedValueError, ValueTooLargeError
from agentstate.storage.image_log import Log
from agentstate.storage.protocol import (
    ANY,
    JOURNAL_COUNT,
    KEEP,
    KNOWN_COMMITS,
    MAX_LABELS,
    ONCE_COUNT,
    ONCE_SECONDS,
    Committed,
    Entry,
    JournalRecord,
    Keep,
    Kept,
    LogItem,
    OnceRecord,
    Part,
    ScopeInfo,
    Snapshot,
    Stamp,
    Wants,
)
from agentstate.storage.records import new

if TYPE_CHECKING:
    from agentstate.scope import StateScope

COUNTER_LIMIT = 2**63


@dataclass(slots=True)
class Image:
    """One state, whole."""

    scope: StateScope
    version: int = 0
    stamp: Stamp | None = None
    birth: int = 0
    owner: str | None = None
    parent: str | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    created_at: float = 0.0
    updated_at: float = 0.0
    expires_at: float | None = None
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict[tuple[str, str], Entry])
    sections: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    logs: dict[str, Log] = field(default_factory=dict[str, Log])
    entry_bytes: int = 0
    commits: deque[Stamp] = field(default_factory=lambda: deque[Stamp](maxlen=KNOWN_COMMITS))
    once: dict[str, OnceRecord] = field(default_factory=dict[str, OnceRecord])
    journal: deque[JournalRecord] = field(default_factory=lambda: deque[JournalRecord](maxlen=JOURNAL_COUNT))

    def alive(self, now: float) -> bool:
        """Whether the state exists and has not expired."""
        return self.stamp is not None and (self.expires_at is None or self.expires_at > now)

    def entry(self, section: str, key: str, now: float) -> Entry | None:
        """Return a live entry."""
        entry = self.entries.get((section, key))
        if entry is None or (entry.expires_at is not None and entry.expires_at <= now):
            return None
        return entry

    def known_once(self, key: str, now: float) -> OnceRecord | None:
        """Return what an idempotency key did, within its retention."""
        known = self.once.get(key)
        return known if known is not None and known.at > now - ONCE_SECONDS else None

    # -- reading -------------------------------------------------------------------------

    def snapshot(self, wants: Wants, now: float, once: str | None) -> Snapshot:
        """Return what was wanted of a live state."""
        sections, keys, tails, inline_bytes = wants
        small = self.entry_bytes <= inline_bytes
        chosen: dict[tuple[str, str], Entry] = {}
        if small:
            chosen = {
                at: entry
                for at, entry in self.entries.items()
                if (sections is None or at[0] in sections) and (entry.expires_at is None or entry.expires_at > now)
            }
        if not small or sections is not None:
            asked = ((at, self.entry(*at, now)) for at in keys)
            chosen |= {at: entry for at, entry in asked if entry is not None}
        wanted = dict(tails)
        return Snapshot(
            scope=self.scope,
            now=now,
            stamp=self.stamp,
            birth=self.birth,
            owner=self.owner,
            parent=self.parent,
            labels=self.labels,
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_at=self.expires_at,
            entries=chosen,
            complete=small,
            sections=dict(self.sections),
            logs={name: log.view(wanted.get(name, 0)) for name, log in self.logs.items()},
            entry_bytes=self.entry_bytes,
            once=self.known_once(once, now) if once is not None else None,
        )

    def info(self) -> ScopeInfo:
        """Return what a listing says."""
        assert self.stamp is not None
        return ScopeInfo(
            self.scope,
            self.stamp,
            self.owner,
            self.created_at,
            self.updated_at,
            self.expires_at,
            dict(self.labels),
            self.entry_bytes,
            {name: len(log.items) for name, log in self.logs.items()},
        )

    # -- checking ------------------------------------------------------------------------

    def validate(self, part: Part, now: float, *, alive: bool, once: OnceRecord | None = None) -> None:
        """Raise what forbids the part.

        Raises:
            ConflictError: a condition doesn't hold, or ``once`` is known already.
            UnsupportedValueError: an increment of what is no counter.
            ValueTooLargeError: a counter leaves 64 bits, or there are too many labels.
        """
        stamp, birth = (self.stamp, self.birth) if alive else (None, 0)
        if part.birth is not ANY and part.birth != birth:
            raise ConflictError(
                f"{part.scope} was dropped, expired or made anew since it was read.",
                scope=part.scope,
                expected=part.birth,
                found=birth,
                what="birth",
            )
        if not isinstance(part.base, Keep) and part.base != stamp:
            raise self._conflict(part.base, stamp, "the state")
        entries = self.entries
        for kind, name, expected, key in part.checks:
            if alive and kind == "entry":
                entry = entries.get((name, key))
                found = entry.stamp if entry is not None and (entry.expires_at or inf) > now else None
            else:
                found = self._found(kind, name) if alive else None
            if found != expected:
                raise self._conflict(expected, found, f"{name}/{key}" if kind == "entry" else name)
        if part.edits:
            self._validate_edits(part, alive=alive)
        if part.increments:
            self._counters(part, now, alive=alive)
        if not isinstance(part.labels, Keep) and len(part.labels) > MAX_LABELS:
            raise ValueTooLargeError(f"{part.scope} takes at most {MAX_LABELS} labels.", scope=part.scope)
        if once is not None and alive and self.known_once(once.key, now) is not None:
            raise ConflictError(f"{once.key!r} is done already in {part.scope}.", scope=part.scope, what="once")

    def _conflict(self, expected: Stamp | None, found: Stamp | None, what: str) -> ConflictError:
        said = f"{what} of {self.scope} was {expected or 'absent'} when it was read and is {found or 'absent'} now."
        return ConflictError(said, scope=self.scope, expected=expected, found=found, what=what)

    def _found(self, kind: str, name: str) -> Stamp | None:
        if kind == "section":
            return self.sections.get(name)
        log = self.logs.get(name)
        return log.stamp if log is not None else None

    def _validate_edits(self, part: Part, *, alive: bool) -> None:
        for edit in part.edits:
            log = self.logs.get(edit.log) if alive and not part.clear else None
            first = max([t.position for t in part.trims if t.log == edit.log], default=0)
            cut = min([c.position for c in part.cuts if c.log == edit.log], default=edit.position + 1)
            found = log.slice(edit.position, edit.position + 1) if log and first <= edit.position < cut else []
            if not found or found[0].seq != edit.seq:
                raise ConflictError(
                    f"Item {edit.position} of {edit.log} in {self.scope} is not the one that was read.",
                    scope=self.scope,
                    expected=edit.seq,
                    found=found[0].seq if found else None,
                    what=edit.log,
                )

    def _counters(self, part: Part, now: float, *, alive: bool) -> dict[tuple[str, str], int]:
        fresh = part.clear or not alive
        gone = set(part.deletes)
        put = {(one.section, one.key) for one in part.puts}
        values: dict[tuple[str, str], int] = {}
        for section, key, by in part.increments:
            at = (section, key)
            if at not in values:
                entry = None if fresh or at in gone else self.entry(section, key, now)
                if at in put or (entry is not None and not isinstance(entry.value, int)):
                    raise UnsupportedValueError(
                        f"{section}/{key} of {self.scope} is no counter.",
                        path=key,
                        remedy="Set it anew with increment only, or use update(key, fn).",
                    )
                values[at] = entry.value if entry is not None and isinstance(entry.value, int) else 0
            values[at] += by
            if not -COUNTER_LIMIT <= values[at] < COUNTER_LIMIT:
                raise ValueTooLargeError(f"The counter {section}/{key} of {self.scope} would leave 64 bits.")
        return values

    # -- changing ------------------------------------------------------------------------

    def apply(self, part: Part, commit_id: int, now: float, *, alive: bool, once: OnceRecord | None) -> Committed:
        """Make the change of a validated part; ``alive`` is what `validate` was told."""
        counters = self._counters(part, now, alive=alive) if part.increments else {}
        if part.clear or not alive:
            self._reset(now, commit_id)
            if part.clear and not (part.puts or part.increments or part.appends):
                return Committed(None, 0, {}, {})
        kept = part.kept
        self.version = self.version + 1 if kept is None else max(self.version + 1, kept.version)
        stamp = self.stamp = new(Stamp, (self.version, commit_id))
        self.updated_at = now
        if kept is not None:
            self._keep(kept, created=self.birth == commit_id)
        removed = self._shrink_logs(part, stamp) if part.cuts or part.trims or part.edits else {}
        self._change_entries(part, stamp, now, counters)
        ranges = self._append(part, stamp, now) if part.appends else {}
        if not (part.owner is part.parent is part.labels is part.ttl is KEEP):
            self._change_meta(part, now, created=self.birth == commit_id)
        self.commits.append(stamp)
        if once is not None:
            self._remember_once(once, now)
        if part.record is not None:
            self.journal.append(new(JournalRecord, (stamp, now, part.record, ranges, removed)))
        touched = {name: self.logs[name].view() for name in (ranges | removed if removed else ranges)}
        return new(Committed, (stamp, self.birth, touched, counters, self.expires_at))

    def _keep(self, kept: Kept, *, created: bool) -> None:
        self.updated_at = kept.updated_at
        if created:
            self.created_at = kept.created_at

    def _reset(self, now: float, commit_id: int) -> None:
        self.birth, self.created_at, self.stamp = commit_id, now, None
        self.owner = self.parent = self.expires_at = None
        self.entry_bytes, self.labels = 0, {}
        for kept in (self.entries, self.sections, self.logs, self.once):
            kept.clear()
        self.journal.clear()

    def _shrink_logs(self, part: Part, stamp: Stamp) -> dict[str, tuple[LogItem, ...]]:
        removed: dict[str, list[LogItem]] = {}
        for cut in part.cuts:
            if log := self.logs.get(cut.log):
                gone = log.slice(cut.position, log.head + 1)
                del log.items[len(log.items) - len(gone) :]
                log.settled = min(log.settled, log.head)
                self._note_removed(removed, cut.log, gone, stamp)
        for trim in part.trims:
            if log := self.logs.get(trim.log):
                gone = log.slice(log.first, trim.position)
                del log.items[: len(gone)]
                log.first += len(gone)
                self._note_removed(removed, trim.log, gone, stamp)
        for edit in part.edits:
            log = self.logs[edit.log]
            old = log.items[edit.position - log.first]
            log.items[edit.position - log.first] = old._replace(value=edit.value)
            log.size += len(edit.value) - len(old.value)
            log.stamp = stamp
            log.settled = min(log.settled, edit.position - 1)
            removed.setdefault(edit.log, []).append(old)
        return {name: tuple(gone) for name, gone in removed.items()}

    def _note_removed(self, removed: dict[str, list[LogItem]], name: str, gone: list[LogItem], stamp: Stamp) -> None:
        if gone:
            self.logs[name].forget(gone)
            self.logs[name].stamp = stamp
            removed.setdefault(name, []).extend(gone)

    def _change_entries(self, part: Part, stamp: Stamp, now: float, counters: dict[tuple[str, str], int]) -> None:
        for at in part.deletes:
            if self._discard(at):
                self.sections[at[0]] = stamp
        for section, key, value, ttl in part.puts:
            at = (section, key)
            self._discard(at)
            self.entries[at] = new(Entry, (value, stamp, None if ttl is None else now + ttl))
            self.entry_bytes += len(key) + len(value)
            self.sections[section] = stamp
        for at, number in counters.items():
            old = self.entry(*at, now)
            self._discard(at)
            self.entries[at] = Entry(number, stamp, old.expires_at if old else None)
            self.entry_bytes += len(at[1]) + 8
            self.sections[at[0]] = stamp

    def _discard(self, at: tuple[str, str]) -> bool:
        old = self.entries.pop(at, None)
        if old is None:
            return False
        self.entry_bytes -= len(at[1]) + (8 if isinstance(old.value, int) else len(old.value))
        return True

    def _append(self, part: Part, stamp: Stamp, now: float) -> dict[str, tuple[int, int]]:
        ranges: dict[str, tuple[int, int]] = {}
        for name, item_id, value, ttl, unique in part.appends:
            log = self.logs.get(name)
            if log is None:
                first = 1 if part.kept is None else part.kept.firsts.get(name, 1)
                log = self.logs[name] = Log(stamp, first, first)
            if unique and item_id in log.ids:
                continue
            seq = log.next_seq
            log.next_seq = seq + 1
            items = log.items
            place = log.first + len(items)
            items.append(new(LogItem, (seq, place, item_id, value, None if ttl is None else now + ttl)))
            log.size += len(value)
            log.stamp = stamp
            if unique:
                log.ids[item_id] = seq
            ranges[name] = (ranges[name][0] if name in ranges else seq, seq)
        return ranges

    def _change_meta(self, part: Part, now: float, *, created: bool) -> None:
        if part.owner is not KEEP:
            self.owner = None if isinstance(part.owner, Keep) else part.owner
        if part.parent is not KEEP:
            self.parent = None if isinstance(part.parent, Keep) else part.parent
        if not isinstance(part.labels, Keep):
            self.labels = dict(part.labels)
        if not isinstance(part.ttl, Keep) and (part.sliding or created or part.ttl is None):
            self.expires_at = None if part.ttl is None else now + part.ttl

    def _remember_once(self, once: OnceRecord, now: float) -> None:
        self.once[once.key] = once._replace(at=now)
        for key in list(self.once)[: -ONCE_COUNT or None]:
            del self.once[key]
        while self.once and next(iter(self.once.values())).at <= now - ONCE_SECONDS:
            del self.once[next(iter(self.once))]

    # -- expiry of single entries and items -----------------------------------------------

    def sweep(self, now: float, limit: int) -> tuple[int, int]:
        """Remove expired entries and empty expired items, at most ``limit``; return how many of each.

        An expired item keeps its place, so that positions stay dense, until it is at the head.
        """
        gone = [at for at, e in self.entries.items() if e.expires_at is not None and e.expires_at <= now][:limit]
        for at in gone:
            self._discard(at)
        items = 0
        for log in self.logs.values():
            for number, item in enumerate(log.items):
                if item.expires_at is None or item.expires_at > now or not item.value:
                    continue
                if len(gone) + items == limit:
                    return len(gone), items
                log.forget([item])
                log.items[number] = item._replace(value=b"")
                items += 1
            while log.items and _is_over(log.items[0], now):
                log.forget(log.items[:1])
                del log.items[0]
                log.first += 1
        return len(gone), items


def _is_over(item: LogItem, now: float) -> bool:
    """Whether an expired item holds nothing but its place."""
    return not item.value and item.expires_at is not None and item.expires_at <= now
