"""Where everything lies in a RocksDB store: one ordered space of keys, a first byte for each kind of row.

==== ========================================================= =====================================
byte rest of the key                                           row
==== ========================================================= =====================================
h    tenant, kind, id                                          the head of a state
u    tenant, kind, time of update, id                          (index)
o O  tenant, owner, kind, id; with time of update              (index)
l L  tenant, label and value, kind, id; with time of update    (index)
e    number, section, key                                      an entry
i    number, log, position                                     an item of a log
d    number, log, id                                           position of a unique item
j    number, version                                           a commit, with its journal record
k    number, key                                               what an idempotency key did
q    number, count                                             (the order of idempotency keys)
y    address, time, count                                      what a failed turn left
t    tenant, kind, id                                          tombstone
x    time of expiry, key of the row                            (index)
f    place                                                     a commit, in the feed
NUL  name                                                      format, numbers
==== ========================================================= =====================================

A state has a number while it lives, and a number is never used twice: rows that a removed state
left behind belong to nobody. Texts that others follow end with NUL, which no id holds, or come
behind their length; numbers and times are big-endian, so that bytes sort as they do.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from agentstate.scope import StateScope

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FEED",
    "META",
    "address",
    "after_prefix",
    "counted",
    "entry_key",
    "entry_name",
    "expiry_key",
    "failures_prefix",
    "head_key",
    "id_key",
    "item_key",
    "journal_key",
    "listing_keys",
    "log_prefix",
    "number_prefix",
    "once_key",
    "place_of",
    "scope_at",
    "scope_of",
    "section_prefix",
    "text",
    "tombstone_key",
    "walk_prefix",
]

META: Final = b"\0"
FEED: Final = b"f"
EXPIRY: Final = b"x"
TIME: Final = struct.Struct(">d")
NUMBER: Final = struct.Struct(">Q")
NUMBERED: Final = struct.Struct(">cQ")
COUNTED: Final = struct.Struct(">cQQ")
LOG: Final = struct.Struct(">cQI")
ITEM: Final = struct.Struct(">cQIQ")
LENGTH: Final = struct.Struct(">I")


def text(value: str) -> bytes:
    """Return a text behind its length, for keys where something follows it."""
    data = value.encode()
    return LENGTH.pack(len(data)) + data


def address(scope: StateScope) -> bytes:
    """Return what the keys of a state's own rows hold of its address."""
    return f"{scope.tenant}\0{scope.kind}\0{scope.id}".encode()


def scope_at(data: bytes) -> StateScope:
    """Return the scope whose `address` this is."""
    return scope_of(*data.decode().split("\0"))


def scope_of(tenant: str, kind: str, name: str) -> StateScope:
    """Return the scope of a kind; ``name`` is what `StateScope.id` was."""
    if kind == "step":
        return StateScope.make(kind, *StateScope.parse(f"step:{name}").ids, tenant=tenant)
    return StateScope(kind, (name,) if name else (), tenant)


def head_key(scope: StateScope) -> bytes:
    """Return the key of a state's head."""
    return b"h" + address(scope)


def tombstone_key(scope: StateScope) -> bytes:
    """Return the key of the tombstone at an address."""
    return b"t" + address(scope)


def number_prefix(tag: bytes, number: int) -> bytes:
    """Return the beginning of the keys of all rows of a kind that a state has."""
    return NUMBERED.pack(tag, number)


def section_prefix(number: int, section: str) -> bytes:
    """Return the beginning of the keys of a section's entries."""
    return NUMBERED.pack(b"e", number) + text(section)


def entry_key(number: int, section: str, key: str) -> bytes:
    """Return the key of an entry."""
    name = section.encode()
    return NUMBERED.pack(b"e", number) + LENGTH.pack(len(name)) + name + key.encode()


def entry_name(key: bytes) -> tuple[str, str]:
    """Return section and key of an entry's key."""
    start = NUMBERED.size + LENGTH.size
    end = start + LENGTH.unpack_from(key, NUMBERED.size)[0]
    return key[start:end].decode(), key[end:].decode()


def log_prefix(tag: bytes, number: int, log: int) -> bytes:
    """Return the beginning of the keys of a log's items (``i``) or of their ids (``d``)."""
    return LOG.pack(tag, number, log)


def item_key(number: int, log: int, position: int) -> bytes:
    """Return the key of an item."""
    return ITEM.pack(b"i", number, log, position)


def id_key(number: int, log: int, name: str) -> bytes:
    """Return the key under which the position of a unique item stands."""
    return LOG.pack(b"d", number, log) + name.encode()


def journal_key(number: int, version: int) -> bytes:
    """Return the key of a commit."""
    return COUNTED.pack(b"j", number, version)


def once_key(number: int, key: str) -> bytes:
    """Return the key of what an idempotency key did."""
    return NUMBERED.pack(b"k", number) + key.encode()


def counted(tag: bytes, number: int, count: int) -> bytes:
    """Return a key that counts within a state."""
    return COUNTED.pack(tag, number, count)


def failures_prefix(scope: StateScope) -> bytes:
    """Return the beginning of the keys of what a state's failed turns left."""
    return b"y" + text(scope.text)


def expiry_key(at: float, key: bytes) -> bytes:
    """Return the key that lets a sweep find a row when its time has come."""
    return EXPIRY + TIME.pack(at) + key


def place_of(key: bytes) -> int:
    """Return the place of a row of the feed."""
    place: int = NUMBER.unpack_from(key, 1)[0]
    return place


# -- listings -----------------------------------------------------------------------------


def walk_prefix(
    tenant: str, *, owner: str | None = None, label: tuple[str, str] | None = None, updated: bool = False
) -> bytes:
    """Return the beginning of the keys that list states, in the order of their ids or of their updates."""
    if label is not None:
        return (b"L" if updated else b"l") + tenant.encode() + b"\0" + text(label[0]) + text(label[1])
    if owner is not None:
        return (b"O" if updated else b"o") + tenant.encode() + b"\0" + text(owner)
    return (b"u" if updated else b"h") + tenant.encode() + b"\0"


def listing_keys(scope: StateScope, owner: str | None, labels: Mapping[str, str], updated: float) -> set[bytes]:
    """Return the keys of a state in all listings but that of the heads themselves."""
    kind, name = scope.kind.encode() + b"\0", scope.id.encode()
    by_id, by_time = kind + name, kind + TIME.pack(updated) + name
    keys = {b"u" + scope.tenant.encode() + b"\0" + by_time}
    if owner is not None:
        keys.add(walk_prefix(scope.tenant, owner=owner) + by_id)
        keys.add(walk_prefix(scope.tenant, owner=owner, updated=True) + by_time)
    for label in labels.items():
        keys.add(walk_prefix(scope.tenant, label=label) + by_id)
        keys.add(walk_prefix(scope.tenant, label=label, updated=True) + by_time)
    return keys


def after_prefix(prefix: bytes) -> bytes:
    """Return the least key greater than all that begin with ``prefix``, which is not of 255s only."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,))
