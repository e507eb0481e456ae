"""What vouches for users' bytes in a row: a CRC that is written and looked at on our side of the line.

PostgreSQL guards its pages; this finds what was written there by somebody else.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from agentstate.errors import DamagedStateError

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = ["damaged", "entry_crc", "item_crc", "once_crc"]

POSITIVE: Final = 0x7FFFFFFF


def entry_crc(section: str, key: str, value: bytes) -> int:
    """Return what vouches for an entry."""
    return zlib.crc32(value, zlib.crc32(f"{section}\0{key}".encode())) & POSITIVE


def item_crc(value: bytes) -> int:
    """Return what vouches for an item of a log, a journal record or a failure."""
    return zlib.crc32(value) & POSITIVE


def once_crc(key: str, fingerprint: str, result: bytes | None) -> int:
    """Return what vouches for what an idempotency key did."""
    return zlib.crc32(result or b"", zlib.crc32(f"{key}\0{fingerprint}".encode())) & POSITIVE


def damaged(scope: StateScope, what: str) -> DamagedStateError:
    """Return the error for bytes of a state that are not what was written."""
    return DamagedStateError(
        f"{scope} is damaged: {what} can't be what was written.",
        scope=scope,
        remedy="Restore the database from a backup; nothing was overwritten.",
    )
