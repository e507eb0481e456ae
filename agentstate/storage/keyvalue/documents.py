"""How bytes become documents and back: a line that vouches for the rest, then JSON.

The checksum covers the key, too, so that a document that stands in another's place is found.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from agentstate.errors import DamagedStateError, NewerFormatError
from agentstate.storage.protocol import LogItem, Stamp

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = [
    "pack",
    "pack_bytes",
    "pack_item",
    "place_of",
    "read_stamp",
    "unpack",
    "unpack_bytes",
    "unpack_item",
]

FORMAT: Final = 1
LONGEST_NAME: Final = 160


def place_of(text: str) -> str:
    """Return a text as a part of keys: letters, digits and ``-_.~%``; of a long one the beginning and a digest."""
    name = quote(text, safe="")
    return name if len(name) <= LONGEST_NAME else f"{name[:100]}={sha256(text.encode()).hexdigest()[:40]}"


def pack(key: str, body: object) -> bytes:
    """Return a document as it is stored under a key."""
    data = orjson.dumps(body)
    return b'{"format":%d,"crc":%d}\n' % (FORMAT, _crc(key, data)) + data


def unpack(key: str, raw: bytes, scope: StateScope | None = None) -> Any:
    """Return the body of a document.

    Raises:
        NewerFormatError: a newer release wrote it.
        DamagedStateError: it is not what was written.
    """
    line, _, data = raw.partition(b"\n")
    try:
        head = orjson.loads(line)
        number, crc = head["format"], head["crc"]
    except (ValueError, TypeError, KeyError):
        number, crc = FORMAT, None
    if isinstance(number, int) and number > FORMAT:
        raise NewerFormatError(
            f"The document {key} has format {number}; this release knows {FORMAT}.",
            scope=scope,
            remedy="Upgrade agentstate-suite; it was left as it is.",
        )
    if crc != _crc(key, data):
        raise DamagedStateError(
            f"The document {key} is damaged.",
            scope=scope,
            remedy="Restore it from a backup; nothing was overwritten.",
        )
    return orjson.loads(data)


def _crc(key: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key.encode()))


def pack_bytes(value: bytes) -> object:
    """Return bytes as JSON: as text where they are text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return [b64encode(value).decode()]


def unpack_bytes(told: Any) -> bytes:
    """Return the bytes that `pack_bytes` was given."""
    return told.encode() if isinstance(told, str) else b64decode(told[0])


def read_stamp(told: Any) -> Stamp | None:
    """Return a stamp from JSON."""
    return None if told is None else Stamp(*told)


def pack_item(item: LogItem, *, unique: bool) -> tuple[object, ...]:
    """Return an item of a log as JSON; its position is known from where it stands."""
    return (item.seq, item.id, pack_bytes(item.value), item.expires_at, unique)


def unpack_item(told: Any, position: int) -> tuple[LogItem, bool]:
    """Return an item of a log, and whether its id is unique."""
    seq, item_id, value, expires, unique = told
    return LogItem(seq, position, item_id, unpack_bytes(value), expires), unique
