"""The conditions of a commit on a RocksDB store: looked at first, before anything is put into the batch.

`Conditions.check` raises whatever there is to raise and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentstate.errors import ConflictError, UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import ANY, MAX_LABELS, Check, Entry, Keep, Lease, LogItem, OnceRecord, Part, Stamp
from agentstate.storage.rocksdb.keys import entry_key, item_key
from agentstate.storage.rocksdb.reading import known_once
from agentstate.storage.rocksdb.rows import State, damaged, unpack_entry, unpack_item

if TYPE_CHECKING:
    from agentstate.storage.rocksdb.engine import Engine

__all__ = ["Conditions"]

COUNTER_LIMIT: Final = 2**63


class Conditions:
    """What a part of a commit demands, beside what is there."""

    def __init__(self, engine: Engine, part: Part, *, now: float, lease: Lease | None) -> None:
        """Read what the part concerns. A state that expired under its holder's hands is still whole for it."""
        self._engine = engine
        self._part = part
        self._now = now
        self._old = engine.head(part.scope) or State(part.scope)
        held = lease is not None and lease.scope == part.scope and part.birth == self._old.birth
        self._alive = self._old.alive(now) or (held and self._old.number != 0)
        self._fresh = part.clear or not self._alive
        self._found: dict[tuple[str, str], Entry | None] = {}
        self._counters: dict[tuple[str, str], int] = {}

    def check(self, once: OnceRecord | None) -> None:
        """Raise what forbids the part.

        Raises:
            ConflictError: a condition doesn't hold, or the idempotency key is known.
            UnsupportedValueError: an increment of what is no counter.
            ValueTooLargeError: a counter leaves 64 bits, or there are too many labels.
        """
        part, scope = self._part, self._part.scope
        stamp, birth = (self._old.stamp, self._old.birth) if self._alive else (None, 0)
        if part.birth is not ANY and part.birth != birth:
            raise ConflictError(
                f"{scope} was dropped, expired or made anew since it was read.",
                scope=scope,
                expected=part.birth,
                found=birth,
                what="birth",
            )
        if not isinstance(part.base, Keep) and part.base != stamp:
            raise self._conflict(part.base, stamp, "the state")
        for check in part.checks:
            found = self._stamp_of(check) if self._alive else None
            if found != check.stamp:
                what = f"{check.name}/{check.key}" if check.kind == "entry" else check.name
                raise self._conflict(check.stamp, found, what)
        for edit in part.edits:
            self._check_edit(edit.log, edit.position, edit.seq)
        if part.increments:
            self._add_up()
        if not isinstance(part.labels, Keep) and len(part.labels) > MAX_LABELS:
            raise ValueTooLargeError(f"{scope} takes at most {MAX_LABELS} labels.", scope=scope)
        if once is not None and self._alive and known_once(self._engine, self._old, once.key, self._now) is not None:
            raise ConflictError(f"{once.key!r} is done already in {scope}.", scope=scope, what="once")

    def _conflict(self, expected: Stamp | None, found: Stamp | None, what: str) -> ConflictError:
        scope = self._part.scope
        said = f"{what} of {scope} was {expected or 'absent'} when it was read and is {found or 'absent'} now."
        return ConflictError(said, scope=scope, expected=expected, found=found, what=what)

    def _stamp_of(self, check: Check) -> Stamp | None:
        if check.kind == "entry":
            entry = self._find((check.name, check.key))
            return entry.stamp if entry is not None and self._is_live(entry) else None
        if check.kind == "section":
            return self._old.sections.get(check.name)
        log = self._old.logs.get(check.name)
        return log.stamp if log else None

    def _is_live(self, entry: Entry) -> bool:
        return entry.expires_at is None or entry.expires_at > self._now

    def _find(self, at: tuple[str, str]) -> Entry | None:
        """Return an entry as it is stored, expired or not."""
        if at not in self._found:
            row, key = None, b""
            if at[0] in self._old.sections:
                key = entry_key(self._old.number, *at)
                row = self._engine.get(key)
            self._found[at] = None if row is None else unpack_entry(self._part.scope, key, row)
        return self._found[at]

    def _item(self, log: int, position: int) -> tuple[LogItem, int]:
        """Return an item that must be there, and its mark."""
        key = item_key(self._old.number, log, position)
        row = self._engine.get(key)
        if row is None:
            raise damaged(self._part.scope, f"a log, which lacks item {position},")
        return unpack_item(self._part.scope, key, row, position)

    def _check_edit(self, log: str, position: int, seq: int) -> None:
        part = self._part
        first = max([trim.position for trim in part.trims if trim.log == log], default=position)
        end = min([cut.position for cut in part.cuts if cut.log == log], default=position + 1)
        found, head = None, None if self._fresh else self._old.logs.get(log)
        if head is not None and first <= position < end and head.first <= position <= head.head:
            found = self._item(head.number, position)[0].seq
        if found != seq:
            raise ConflictError(
                f"Item {position} of {log} in {part.scope} is not the one that was read.",
                scope=part.scope,
                expected=seq,
                found=found,
                what=log,
            )

    def _add_up(self) -> None:
        part = self._part
        gone, put = set(part.deletes), {(one.section, one.key) for one in part.puts}
        for section, key, by in part.increments:
            at = (section, key)
            if at not in self._counters:
                found = None if self._fresh or at in gone else self._find(at)
                value = found.value if found is not None and self._is_live(found) else 0
                if at in put or not isinstance(value, int):
                    raise UnsupportedValueError(
                        f"{section}/{key} of {part.scope} is no counter.",
                        path=key,
                        remedy="Set it anew with increment only, or use update(key, fn).",
                    )
                self._counters[at] = value
            self._counters[at] += by
            if not -COUNTER_LIMIT <= self._counters[at] < COUNTER_LIMIT:
                raise ValueTooLargeError(f"The counter {section}/{key} of {part.scope} would leave 64 bits.")
