"""What the documents are called: every ``_id``, and the names of the collections."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from agentstate.scope import StateScope

__all__ = [
    "FEED",
    "HISTORY",
    "METADATA",
    "PARTITIONS",
    "STATES",
    "TRANSITIONS",
    "chain_id",
    "checksum",
    "entry_id",
    "escaped",
    "feed_id",
    "item_id",
    "label_of",
    "label_text",
    "number_of",
    "once_id",
    "scope_key",
    "scope_of",
    "unescaped",
]

STATES: Final = "states"
HISTORY: Final = "history"
TRANSITIONS: Final = "transitions"
METADATA: Final = "metadata"
FEED: Final = "feed"
PARTITIONS: Final = 16
DIGITS: Final = 16


def escaped(text: str) -> str:
    """Return the text without ``/``, which separates the parts of an ``_id``; no two texts become one."""
    return text.replace("%", "%25").replace("/", "%2F")


def unescaped(text: str) -> str:
    """Return what `escaped` was given."""
    return text.replace("%2F", "/").replace("%25", "%")


def scope_of(key: str) -> StateScope:
    """Return the scope whose `scope_key` this is."""
    return StateScope.parse(unescaped(key))


def scope_key(scope: StateScope) -> str:
    """Return what the ``_id`` of everything of a scope begins with."""
    return escaped(scope.text)


def chain_id(key: str, number: int) -> str:
    """Return the ``_id`` of a scope's n-th transition; text order is their order."""
    return f"{key}/{number:0{DIGITS}}"


def number_of(chain: str) -> int:
    """Return which transition an ``_id`` names."""
    return int(chain[-DIGITS:])


def entry_id(key: str, section: str, name: str) -> str:
    """Return what the ``_id`` of every revision of an entry begins with."""
    return f"{key}/{escaped(section)}/{escaped(name)}"


def item_id(key: str, log: str, seq: int) -> str:
    """Return what the ``_id`` of every revision of a log item begins with."""
    return f"{key}/{escaped(log)}/{seq:0{DIGITS}}"


def once_id(key: str, born: int, once: str) -> str:
    """Return the ``_id`` of what an idempotency key did, in the incarnation that a number made."""
    return f"once/{key}/{born}/{escaped(once)}"


def label_text(name: str, value: str) -> str:
    """Return a label as one text."""
    return f"{escaped(name)}/{escaped(value)}"


def label_of(text: str) -> tuple[str, str]:
    """Return the label that `label_text` was given."""
    name, _, value = text.partition("/")
    return unescaped(name), unescaped(value)


def feed_id(partition: int, position: int) -> str:
    """Return the ``_id`` of a position of a partition's feed."""
    return f"{partition:04}/{position:0{DIGITS}}"


def checksum(at: str, data: bytes) -> int:
    """Return the checksum of what lies at an ``_id``."""
    return crc32(data, crc32(at.encode()))
