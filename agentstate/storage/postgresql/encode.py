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

# How many arrays each kind of operation has.
WIDTHS: Final = {"checks": 5, "shrinks": 6, "deletes": 2, "puts": 5, "increments": 4, "appends": 6, "labels": 1}


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
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in WIDTHS}
        self._ends = [0] * len(WIDTHS)
        heads = [self._take(part) for part in self.parts]
        first = 0 if once is None else next(n for n, part in enumerate(self.parts, 1) if part.scope == parts[0].scope)
        told = (None,) * 4 if once is None else (*once[:2], once.result, once_crc(*once[:2], once.result))
        self.arguments: list[Any] = [now, commit_id, False, durable, None if lease is None else lease.nonce]
        self.arguments += [leased, release, first, *told]
        self.arguments += map(list, zip(*heads, strict=True))
        self.arguments.append(self._ends)
        for name, width in WIDTHS.items():
            rows = self._rows[name]
            self.arguments += map(list, zip(*rows, strict=True)) if rows else (None,) * width

    def _take(self, part: Part) -> tuple[Any, ...]:
        """Take a part's operations, and return what it has one of."""
        self._take_checks(part)
        self._rows["deletes"] += part.deletes
        self._rows["puts"] += [
            (section, key, value, ttl, entry_crc(section, key, value)) for section, key, value, ttl in part.puts
        ]
        self._take_increments(part)
        self._take_appends(part)
        labels = None if isinstance(part.labels, Keep) else part.labels
        if labels:
            if len(labels) > MAX_LABELS:
                raise ValueTooLargeError(f"{part.scope} takes at most {MAX_LABELS} labels.", scope=part.scope)
            self._rows["labels"] += [(label_digest(name, value),) for name, value in labels.items()]
        self._ends += [len(rows) for rows in self._rows.values()]
        scope, base, record = part.scope, part.base, part.record
        stamp: tuple[int | None, ...] = (0, None, None)
        if not isinstance(base, Keep):
            stamp = (1, None, None) if base is None else (2, *base)
        return (
            *(*place_of(scope), scope.partition(PARTITIONS)),
            *(part.birth if isinstance(part.birth, int) else None, *stamp),
            UNCHANGED if part.checks_only else _flags(part),
            None if isinstance(part.owner, Keep) else part.owner,
            None if isinstance(part.parent, Keep) else part.parent,
            orjson.dumps(dict(labels)).decode() if labels else None,
            None if isinstance(part.ttl, Keep) else part.ttl,
            *(record, None if record is None else item_crc(record)),
        )

    def _take_checks(self, part: Part) -> None:
        checks, shrinks = self._rows["checks"], self._rows["shrinks"]
        for kind, name, stamp, key in part.checks:
            checks.append((CHECK_KINDS[kind], name, key, *(stamp or (None, None))))
        if part.cuts or part.trims or part.edits:
            shrinks += [(CUT, cut.log, cut.position, None, None, None) for cut in part.cuts]
            shrinks += [(TRIM, trim.log, trim.position, None, None, None) for trim in part.trims]
            shrinks += [(EDIT, log, at, seq, value, item_crc(value)) for log, at, seq, value in part.edits]

    def _take_increments(self, part: Part) -> None:
        sums: dict[tuple[str, str], int] = {}
        for section, key, by in part.increments:
            sums[section, key] = sums.get((section, key), 0) + by
        self.counters.append(list(sums))
        put, gone = {one[:2] for one in part.puts}, set(part.deletes)
        for at, by in sums.items():
            if at in put:
                raise no_counter(part.scope, *at)
            if not -LIMIT <= by < LIMIT:
                raise overflow(part.scope, *at)
            self._rows["increments"].append((*at, by, at in gone))

    def _take_appends(self, part: Part) -> None:
        seen: set[tuple[str, str]] = set()
        # Grouped by log; within one they stay in their order.
        for log, name, value, ttl, unique in sorted(part.appends, key=_log) if part.appends else ():
            if unique and (log, name) in seen:
                continue
            seen.add((log, name)) if unique else None
            self._rows["appends"].append((log, name, value, ttl, unique, item_crc(value)))


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
