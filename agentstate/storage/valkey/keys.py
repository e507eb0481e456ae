"""Where things lie: the names of keys.

``<prefix>{<partition>}<what>:<address>``. The partition in braces is the hash tag, so a state,
its indexes and its feed share a slot. No prefix holds a brace, so a store never sees the keys
of another one, not even of one whose prefix begins with its own.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = ["PARTITIONS", "Keys", "store_key"]

PARTITIONS = 256
CACHED = 8192


def store_key(prefix: str) -> bytes:
    """Return the key of the store's own record: its format and number of partitions."""
    return f"{prefix}{{store}}".encode()


class Keys:
    """The keys of one store."""

    def __init__(self, prefix: str, partitions: int) -> None:
        """Name the keys of a store with this prefix and this number of partitions."""
        self.partitions = partitions
        self._bases = [f"{prefix}{{{number}}}".encode() for number in range(partitions)]
        self.state = lru_cache(maxsize=CACHED)(self._state)

    def _state(self, scope: StateScope) -> bytes:
        address = scope.text.encode()
        return b"%bstate:%b" % (self._bases[zlib.crc32(address) % self.partitions], address)

    def partition(self, number: int, what: str) -> bytes:
        """Return a key of a partition."""
        return self._bases[number] + what.encode()

    def views(self, what: str) -> list[bytes]:
        """Return this key of every partition."""
        return [base + what.encode() for base in self._bases]
