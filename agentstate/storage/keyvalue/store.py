"""How a state of a key-value storage is changed: its head is read, changed here, and swapped.

`Store.change` is atomic: everything that it changed counts when the head is written. Within the
process one changes a state at a time; between processes the compare-and-swap decides, and who
lost reads again. It runs in a task of the storage's own, so that it is carried through when its
caller is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agentstate.errors import (
    CommitUnknownError,
    DamagedStateError,
    StorageClosedError,
    StorageError,
    StorageUnavailableError,
    ValueTooLargeError,
)
from agentstate.scope import StateScope
from agentstate.storage.keyvalue.bytestore import Access
from agentstate.storage.keyvalue.documents import pack, place_of, unpack
from agentstate.storage.keyvalue.feed import Feed
from agentstate.storage.keyvalue.head import Head
from agentstate.storage.keyvalue.mutex import Mutexes
from agentstate.storage.keyvalue.segments import SegmentGoneError, Segments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agentstate.storage.keyvalue.bytestore import ByteStore
    from agentstate.storage.protocol import Stamp

__all__ = ["Done", "Store"]

ATTEMPTS: Final = 1000
ABANDONED_SECONDS: Final = 60.0

Result = TypeVar("Result")


class Done(NamedTuple):
    """What a step did to a head.

    Attributes:
        result: what its caller gets.
        changed: the head must be written.
        told: what the feed is to tell: the stamp (``None``: dropped) and the time.
    """

    result: Any
    changed: bool = True
    told: tuple[Stamp | None, float] | None = None


class Store:
    """The documents of a storage."""

    def __init__(
        self, kv: ByteStore, *, prefix: str, quick: bool, max_bytes: int | None, clock: Callable[[], float] = time.time
    ) -> None:
        """See `KeyValueStorage`."""
        self._access = Access(kv, quick=quick)
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._clock = clock
        self._mutexes = Mutexes()
        self._feed = Feed(self._access, self._mutexes, prefix)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: dict[str, str] = {}
        self._closed = False
        self._process = os.getpid()

    def _check_open(self) -> None:
        if self._closed or os.getpid() != self._process:
            raise StorageClosedError(
                "This key-value storage was closed, or belongs to the parent of this forked process.",
                remedy="Make a new one in this process.",
            )

    def head_key(self, scope: StateScope) -> str:
        """Return the key of a state's head."""
        return f"{self._prefix}state/{place_of(scope.text)}"

    async def load(self, scope: StateScope) -> tuple[Head, Segments]:
        """Return a state as it is stored now."""
        self._check_open()
        key = self.head_key(scope)
        head = Head.read(scope, key, await self._access.get(key))
        return head, Segments(self._access, f"{self._prefix}more/{place_of(scope.text)}/", head)

    async def look(self, scope: StateScope, work: Callable[[Head, Segments], Awaitable[Result]]) -> Result:
        """Return what ``work`` finds in a state; it runs again when the state was changed under its hands."""
        before: bytes | None = b""
        while True:
            head, segments = await self.load(scope)
            try:
                return await work(head, segments)
            except SegmentGoneError as error:
                before = _changed_since(before, head, error)

    async def change(
        self,
        scope: StateScope,
        step: Callable[[Head, Segments], Awaitable[Done]],
        *,
        commit_id: int | None = None,
    ) -> Any:
        """Return what ``step`` returns, when what it did to the head is stored. It may run several times."""
        self._check_open()
        return await self.owned(self._change(scope, step, commit_id))

    async def owned(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what a coroutine does, which is carried through when its caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    async def _change(
        self, scope: StateScope, step: Callable[[Head, Segments], Awaitable[Done]], commit_id: int | None
    ) -> Any:
        place, name = place_of(scope.text), secrets.token_hex(8)
        before: bytes | None = b""
        since = 0
        async with self._mutexes.hold(place):
            for _ in range(ATTEMPTS):
                head, segments = await self.load(scope)
                try:
                    done = await step(head, segments)
                except SegmentGoneError as error:
                    before = _changed_since(before, head, error)
                    continue
                if not done.changed:
                    return done.result
                if done.told is not None:
                    await self._finish(scope, head)
                    head.outbox = [(name, *done.told)]
                    since = since or await self._intend(scope, name)
                if not await self._swap(scope, head, commit_id):
                    continue
                if done.told is not None:
                    await self._tell(scope, head.outbox[0], since)
                for key in segments.garbage:
                    await self._access.delete(key)
                return done.result
        raise StorageUnavailableError(f"{scope} is changed by too many at once.", scope=scope, remedy="Try again.")

    async def _swap(self, scope: StateScope, head: Head, commit_id: int | None) -> bool:
        raw = pack(head.key, head.body())
        if self._max_bytes is not None and len(raw) > self._max_bytes:
            raise ValueTooLargeError(
                f"{scope} would take a document of {len(raw)} bytes, more than {self._max_bytes}.",
                scope=scope,
                remedy="Keep large values elsewhere, or in several states.",
            )
        try:
            return await self._access.swap(head.key, head.raw, raw)
        except StorageUnavailableError as error:
            if await self._holds(head.key, raw):
                return True
            if commit_id is None:
                raise
            raise CommitUnknownError(
                f"The byte store failed while a commit of {scope} was written.",
                commit_id=commit_id,
                scope=scope,
                remedy="Ask for its outcome later.",
            ) from error

    async def _holds(self, key: str, raw: bytes) -> bool:
        try:
            return await self._access.get(key) == raw
        except StorageError:
            return False

    # -- the feed --------------------------------------------------------------------------

    def _intent_key(self, scope: StateScope, name: str) -> str:
        return f"{self._prefix}todo/{place_of(scope.text)}/{name}"

    async def _intend(self, scope: StateScope, name: str) -> int:
        """Note that a commit is going to be told, and from which document of the feed on it may be found."""
        since = await self._feed.last()
        key = self._intent_key(scope, name)
        await self._access.set(key, pack(key, {"scope": scope.text, "since": since, "at": self._clock()}))
        return since

    async def _tell(self, scope: StateScope, entry: tuple[str, Stamp | None, float], since: int) -> None:
        await self._feed.add(scope, entry, since)
        await self._access.delete(self._intent_key(scope, entry[0]))
        if len(self._told) > ATTEMPTS:
            self._told.clear()
        self._told[place_of(scope.text)] = entry[0]

    async def _finish(self, scope: StateScope, head: Head) -> None:
        """Tell what is in a state's outbox and whose teller may have died."""
        for entry in head.outbox:
            if self._told.get(place_of(scope.text)) != entry[0]:
                raw = await self._access.get(key := self._intent_key(scope, entry[0]))
                if raw is not None:
                    await self._tell(scope, entry, unpack(key, raw, scope)["since"])

    async def finish_all(self) -> None:
        """Tell what was committed and not told, whoever began it; forget intents that came to nothing."""
        for key in await self._access.list_keys(f"{self._prefix}todo/"):
            raw = await self._access.get(key)
            if raw is None:
                continue
            told = unpack(key, raw)
            scope = StateScope.parse(told["scope"])
            head, _ = await self.load(scope)
            entry = next((one for one in head.outbox if key.endswith(f"/{one[0]}")), None)
            if entry is not None:
                await self._tell(scope, entry, told["since"])
            elif told["at"] < self._clock() - ABANDONED_SECONDS:
                await self._access.delete(key)


def _changed_since(before: bytes | None, head: Head, error: SegmentGoneError) -> bytes | None:
    """Return the head that named a lost document, unless it is the same as before: then the document is lost."""
    if head.raw == before:
        raise DamagedStateError(
            f"{head.image.scope} is damaged: the document {error} is missing.",
            scope=head.image.scope,
            remedy="Restore it from a backup; nothing was overwritten.",
        ) from error
    return head.raw
