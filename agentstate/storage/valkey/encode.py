"""From the values of the protocol to the arguments of the scripts.

Sections, logs and label names are percent-encoded in keys and fields, so that their
separators are unambiguous; ids and entry keys stand as they are, at the end.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from agentstate.errors import UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import ANY, KEEP, MAX_LABELS, Append, Keep, Part, Stamp, Wants

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.storage.protocol import OnceRecord

__all__ = [
    "Argument",
    "CommitCall",
    "commit_call",
    "field",
    "hexed",
    "item_id",
    "name",
    "number_text",
    "wants_arguments",
]

Argument = str | bytes | int | float
COUNTER_LIMIT: Final = 2**63
_UNESCAPED: Final = re.compile(r"[!-$&-~]*").fullmatch
_ESCAPES: Final = {ord(one): f"%{ord(one):02X}" for one in "% \t\n\v\f\r"}


@lru_cache(maxsize=1024)
def name(plain: str) -> str:
    """Return the name of a section, log, label or tenant as it stands in keys."""
    return quote(plain, safe="")


def field(section: str, key: str) -> str:
    """Return the field that says of an entry what it is; its value's field lacks the ``#``."""
    return f"#{name(section)}/{key}"


def item_id(plain: str) -> str:
    """Return a log item's id as it stands in the item: without white space, which ends it."""
    return plain if _UNESCAPED(plain) else plain.translate(_ESCAPES)


def hexed(commit_id: int) -> str:
    """Return a commit id as it stands at rest."""
    return f"{commit_id:016x}"


def number_text(value: float | None) -> str:
    """Return a number exactly, or nothing."""
    return "" if value is None else repr(float(value))


@lru_cache(maxsize=256)
def wants_arguments(wants: Wants) -> tuple[int, tuple[Argument, ...]]:
    """Return the inline limit, and the arguments for tails and entries."""
    inline = wants.inline_bytes if wants.sections != () else -1
    tails = [part for log, count in wants.tails for part in (name(log), count)]
    return inline, (len(wants.tails), *tails, *(field(*at) for at in wants.keys))


class CommitCall(NamedTuple):
    """A commit as ``commit.lua`` takes it, and what its reply refers to.

    Attributes:
        fields: of the entries, in the order in which the script numbers them from 1.
        logs: in the order of the script's reply; so are ``counters``.
    """

    arguments: list[Argument]
    fields: list[str]
    logs: list[str]
    counters: list[tuple[str, str]]


