"""Sealed lines: what every file of the file backend is made of.

A line is one JSON object that begins with its digest and its length::

    {"sum":"8d0c…","len":171,"n":4,"ops":[…]}

The digest covers everything after the length and, in files with one writer at a time, the
digest of the line before: a line that was changed, lost, moved or repeated breaks the chain.
The length tells a line that a crash cut short from one that was damaged later.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

__all__ = ["HEAD", "Json", "Line", "is_torn", "read_lines", "seal", "unseal"]

Json = dict[str, Any]

OPEN: Final = b'{"sum":"'
LENGTH: Final = b'","len":'
HEAD: Final = re.compile(rb'\{"sum":"[0-9a-f]{16}","len":([0-9]{1,15}),')
DIGEST_END: Final = len(OPEN) + 16
NUMBER: Final = DIGEST_END + len(LENGTH)
UNWRITTEN: Final = re.compile(rb"\0{8,}")
BLOCK: Final = 512


class Line(NamedTuple):
    """One line as read: what it says, where it ends, and its digest."""

    body: Json
    end: int
    sum: str


def seal(body: bytes, after: str = "") -> tuple[bytes, str]:
    """Return a JSON object as a line that follows the line with digest ``after``, and its own digest."""
    digest = blake2b(after.encode() + body, digest_size=8).hexdigest()
    return b'{"sum":"%b","len":%d,%b\n' % (digest.encode(), len(body), body[1:]), digest


def unseal(line: bytes, after: str = "") -> tuple[bytes, str] | None:
    """Return the JSON object in a line (without its end) and its digest; ``None`` if it doesn't fit."""
    head = HEAD.match(line)
    if head is None:
        return None
    body = b"{" + line[head.end() :]
    digest = blake2b(after.encode() + body, digest_size=8).hexdigest()
    if len(body) != int(head[1]) or line[len(OPEN) : DIGEST_END] != digest.encode():
        return None
    return body, digest


def read_lines(data: bytes, after: str, *, start: int = 0) -> list[Line]:
    """Return the lines of a chain, up to the first that is incomplete or not what was written.

    Args:
        data: bytes of a file.
        after: the digest of the line before.
        start: the offset of ``data`` in its file.
    """
    lines: list[Line] = []
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        found = unseal(data[at:end], after)
        if found is None:
            break
        body, after = found
        at = end + 1
        lines.append(Line(orjson.loads(body), start + at, after))
    return lines


def is_torn(rest: bytes, at: int) -> bool:
    """Return whether the end of a file is what a crash leaves of a line that was being written.

    That is a beginning of a line, or a line in which blocks are still unwritten (all NUL) after
    a loss of power. A whole line with other damage is not.

    Args:
        rest: everything after the last good line.
        at: its offset in the file.
    """
    if b"\n" in rest[:-1]:
        return False
    for hole in UNWRITTEN.finditer(rest):
        begins = hole.start() == 0 or (at + hole.start()) % BLOCK == 0
        if begins and (hole.end() == len(rest) or (at + hole.end()) % BLOCK == 0):
            return True
    head = HEAD.match(rest)
    if head is not None:
        return len(rest) < head.end() + int(head[1]) and not rest.endswith(b"\n")
    return (
        OPEN.startswith(rest[: len(OPEN)])
        and re.fullmatch(rb"[0-9a-f]*", rest[len(OPEN) : DIGEST_END]) is not None
        and LENGTH.startswith(rest[DIGEST_END:NUMBER])
        and re.fullmatch(rb"[0-9]*", rest[NUMBER:]) is not None
    )
