"""How a frame reads and changes single entries and log items.

What the buffer doesn't hold is loaded first, at the stamp that the state was first read at.
Each call that changes something does so without an await after its last load, so that no
commit half-way comes between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConflictError
from agentstate.state.buffer import MISSING
from agentstate.storage.protocol import INLINE_BYTES, Wants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope
    from agentstate.state.buffer import Buffer
    from agentstate.state.logbuffer import LogBuffer
    from agentstate.state.turn import Turn
    from agentstate.storage.protocol import LogItem, LogView

At = tuple[str, str]
ALL = 2**31


class Access(ABC):
    """Reads and changes states through their buffers."""

    __slots__ = ()

    turn: Turn
    buffers: dict[StateScope, Buffer]

    @abstractmethod
    async def buffer(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state."""

    @abstractmethod
    async def writable(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state that is about to change."""

    # -- entries -----------------------------------------------------------------------------

    async def _ensure(self, buffer: Buffer, at: At) -> None:
        if buffer.peek(at) is MISSING:
            self.turn.store.learn(self.turn.origin.handler, at)
            await self._load(buffer, (at,))

    async def _load(self, buffer: Buffer, wanted: tuple[At, ...]) -> None:
        more = await self.turn.load(buffer, Wants((), wanted, (), 0))
        for at in wanted:
            buffer.load(at, more.entries.get(at))
        await self.turn.quiet()

    async def get(self, scope: StateScope, at: At) -> Any:
        """Return a value, `MISSING` when absent."""
        buffer = await self.buffer(scope)
        await self._ensure(buffer, at)
        return buffer.get(at)

    async def get_many(self, scope: StateScope, ats: Sequence[At]) -> dict[At, Any]:
        """Return those values that are there; what isn't loaded comes in one read."""
        buffer = await self.buffer(scope)
        missing = tuple(at for at in ats if buffer.peek(at) is MISSING)
        if missing:
            await self._load(buffer, missing)
        found = {at: buffer.get(at) for at in ats}
        return {at: value for at, value in found.items() if value is not MISSING}

    async def set(self, scope: StateScope, at: At, value: Any, ttl: float | None = None) -> None:
        """Set a value."""
        (await self.writable(scope)).put(at, value, ttl)

    async def delete(self, scope: StateScope, at: At) -> bool:
        """Delete a value; say whether it was there."""
        buffer = await self.writable(scope)
        await self._ensure(buffer, at)
        there = buffer.peek(at) is not None
        if there:
            buffer.delete(at)
        return there

    async def increment(self, scope: StateScope, at: At, by: int) -> int:
        """Add to a number and return it as this turn sees it."""
        buffer = await self.writable(scope)
        await self._ensure(buffer, at)
        return buffer.increment(at, by)

    async def keys(self, scope: StateScope, section: str) -> list[str]:
        """Return the keys of a section, in order."""
        buffer = await self.buffer(scope)
        base = buffer.snapshot
        if base.complete:
            return buffer.keys(section, [key for name, key in base.entries if name == section])
        if base.entry_bytes <= INLINE_BYTES:
            more = await self.turn.load(buffer, Wants((section,)))
            for at, entry in more.entries.items():
                buffer.load(at, entry)
            await self.turn.quiet()
            if more.complete:
                return buffer.keys(section, [key for name, key in more.entries if name == section])
        stored: list[str] = []
        cursor: str | None = None
        while True:
            page = await self.turn.store.storage.scan(scope, section, cursor=cursor, limit=1000)
            stored += [key for key, _ in page.entries]
            cursor = page.cursor
            if cursor is None:
                return buffer.keys(section, stored)

    # -- logs --------------------------------------------------------------------------------

    async def items(
        self, scope: StateScope, log: str, start: int | None, end: int | None, *, tail: int | None = None
    ) -> list[LogItem]:
        """Return log items with ``start <= position < end``; open bounds are the log's.

        ``tail`` says how many of the last items a first load should bring; ``None`` all.
        """
        found = await self.log(scope, log, tail=tail)
        low = found.start if start is None else start
        high = found.next_position if end is None else end
        gap = found.missing(low, high)
        if gap is not None:
            page = await self.turn.store.storage.read_log(scope, log, start=gap[0], end=gap[1])
            self._check_page(self.buffers[scope], log, page.view)
            found.load(page.items)
        return found.items(low, high)

    async def log(self, scope: StateScope, log: str, *, tail: int | None = 0) -> LogBuffer:
        """Return the buffer of a log, its head loaded."""
        buffer = await self.buffer(scope)
        if self.turn.lazy:
            await self.turn.load(buffer, Wants((), (), ((log, ALL if tail is None else tail),), 0))
        return buffer.log(log)

    async def next_position(self, scope: StateScope, log: str, *, tail: int = 0) -> int:
        """Return where the next item goes."""
        return (await self.log(scope, log, tail=tail)).next_position

    async def first_position(self, scope: StateScope, log: str) -> int:
        """Return the position of the first item."""
        return (await self.log(scope, log)).start

    def _check_page(self, buffer: Buffer, log: str, view: LogView | None) -> None:
        base = buffer.snapshot.logs.get(log)
        if view is None or base is None or view.stamp != base.stamp:
            raise ConflictError(
                f"{log} of {buffer.snapshot.scope} changed while this turn was reading it.",
                scope=buffer.snapshot.scope,
                expected=base.stamp if base else None,
                found=view.stamp if view else None,
                what=log,
            )