def commit_call(
    part: Part, commit_id: int, now: str, *, nonce: str, release: bool, once: OnceRecord | None
) -> CommitCall:
    """Return a commit's arguments, in the order in which ``commit.lua`` takes them.

    Raises:
        UnsupportedValueError: an entry is put and increased at once.
        ValueTooLargeError: a counter would leave 64 bits, or there are too many labels.
    """
    logs = _logs(part)
    fields: dict[str, int] = {}
    conditions, expected, entry_checks = _checks(part, fields)
    sums = _sums(part) if part.increments else {}
    arguments: list[Argument] = [
        now,
        "",
        hexed(commit_id),
        "*" if isinstance(part.birth, Keep) else hexed(part.birth) if part.birth else "-",
        _stamp(part.base),
        nonce,
        "1" if release else "",
        "1" if part.clear else "",
        "k" if isinstance(part.ttl, Keep) else number_text(part.ttl),
        "1" if part.sliding else "",
        _text(part.owner),
        _text(part.parent),
        _labels(part),
        "" if part.record is None else "1",
        len(logs),
        len(conditions),
        *(f"log:{name(log)}" for log in logs),
        *conditions,
        *expected,
    ]
    changes = _changes(part, sums, fields)
    arguments += (len(fields), *fields, len(entry_checks) // 2, *entry_checks)
    arguments += ("0",) if once is None else ("1", once.key, _once(once))
    arguments += changes
    for one in logs.values():
        arguments += (one.cut, one.trim, len(one.edits) // 3, *one.edits, len(one.appends) // 4, *one.appends)
    if part.record is not None:
        arguments.append(part.record)
    return CommitCall(arguments, list(fields), list(logs), list(sums))


def _stamp(stamp: Stamp | Keep | None) -> str:
    if stamp is ANY:
        return "*"
    return "-" if stamp is None else str(stamp)


def _text(value: str | Keep | None) -> str:
    if value is KEEP:
        return "k"
    return "-" if value is None else f"={value}"


def _labels(part: Part) -> str:
    if isinstance(part.labels, Keep):
        return "k"
    if len(part.labels) > MAX_LABELS:
        raise ValueTooLargeError(f"{part.scope} takes at most {MAX_LABELS} labels.", scope=part.scope)
    return f"={encode_labels(part.labels)}" if part.labels else "-"


def encode_labels(labels: Mapping[str, str]) -> str:
    """Return labels as they stand in the record; each pair also names its index."""
    return "&".join(f"{name(key)}={quote(value, safe='')}" for key, value in sorted(labels.items()))


def _once(once: OnceRecord) -> bytes:
    fingerprint = once.fingerprint.encode()
    head = b"%016x %d %c " % (once.commit_id, len(fingerprint), b"-" if once.result is None else b"=")
    return head + fingerprint + b" " + (once.result or b"")


def _checks(part: Part, fields: dict[str, int]) -> tuple[list[str], list[str], list[Argument]]:
    """Return the record's fields with conditions, their stamps, and the entries with theirs."""
    conditions: list[str] = []
    expected: list[str] = []
    entries: list[Argument] = []
    for kind, what, stamp, key in part.checks:
        if kind == "entry":
            entries += (_number(fields, what, key), _stamp(stamp))
        else:
            conditions.append(f"{kind}:{name(what)}")
            expected.append(_stamp(stamp))
    return conditions, expected, entries


def _number(fields: dict[str, int], section: str, key: str) -> int:
    return fields.setdefault(field(section, key), len(fields) + 1)


def _changes(part: Part, sums: dict[tuple[str, str], int], fields: dict[str, int]) -> list[Argument]:
    found: list[Argument] = [len(part.deletes)]
    for section, key in part.deletes:
        found.append(_number(fields, section, key))
    found.append(len(part.puts))
    for section, key, value, ttl in part.puts:
        found += (_number(fields, section, key), value, number_text(ttl))
    found.append(len(sums))
    for (section, key), by in sums.items():
        found += (_number(fields, section, key), str(by))
    return found


def _sums(part: Part) -> dict[tuple[str, str], int]:
    """Return what is added to each counter in all: `commit.lua` adds once to each."""
    sums: dict[tuple[str, str], int] = {}
    put = {(one.section, one.key) for one in part.puts}
    for section, key, by in part.increments:
        if (section, key) in put:
            raise UnsupportedValueError(
                f"{section}/{key} of {part.scope} is put and increased in one commit.",
                path=key,
                remedy="Put the sum instead, or increase only.",
            )
        total = sums[section, key] = sums.get((section, key), 0) + by
        if not -COUNTER_LIMIT <= total < COUNTER_LIMIT or not -COUNTER_LIMIT <= by < COUNTER_LIMIT:
            raise ValueTooLargeError(f"The counter {section}/{key} of {part.scope} would leave 64 bits.")
    return sums


class _Log:
    """What one commit does to one log."""

    __slots__ = ("appends", "cut", "edits", "trim")

    def __init__(self) -> None:
        self.cut: int | str = ""
        self.trim: int | str = ""
        self.edits: list[Argument] = []
        self.appends: list[Argument] = []


def _logs(part: Part) -> dict[str, _Log]:
    logs: dict[str, _Log] = {}
    for log, position in part.cuts:
        one = logs.setdefault(log, _Log())
        one.cut = position if isinstance(one.cut, str) else min(one.cut, position)
    for log, position in part.trims:
        one = logs.setdefault(log, _Log())
        one.trim = position if isinstance(one.trim, str) else max(one.trim, position)
    for log, position, seq, value in part.edits:
        logs.setdefault(log, _Log()).edits += (position, str(seq), value)
    for append in part.appends:
        log = append.log
        if log not in logs:
            logs[log] = _Log()
        logs[log].appends += _append(append)
    return logs


def _append(append: Append) -> tuple[Argument, ...]:
    _, plain, value, ttl, unique = append
    identifier = item_id(plain).encode()
    tail = (b"u %b %b" if unique else b"- %b %b") % (identifier, value)
    return b"=" + identifier if unique else "", number_text(ttl), tail, len(value)
