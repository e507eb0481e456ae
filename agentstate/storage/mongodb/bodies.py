"""Bytes of the documents: BSON within BSON, with a checksum over content and place.

What a commit holds goes into binary fields, since ids, keys and labels are any text and may not
become field names. The fields beside it are for queries and for people.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from agentstate.storage import registry
from agentstate.storage.mongodb.faults import damaged
from agentstate.storage.mongodb.keys import checksum
from agentstate.storage.protocol import LogItem, OnceRecord, Stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope

__all__ = ["close_document", "item_of", "opened", "opened_document", "packed_item", "sealed", "signed", "unsigned"]

_SIGN = 1 << 63


@cache
def _bson() -> Any:
    return registry.driver("bson", extra="mongodb")


def signed(number: int) -> int:
    """Return a 64-bit id as BSON takes it."""
    return number - (_SIGN << 1) if number >= _SIGN else number


def unsigned(number: int) -> int:
    """Return the 64-bit id that `signed` was given."""
    return number + (_SIGN << 1) if number < 0 else number


def sealed(at: str, content: dict[str, Any]) -> bytes:
    """Return content as bytes that know where they belong."""
    raw: bytes = _bson().encode(content)
    return checksum(at, raw).to_bytes(4, "big") + raw


def opened(at: str, data: Any, scope: StateScope | str) -> dict[str, Any]:
    """Return what `sealed` was given.

    Raises:
        DamagedStateError: it isn't what was written there.
    """
    if not isinstance(data, bytes) or checksum(at, data[4:]).to_bytes(4, "big") != data[:4]:
        raise damaged(scope, f"The document {at!r}")
    content: dict[str, Any] = _bson().decode(data[4:])
    return content


def close_document(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of plain fields with its checksum."""
    return {**document, "crc": checksum(document["_id"], _bson().encode(document))}


def opened_document(document: dict[str, Any], scope: StateScope | str) -> dict[str, Any]:
    """Return a document without its checksum.

    Raises:
        DamagedStateError: it isn't what was written.
    """
    bare = {name: value for name, value in document.items() if name != "crc"}
    if document.get("crc") != checksum(document["_id"], _bson().encode(bare)):
        raise damaged(scope, f"The document {document['_id']!r}")
    return bare


def packed_item(log: str, item: LogItem, *, unique: bool) -> list[Any]:
    """Return a log item as a list."""
    return [log, item.seq, item.position, item.id, item.value, item.expires_at, unique]


def item_of(packed: Sequence[Any]) -> LogItem:
    """Return the item that `packed_item` was given."""
    return LogItem(packed[1], packed[2], packed[3], packed[4], packed[5])


def packed_once(once: OnceRecord) -> list[Any]:
    """Return what an idempotency key did as a list."""
    return [once.key, once.fingerprint, signed(once.commit_id), once.result, once.at]


def once_of(packed: Sequence[Any]) -> OnceRecord:
    """Return what `packed_once` was given."""
    return OnceRecord(packed[0], packed[1], unsigned(packed[2]), packed[3], packed[4])


def packed_stamp(stamp: Stamp) -> list[int]:
    """Return a stamp as a list."""
    return [stamp.version, signed(stamp.commit_id)]


def stamp_of(version: int, commit_id: int) -> Stamp:
    """Return the stamp of two stored numbers."""
    return Stamp(version, unsigned(commit_id))
