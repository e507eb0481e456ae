"""The feed of a key-value storage: documents of up to 64 commits, each added to by compare-and-swap.

A commit is in its state's outbox before it is in the feed. Before the head is written, an intent
says so; after the feed is, the intent goes. Whoever reads the feed ends what an intent began and
nobody else did, so each acknowledged commit is there, and once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.keyvalue.documents import pack, read_stamp, unpack
from agentstate.storage.protocol import FeedItem

if TYPE_CHECKING:
    from agentstate.storage.keyvalue.bytestore import Access
    from agentstate.storage.keyvalue.mutex import Mutexes
    from agentstate.storage.protocol import Stamp

__all__ = ["Feed"]

PER_DOCUMENT: Final = 64
DOCUMENTS: Final = 1600
ATTEMPTS: Final = 1000
MUTEX: Final = "\0feed"


class Feed:
    """The one feed of a storage: it has one partition."""

    def __init__(self, access: Access, mutexes: Mutexes, prefix: str) -> None:
        """``prefix`` begins all keys of the storage."""
        self._access = access
        self._mutexes = mutexes
        self._prefix = f"{prefix}feed/"
        self._last = 0

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:012d}"

    async def last(self) -> int:
        """Return the number of the newest document, 1 where there is none yet."""
        if not self._last:
            keys = await self._access.list_keys(self._prefix)
            self._last = int(keys[-1].removeprefix(self._prefix)) if keys else 1
        while len(await self._read(self._last)) >= PER_DOCUMENT and await self._access.get(self._key(self._last + 1)):
            self._last += 1
        return self._last

    async def _read(self, number: int) -> list[Any]:
        raw = await self._access.get(key := self._key(number))
        return unpack(key, raw) if raw is not None else []

    async def add(self, scope: StateScope, entry: tuple[str, Stamp | None, float], since: int) -> None:
        """Add a commit, unless it is there already, in document ``since`` or later."""
        name, stamp, at = entry
        async with self._mutexes.hold(MUTEX):
            for _ in range(ATTEMPTS):
                last = await self.last()
                for number in range(since, last):
                    if any(one[0] == name for one in await self._read(number)):
                        return
                raw = await self._access.get(key := self._key(last))
                found: list[Any] = unpack(key, raw) if raw is not None else []
                if any(one[0] == name for one in found):
                    return
                if len(found) >= PER_DOCUMENT:
                    last, raw, found, key = last + 1, None, [], self._key(last + 1)
                told = (name, scope.text, stamp and tuple(stamp), at)
                if await self._access.swap(key, raw, pack(key, [*found, told])):
                    if not found and last > DOCUMENTS:
                        await self._access.delete(self._key(last - DOCUMENTS))
                    return
        raise StorageUnavailableError("The feed is changed by too many at once.", remedy="Try again.")

    async def items(self, after: str | None, limit: int) -> tuple[FeedItem, ...]:
        """Return commits in the order in which they came into the feed."""
        number, _, place = (after or "1:-1").partition(":")
        keys = await self._access.list_keys(self._prefix)
        found: list[FeedItem] = []
        for key in keys:
            document = int(key.removeprefix(self._prefix))
            if document < int(number):
                continue
            start = int(place) + 1 if document == int(number) else 0
            for index, (_, text, stamp, at) in enumerate((await self._read(document))[start:], start):
                found.append(FeedItem(f"{document}:{index}", StateScope.parse(text), read_stamp(stamp), at))
                if len(found) == limit:
                    return tuple(found)
        return tuple(found)
