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
from agentstate.storage.protocol import ANY, KEEP, MAX_LABELS, Keep, Part, Stamp, Wants

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
COUNTER_BYTES: Final = 8
NO_STAMP: Final = "!"
OPTIONS: Final = 6
MANY: Final = 1000
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
    fields: list[bytes]
    logs: list[str]
    counters: list[tuple[str, str]]


class _Place(NamedTuple):
    """Where an entry lies, and how much of its size its key is."""

    field: bytes
    section: bytes
    size: int


@lru_cache(maxsize=4096)
def _place(section: str, key: str) -> _Place:
    return _Place(field(section, key).encode(), _record_field("section", section), len(key.encode()))


@lru_cache(maxsize=4096)
def _record_field(kind: str, plain: str) -> bytes:
    return f"{kind}:{name(plain)}".encode()


@lru_cache(maxsize=4096)
def _stamp(stamp: Stamp | Keep | None) -> str:
    if stamp is ANY:
        return "*"
    return "-" if stamp is None else str(stamp)


def commit_call(
    part: Part, commit_id: int, now: str, *, nonce: int, release: bool, once: OnceRecord | None
) -> CommitCall:
    """Return a commit's arguments, in the order in which ``commit.lua`` takes them.

    Raises:
        UnsupportedValueError: an entry is put and increased at once.
        ValueTooLargeError: a counter would leave 64 bits, or there are too many labels.
    """
    entries = _Entries(part)
    logs, special = _logs(part)
    changes, sums = _changes(part, once, entries, logs) if _is_rare(part, once) else ((), {})
    conditions, expected = entries.checks(part)
    birth, ttl, record = part.birth, part.ttl, part.record
    options = (
        f"{'r' if release else ''}{'' if record is None else 'j'}{'s' if part.sliding else ''}"
        f"{'o' if special or entries.special else ''}{'x' if changes else ''}"
    )
    arguments: list[Argument] = [
        now,
        "",
        f"{commit_id:016x}",
        "*" if birth is ANY else f"{birth:016x}" if birth else "-",
        _stamp(part.base),
        nonce or "",
        options,
        "k" if isinstance(ttl, Keep) else number_text(ttl),
        len(logs),
        len(conditions),
        len(entries.stamps),
        len(entries.puts) // 2,
        len(entries.sections),
        entries.size,
        *(_record_field("log", log) for log in logs),
        *conditions,
        *expected,
        *entries.stamps,
        *entries.stamps.values(),
        *entries.puts,
        *entries.sections,
        *changes,
    ]
    for size, items in logs.values():
        arguments += (len(items), size, *items)
    if record is not None:
        arguments.append(record)
    if len(arguments) > MANY:
        arguments[OPTIONS] = f"{options}m"
    return CommitCall(arguments, list(entries.stamps), list(logs), list(sums))


class _Entries:
    """The entries that a commit is about.

    Attributes:
        stamps: what is expected of each, by field, those that are put first; nothing where it doesn't matter.
        puts: what is put, two arguments each.
        sections: the fields of the sections that change.
        size: the bytes that are put.
        special: some have a lifetime of their own.
    """

    __slots__ = ("_numbers", "puts", "sections", "size", "special", "stamps")

    def __init__(self, part: Part) -> None:
        self.stamps: dict[bytes, str] = {}
        self.puts: list[Argument] = []
        self.sections: dict[bytes, None] = {}
        self.size = 0
        self.special = False
        self._numbers: dict[bytes, int] | None = None
        found = {_place(put[0], put[1]): put for put in part.puts}
        for (at, section, key_size), (_, _, value, ttl) in found.items():
            size = key_size + len(value)
            self.stamps[at] = ""
            self.sections[section] = None
            self.size += size
            if ttl is None:
                self.puts += (b"%d v" % size, value)
            else:
                self.puts += (f"{size} v{number_text(ttl)}", value)
                self.special = True

    def number(self, at: bytes) -> int:
        """Return the number of an entry that isn't put, or isn't only put."""
        if self._numbers is None:
            self._numbers = {known: number for number, known in enumerate(self.stamps, 1)}
        self.stamps.setdefault(at, "")
        return self._numbers.setdefault(at, len(self.stamps))

    def checks(self, part: Part) -> tuple[list[bytes], list[str]]:
        """Take in what is expected of entries; return the record's fields with conditions, and their stamps."""
        conditions: list[bytes] = []
        expected: list[str] = []
        stamps = self.stamps
        for kind, what, wanted, key in part.checks:
            stamp = _stamp(wanted)
            if kind == "entry":
                at = _place(what, key).field
                # Two stamps can't both be right.
                stamps[at] = stamp if stamps.get(at, "") in ("", stamp) else NO_STAMP
            else:
                conditions.append(_record_field(kind, what))
                expected.append(stamp)
        return conditions, expected


def _logs(part: Part) -> tuple[dict[str, tuple[int, list[bytes]]], bool]:
    """Return the bytes and the items that are appended to each log, and whether some are special."""
    logs: dict[str, tuple[int, list[bytes]]] = {}
    special = False
    for changes in (part.cuts, part.trims, part.edits):
        logs.update({one.log: (0, []) for one in changes})
    for log, plain, value, ttl, unique in part.appends:
        if unique or ttl is not None or not ((plain.isalnum() and plain.isascii()) or _UNESCAPED(plain)):
            item, special = _special_item(plain, value, ttl, unique=unique), True
        else:
            item = b"- %b %b" % (plain.encode(), value)
        size, items = logs.get(log) or (0, [])
        items.append(item)
        logs[log] = (size + len(value), items)
    return logs, special


def _special_item(plain: str, value: bytes, ttl: float | None, *, unique: bool) -> bytes:
    identifier = item_id(plain)
    marks = f"{'u' if unique else ''}{'' if identifier == plain else '%'}{'-' if ttl is None else number_text(ttl)}"
    return b"%b %b %b" % (marks.encode(), identifier.encode(), value)


def _is_rare(part: Part, once: OnceRecord | None) -> bool:
    return bool(
        part.increments
        or part.owner is not KEEP
        or part.labels is not KEEP
        or part.parent is not KEEP
        or part.deletes
        or part.clear
        or part.cuts
        or part.trims
        or part.edits
        or once
    )


def _changes(
    part: Part, once: OnceRecord | None, entries: _Entries, logs: Mapping[str, object]
) -> tuple[list[Argument], dict[tuple[str, str], int]]:
    """Return the rarer changes, as ``changes.lua`` reads them, and what is added to each counter."""
    sums = _sums(part)
    found: list[Argument] = ["1" if part.clear else "", _text(part.owner), _text(part.parent), _labels(part)]
    found += ("0",) if once is None else ("1", once.key, _once(once))
    places = [_place(*one) for one in part.deletes]
    found += (len(places), *(entries.number(place.field) for place in places))
    found.append(len(sums))
    for at, by in sums.items():
        place = _place(*at)
        entries.sections[place.section] = None
        found += (entries.number(place.field), place.size + COUNTER_BYTES, str(by))
    for log in logs:
        edits = [(position, str(seq), value) for edited, position, seq, value in part.edits if edited == log]
        found += (
            min((position for cut, position in part.cuts if cut == log), default=""),
            max((position for trimmed, position in part.trims if trimmed == log), default=""),
            len(edits),
            *(argument for edit in edits for argument in edit),
        )
    return found, sums


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
