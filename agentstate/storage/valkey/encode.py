"""From the values of the protocol to the arguments of the scripts.

Sections, logs and label names are percent-encoded in keys and fields, so that their
separators are unambiguous; ids and entry keys stand as they are, at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from agentstate.errors import UnsupportedValueError, ValueTooLargeError
from agentstate.storage.protocol import ANY, KEEP, MAX_LABELS, Append, Keep, Part, Stamp, Wants

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.storage.protocol import OnceRecord

__all__ = ["Argument", "commit_arguments", "encode_once", "field", "hexed", "name", "number_text", "wants_arguments"]

Argument = str | bytes | int | float
COUNTER_LIMIT: Final = 2**63


@lru_cache(maxsize=1024)
def name(plain: str) -> str:
    """Return the name of a section, log, label or tenant as it stands in keys."""
    return quote(plain, safe="")


def field(section: str, key: str) -> str:
    """Return the field that says of an entry what it is; its value's field lacks the ``#``."""
    return f"#{name(section)}/{key}"


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


def commit_arguments(
    part: Part,
    commit_id: int,
    now: str,
    *,
    nonce: str,
    release: bool,
    once: OnceRecord | None,
) -> list[Argument]:
    """Return the arguments of a commit, in the order in which ``commit.lua`` takes them.

    Raises:
        UnsupportedValueError: an entry is put and increased at once.
        ValueTooLargeError: a counter would leave 64 bits, or there are too many labels.
    """
    birth = "*" if isinstance(part.birth, Keep) else hexed(part.birth) if part.birth else "-"
    ttl = "k" if isinstance(part.ttl, Keep) else number_text(part.ttl)
    arguments: list[Argument] = [
        now,
        "",
        hexed(commit_id),
        birth,
        _stamp(part.base),
        nonce,
        "1" if release else "",
        "1" if part.clear else "",
        ttl,
        "1" if part.sliding else "",
        _text(part.owner),
        _text(part.parent),
        _labels(part),
        "-" if part.record is None else b"=" + part.record,
    ]
    entries = _entries(part, once)
    arguments += entries
    arguments += _logs(part)
    return arguments


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


def encode_once(once: OnceRecord) -> bytes:
    """Return what an idempotency key did, as it stands at rest (after the time)."""
    fingerprint = once.fingerprint.encode()
    head = b"%016x %d %c " % (once.commit_id, len(fingerprint), b"-" if once.result is None else b"=")
    return head + fingerprint + b" " + (once.result or b"")


def _entries(part: Part, once: OnceRecord | None) -> list[Argument]:
    places: dict[str, int] = {}

    def at(section: str, key: str) -> int:
        return places.setdefault(field(section, key), len(places) + 1)

    checks: dict[str, list[Argument]] = {"entry": [], "section": [], "log": []}
    for kind, what, stamp, key in part.checks:
        checks[kind] += (at(what, key) if kind == "entry" else name(what), _stamp(stamp))
    deletes: list[Argument] = [at(*one) for one in part.deletes]
    puts: list[Argument] = []
    for section, key, value, ttl in part.puts:
        puts += (at(section, key), value, number_text(ttl))
    increments: list[Argument] = []
    for (section, key), by in _sums(part).items():
        increments += (at(section, key), str(by))
    found: list[Argument] = [len(places), *places]
    for kind in ("entry", "section", "log"):
        found += (len(checks[kind]) // 2, *checks[kind])
    found += ("0",) if once is None else ("1", once.key, encode_once(once))
    found += (len(deletes), *deletes, len(puts) // 3, *puts, len(increments) // 2, *increments)
    return found


def _sums(part: Part) -> dict[tuple[str, str], int]:
    """Return what is added to each counter in all: `commit.lua` adds once to each."""
    sums: dict[tuple[str, str], int] = {}
    put = {(one.section, one.key) for one in part.puts} if part.increments else ()
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


def _logs(part: Part) -> list[Argument]:
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
        logs.setdefault(append.log, _Log()).appends += _append(append)
    found: list[Argument] = [len(logs)]
    for log, one in logs.items():
        found += (name(log), one.cut, one.trim, len(one.edits) // 3, *one.edits, len(one.appends) // 4, *one.appends)
    return found


def _append(append: Append) -> tuple[Argument, ...]:
    identifier = append.id.encode()
    shape = b"u" if append.unique else b"-"
    tail = b"%b%d %b %b" % (shape, len(identifier), identifier, append.value)
    return b"=" + identifier if append.unique else "", number_text(append.ttl), tail, len(append.value)


def touched_logs(part: Part) -> list[str]:
    """Return the logs of a part in the order in which `commit_arguments` names them."""
    return list(dict.fromkeys(one.log for many in (part.cuts, part.trims, part.edits, part.appends) for one in many))


def touched_counters(part: Part) -> list[tuple[str, str]]:
    """Return the counters of a part in the order in which `commit_arguments` names them."""
    return list(dict.fromkeys((one.section, one.key) for one in part.increments))
