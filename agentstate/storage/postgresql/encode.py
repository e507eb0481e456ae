"""A commit's parts as the stored function takes them: one array for each field, for all parts together."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson

from agentstate.errors import UnsupportedError, UnsupportedValueError, ValueTooLargeError
from agentstate.storage.postgresql.layout import PARTITIONS
from agentstate.storage.postgresql.seals import entry_crc, item_crc, once_crc
from agentstate.storage.protocol import KEEP, MAX_LABELS, Keep, Lease, OnceRecord, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope

__all__ = ["RESENT", "CommitCall", "label_digest", "place_of"]

CLEAR, OWNER, PARENT, LABELS, TTL, SLIDING, UNCHANGED = 1, 2, 4, 8, 16, 32, 64
CHECK_KINDS: Final = {"entry": 0, "section": 1, "log": 2}
CUT, TRIM, EDIT = 0, 1, 2
RESENT: Final = 2  # which argument says that a commit comes again
LIMIT: Final = 2**63

ROW: Final = 15  # how many numbers a part has


def place_of(scope: StateScope) -> tuple[str, str, str]:
    """Return the address of a state in its table. Everybody locks states in this order."""
    return scope.tenant, scope.kind, scope.id


def label_digest(name: str, value: str) -> bytes:
    """Return what a label is found by."""
    return blake2b(f"{name}\0{value}".encode(), digest_size=16).digest()


class CommitCall:
    """The arguments of a commit, and what is needed to read its answer.

    Attributes:
        parts: in the order of the call.
        counters: for each part, the counters it adds to, in the order of the sums.
        arguments: of the stored function.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        commit_id: int,
        now: float | None,
        durable: bool,
        lease: Lease | None,
        release: bool,
        once: OnceRecord | None,
    ) -> None:
        """Put the arguments together.

        Raises:
            UnsupportedError: two parts have one scope.
            UnsupportedValueError: an increment of what the same part sets.
            ValueTooLargeError: too many labels, or an increment beyond 64 bits.
        """
        self.parts: list[Part] = list(parts)
        if len(self.parts) > 1:
            if len({part.scope for part in parts}) != len(parts):
                raise UnsupportedError("A commit holds one part per scope.")
            self.parts.sort(key=_place)
        leased = 0
        if lease is not None:
            leased = next((n for n, part in enumerate(self.parts, 1) if part.scope == lease.scope), 0)
            if leased == 0:
                self.parts = sorted([*self.parts, Part(scope=lease.scope, checks_only=True)], key=_place)
                leased = next(n for n, part in enumerate(self.parts, 1) if part.scope == lease.scope)
        self.counters: list[list[tuple[str, str]]] = []
        texts: list[str | None] = []
        numbers: list[int | None] = [0] * ROW
        times: list[float | None] = []
        records: list[bytes | None] = []
        found = _Operations()
        for part in self.parts:
            self.counters.append(found.take(part))
            texts += _texts(part)
            record, kept = part.record, part.kept
            numbers += (*_numbers(part), *found.ends(), None if record is None else item_crc(record))
            numbers.append(None if kept is None else kept.version)
            times.append(None if isinstance(part.ttl, Keep) else part.ttl)
            times += (None, None) if kept is None else (kept.created_at, kept.updated_at)
            records.append(part.record)
        first = 0 if once is None else next(n for n, part in enumerate(self.parts, 1) if part.scope == parts[0].scope)
        told = (None,) * 4 if once is None else (*once[:2], once.result, once_crc(*once[:2], once.result))
        self.arguments: list[Any] = [now, commit_id, False, durable, None if lease is None else lease.nonce]
        self.arguments += (leased, release, first, *told, texts, numbers, times, records, *found.arrays())


