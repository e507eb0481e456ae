"""The conditions of a commit on a SQLite state file: looked at first, before anything is written.

`Conditions.check` raises whatever there is to raise and writes nothing, so a refused member of
a group of commits leaves the others' transaction as it was, without a savepoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agentstate.errors import ConflictError, UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import ANY, MAX_LABELS, Check, Entry, Keep, Lease, OnceRecord, Part, Stamp
from agentstate.storage.sqlite.reading import known_once
from agentstate.storage.sqlite.rows import State, load

if TYPE_CHECKING:
    from agentstate.storage.sqlite.known import KnownStates
    from agentstate.storage.sqlite.pen import Pen

__all__ = ["Conditions", "Found", "entry_size", "found_of"]

COUNTER_LIMIT: Final = 2**63
FOUND: Final = (
    "SELECT version, commit_id, expires, CASE typeof(value) WHEN 'integer' THEN 8 ELSE length(value) END, "
    "CASE typeof(value) WHEN 'integer' THEN value END "
    "FROM entries WHERE scope = ? AND section = ? AND key = ?"
)


class Found(NamedTuple):
    """An entry as it stands. ``counter`` is ``None`` for bytes."""

    stamp: Stamp
    expires: float | None
    size: int
    counter: int | None

    def live(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.expires is None or self.expires > now


def entry_size(key: str, value: bytes | int) -> int:
    """Return the bytes that an entry counts for."""
    return len(key) + (8 if isinstance(value, int) else len(value))


def found_of(key: str, entry: Entry) -> Found:
    """Return a known entry as it stands."""
    value, stamp, expires = entry
    if isinstance(value, int):
        return Found(stamp, expires, len(key) + 8, value)
    return Found(stamp, expires, len(key) + len(value), None)


class Conditions:
    """What a part of a commit demands, beside what is there."""

    __slots__ = (
        "_alive",
        "_counters",
        "_found",
        "_fresh",
        "_group",
        "_now",
        "_part",
        "_pen",
        "_state",
    )

    def __init__(self, pen: Pen, group: KnownStates, part: Part, *, now: float, lease: Lease | None) -> None:
        """Read what the part concerns. A state that expired under its holder's hands is still whole for it."""
        scope = part.scope
        self._pen = pen
        self._group = group
        self._part = part
        self._now = now
        state = self._state = group.get(scope) or load(pen, scope) or State(scope)
        if state.expires is None or state.expires > now:
            self._alive = state.number != 0
        else:
            self._alive = lease is not None and lease.scope == scope and part.birth == state.birth != 0
        self._fresh = part.clear or not self._alive
        self._found: dict[tuple[str, str], Found | None] = {}
        self._counters: dict[tuple[str, str], int] = {}

    def check(self, once: OnceRecord | None) -> None:
        """Raise what forbids the part.

        Raises:
            ConflictError: a condition doesn't hold, or the idempotency key is known.
            UnsupportedValueError: an increment of what is no counter.
            ValueTooLargeError: a counter leaves 64 bits, or there are too many labels.
        """
        part, scope = self._part, self._part.scope
        birth = self._state.birth if self._alive else 0
        if part.birth is not ANY and part.birth != birth:
            raise ConflictError(
                f"{scope} was dropped, expired or made anew since it was read.",
                scope=scope,
                expected=part.birth,
                found=birth,
                what="birth",
            )
        if not isinstance(part.base, Keep):
            stamp = self._state.stamp if self._alive else None
            if part.base != stamp:
                raise self._conflict(part.base, stamp, "the state")
        for check in part.checks:
            found = self._check_stamp(check) if self._alive else None
            if found != check[2]:
                what = f"{check.name}/{check.key}" if check.kind == "entry" else check.name
                raise self._conflict(check.stamp, found, what)
        for edit in part.edits:
            self._check_edit(edit.log, edit.position, edit.seq)
        if part.increments:
            self._add_up()
        if not isinstance(part.labels, Keep) and len(part.labels) > MAX_LABELS:
            raise ValueTooLargeError(f"{scope} takes at most {MAX_LABELS} labels.", scope=scope)
        if once is not None and self._alive and known_once(self._pen, self._state, once.key, self._now) is not None:
            raise ConflictError(f"{once.key!r} is done already in {scope}.", scope=scope, what="once")

    def _conflict(self, expected: Stamp | None, found: Stamp | None, what: str) -> ConflictError:
        scope = self._part.scope
        said = f"{what} of {scope} was {expected or 'absent'} when it was read and is {found or 'absent'} now."
        return ConflictError(said, scope=scope, expected=expected, found=found, what=what)

    def _check_stamp(self, check: Check) -> Stamp | None:
        kind, name, _, key = check
        state = self._state
        if kind == "log":
            log = state.logs.get(name)
            return log.stamp if log else None
        if kind == "section":
            return state.sections.get(name)
        if state.entries is None:
            found = self._find((name, key))
            return found.stamp if found is not None and found.live(self._now) else None
        entry = state.entries.get((name, key))
        if entry is None:
            return None
        _, stamp, expires = entry
        return stamp if expires is None or expires > self._now else None

    def _find(self, at: tuple[str, str]) -> Found | None:
        """Return an entry as it stands."""
        if self._state.entries is not None:
            entry = self._state.entries.get(at)
            return None if entry is None else found_of(at[1], entry)
        if at not in self._found:
            row = None
            if at[0] in self._state.sections:
                row = self._pen.execute(FOUND, (self._state.number, *at)).fetchone()
            self._found[at] = None if row is None else Found(Stamp(row[0], row[1]), row[2], len(at[1]) + row[3], row[4])
        return self._found[at]

    def _check_edit(self, log: str, position: int, seq: int) -> None:
        part = self._part
        first = max([trim.position for trim in part.trims if trim.log == log], default=position)
        end = min([cut.position for cut in part.cuts if cut.log == log], default=position + 1)
        found, head = None, None if self._fresh else self._state.logs.get(log)
        if head is not None and first <= position < end and head.first <= position <= head.head:
            row = self._pen.execute("SELECT seq FROM items WHERE key = ?", (head.key(position),)).fetchone()
            found = None if row is None else row[0]
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
                live = found if found is not None and found.live(self._now) else None
                if at in put or (live is not None and live.counter is None):
                    raise UnsupportedValueError(
                        f"{section}/{key} of {part.scope} is no counter.",
                        path=key,
                        remedy="Set it anew with increment only, or use update(key, fn).",
                    )
                self._counters[at] = (live.counter or 0) if live is not None else 0
            self._counters[at] += by
            if not -COUNTER_LIMIT <= self._counters[at] < COUNTER_LIMIT:
                raise ValueTooLargeError(f"The counter {section}/{key} of {part.scope} would leave 64 bits.")
