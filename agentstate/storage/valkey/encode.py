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
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from agentstate.storage.protocol import OnceRecord, Put

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
_NONE: Final[list[Argument]] = []
_NO_SUMS: Final[dict[tuple[str, str], int]] = {}
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
    fields: Collection[bytes]
    logs: Collection[str]
    counters: Collection[tuple[str, str]]


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


@lru_cache(maxsize=1024)
def _log_field(log: str) -> bytes:
    return _record_field("log", log)


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
    stamps: dict[bytes, str] = {}  # what is expected of each entry, '' where it doesn't matter
    sections: dict[bytes, None] = {}
    logs: dict[str, list[bytes]] = {}
    puts, size, own_ttl = _puts(part, stamps, sections)
    changes, sums = _changes(part, once, stamps, sections, logs) if _is_rare(part, once) else (_NONE, _NO_SUMS)
    conditions, expected = _checks(part, stamps)
    appends, special = _appends(part, logs)
    birth, ttl, record = part.birth, part.ttl, part.record
    options = f"{special or own_ttl}{'x' if changes else ''}{'r' if release else ''}{'' if record is None else 'j'}"
    if part.sliding and not isinstance(ttl, Keep):
        options += "s"
    arguments: list[Argument] = [
        now,
        "",
        f"{commit_id:016x}",
        "*" if birth is ANY else f"{birth:016x}" if birth else "-",
        "*" if part.base is ANY else _stamp(part.base),
        nonce or "",
        options,
        "k" if isinstance(ttl, Keep) else number_text(ttl),
        len(logs),
        len(conditions),
        len(stamps),
        len(puts) // 2,
        len(sections),
        size,
        *map(_log_field, logs),
        *conditions,
        *expected,
        *stamps,
        *stamps.values(),
        *puts,
        *sections,
        *changes,
        *appends,
    ]
    if record is not None:
        arguments.append(record)
    if len(arguments) > MANY:
        arguments[OPTIONS] = f"{options}m"
    return new(CommitCall, (arguments, stamps, logs, sums))


def _puts(part: Part, stamps: dict[bytes, str], sections: dict[bytes, None]) -> tuple[list[Argument], int, str]:
    """Return what is put, two arguments each, its bytes, and the option when some has a lifetime of its own."""
    puts: list[Argument] = []
    total = 0
    special = ""
    for section, key, value, ttl in _last_of_each(part.puts) if len(part.puts) > 1 else part.puts:
        at, changed, size = _place(section, key)
        size += len(value)
        total += size
        stamps[at] = ""
        sections[changed] = None
        if ttl is None:
            puts += (b"%d v" % size, value)
        else:
            puts += (f"{size} v{number_text(ttl)}", value)
            special = "o"
    return puts, total, special


def _last_of_each(puts: Sequence[Put]) -> Iterable[Put]:
    return {(put.section, put.key): put for put in puts}.values()


def _checks(part: Part, stamps: dict[bytes, str]) -> tuple[list[bytes], list[str]]:
    """Take in what is expected of entries; return the record's fields with conditions, and their stamps."""
    conditions: list[bytes] = []
    expected: list[str] = []
    for kind, what, wanted, key in part.checks:
        stamp = "-" if wanted is None else _stamp(wanted)
        if kind == "entry":
            at = _place(what, key)[0]
            other = stamps.get(at)
            stamps[at] = stamp if not other or other == stamp else NO_STAMP  # two can't both be right
        else:
            conditions.append(_record_field(kind, what))
            expected.append(stamp)
    return conditions, expected


def _appends(part: Part, logs: dict[str, list[bytes]]) -> tuple[list[Argument], str]:
    """Return number, bytes and items of what is appended to each log, and the option when some is special."""
    sizes = dict.fromkeys(logs, 0)
    special = ""
    for log, plain, value, ttl, unique in part.appends:
        if ttl is None and not unique and ((plain.isalnum() and plain.isascii()) or _UNESCAPED(plain)):
            item = b"- %b %b" % (plain.encode(), value)
        else:
            item, special = _special_item(plain, value, ttl, unique=unique), "o"
        if log in sizes:
            logs[log].append(item)
            sizes[log] += len(value)
        else:
            logs[log] = [item]
            sizes[log] = len(value)
    arguments: list[Argument] = []
    for log, items in logs.items():
        arguments += (len(items), sizes[log], *items)
    return arguments, special


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
        or part.kept
        or once
    )


def _changes(
    part: Part,
    once: OnceRecord | None,
    stamps: dict[bytes, str],
    sections: dict[bytes, None],
    logs: dict[str, list[bytes]],
) -> tuple[list[Argument], dict[tuple[str, str], int]]:
    """Return the rarer changes, as ``changes.lua`` reads them, and what is added to each counter."""
    sums = _sums(part)
    numbers = {at: number for number, at in enumerate(stamps, 1)}
    found: list[Argument] = ["1" if part.clear else "", _text(part.owner), _text(part.parent), _labels(part)]
    found += ("0",) if once is None else ("1", once.key, _once(once))
    kept = part.kept
    found += ("0",) if kept is None else ("1", kept.version, repr(kept.created_at), repr(kept.updated_at))
    places = [_place(*one).field for one in part.deletes]
    found += (len(places), *(numbers.setdefault(at, len(numbers) + 1) for at in places))
    found.append(len(sums))
    for one, by in sums.items():
        at, section, size = _place(*one)
        sections[section] = None
        found += (numbers.setdefault(at, len(numbers) + 1), size + COUNTER_BYTES, str(by))
    stamps.update(dict.fromkeys(numbers, ""))
    for changes in (part.cuts, part.trims, part.edits, part.appends):
        logs.update({one.log: [] for one in changes})
    for log in logs:
        edits = [(position, str(seq), value) for edited, position, seq, value in part.edits if edited == log]
        found += (
            min((position for cut, position in part.cuts if cut == log), default=""),
            max((position for trimmed, position in part.trims if trimmed == log), default=""),
            1 if kept is None else kept.firsts.get(log, 1),
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