class _Operations:
    """The operations of all parts: an array for each field, one kind after the other."""

    def __init__(self) -> None:
        self.checks: tuple[list[Any], ...] = ([], [])
        self.shrinks: tuple[list[Any], ...] = ([], [], [])
        self.deletes: tuple[list[Any], ...] = ([],)
        self.puts: tuple[list[Any], ...] = ([], [], [], [])
        self.increments: tuple[list[Any], ...] = ([], [])
        self.appends: tuple[list[Any], ...] = ([], [], [], [])
        self.labels: tuple[list[Any], ...] = ([],)

    def arrays(self) -> list[Any]:
        """Return all arrays; NULL is quicker than an empty one."""
        kinds = (self.checks, self.shrinks, self.deletes, self.puts, self.increments, self.appends, self.labels)
        return [array or None for kind in kinds for array in kind]

    def ends(self) -> tuple[int, ...]:
        """Return how many operations of each kind there are so far."""
        return (
            len(self.checks[0]) // 2,
            len(self.shrinks[0]),
            len(self.deletes[0]) // 2,
            len(self.puts[1]),
            len(self.increments[0]) // 2,
            len(self.appends[1]),
            len(self.labels[0]),
        )

    def take(self, part: Part) -> list[tuple[str, str]]:
        """Take a part's operations in; return the counters it adds to."""
        names, numbers = self.checks
        for kind, name, stamp, key in part.checks:
            names += (name, key)
            numbers += (CHECK_KINDS[kind], *(stamp or (None, None)))
        if part.cuts or part.trims or part.edits:
            self._take_shrinks(part)
        for at in part.deletes:
            self.deletes[0].extend(at)
        names, values, ttls, seals = self.puts
        for section, key, value, ttl in part.puts:
            names += (section, key)
            values.append(value)
            ttls.append(ttl)
            seals.append(entry_crc(section, key, value))
        if part.appends:
            self._take_appends(part)
        if part.labels and not isinstance(part.labels, Keep):
            if len(part.labels) > MAX_LABELS:
                raise ValueTooLargeError(f"{part.scope} takes at most {MAX_LABELS} labels.", scope=part.scope)
            self.labels[0].extend(label_digest(name, value) for name, value in part.labels.items())
        return self._take_increments(part) if part.increments else []

    def _take_shrinks(self, part: Part) -> None:
        logs, numbers, values = self.shrinks
        for how, shrinks in ((CUT, part.cuts), (TRIM, part.trims)):
            for log, position in shrinks:
                logs.append(log)
                numbers += (how, position, None, None)
                values.append(None)
        for log, position, seq, value in part.edits:
            logs.append(log)
            numbers += (EDIT, position, seq, item_crc(value))
            values.append(value)

    def _take_increments(self, part: Part) -> list[tuple[str, str]]:
        sums: dict[tuple[str, str], int] = {}
        for section, key, by in part.increments:
            sums[section, key] = sums.get((section, key), 0) + by
        put, gone = {one[:2] for one in part.puts}, set(part.deletes)
        names, numbers = self.increments
        for at, by in sums.items():
            if at in put:
                raise no_counter(part.scope, *at)
            if not -LIMIT <= by < LIMIT:
                raise overflow(part.scope, *at)
            names += at
            numbers += (by, at in gone)
        return list(sums)

    def _take_appends(self, part: Part) -> None:
        names, values, ttls, numbers = self.appends
        seen: set[tuple[str, str]] = set()
        # Grouped by log; within one they stay in their order.
        for log, name, value, ttl, unique in sorted(part.appends, key=_log):
            if unique and (log, name) in seen:
                continue
            if unique:
                seen.add((log, name))
            names += (log, name)
            values.append(value)
            ttls.append(ttl)
            numbers += (unique, item_crc(value))


def _texts(part: Part) -> tuple[str | None, ...]:
    if part.owner is part.parent is part.labels is KEEP and part.kept is None:
        return (*place_of(part.scope), None, None, None, None)
    return (
        *place_of(part.scope),
        None if isinstance(part.owner, Keep) else part.owner,
        None if isinstance(part.parent, Keep) else part.parent,
        orjson.dumps(dict(part.labels)).decode() if part.labels and not isinstance(part.labels, Keep) else None,
        orjson.dumps(dict(part.kept.firsts)).decode() if part.kept is not None else None,
    )


def _numbers(part: Part) -> tuple[int | None, ...]:
    base = part.base
    stamp: tuple[int | None, ...] = (0, None, None)
    if not isinstance(base, Keep):
        stamp = (1, None, None) if base is None else (2, *base)
    flags = UNCHANGED if part.checks_only else _flags(part)
    return (part.scope.partition(PARTITIONS), part.birth if isinstance(part.birth, int) else None, *stamp, flags)


def _place(part: Part) -> tuple[str, str, str]:
    return place_of(part.scope)


def _log(append: Any) -> str:
    return str(append.log)


def _flags(part: Part) -> int:
    flags = CLEAR if part.clear else 0
    if part.owner is part.parent is part.labels is part.ttl is KEEP:
        return flags
    flags |= OWNER if part.owner is not KEEP else 0
    flags |= PARENT if part.parent is not KEEP else 0
    flags |= LABELS if part.labels is not KEEP else 0
    flags |= TTL if part.ttl is not KEEP else 0
    return flags | (SLIDING if part.sliding else 0)


def no_counter(scope: StateScope, section: str, key: str) -> UnsupportedValueError:
    """Return the error for an increment of what is no counter."""
    return UnsupportedValueError(
        f"{section}/{key} of {scope} is no counter.",
        path=key,
        remedy="Set it anew with increment only, or use update(key, fn).",
    )


def overflow(scope: StateScope, section: str, key: str) -> ValueTooLargeError:
    """Return the error for a counter that would leave 64 bits."""
    return ValueTooLargeError(f"The counter {section}/{key} of {scope} would leave 64 bits.", scope=scope)
