"""A log of a state in memory, as `agentstate.storage.image` keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentstate.storage.protocol import LogItem, LogView
from agentstate.storage.records import new

if TYPE_CHECKING:
    from agentstate.storage.protocol import Stamp

__all__ = ["Log"]


@dataclass(slots=True)
class Log:
    """A log: ``items[i]`` has position ``first + i``.

    ``settled`` is for backends that copy items away: an item at this position or before has
    not been changed since the backend set it.
    """

    stamp: Stamp
    first: int = 1
    next_seq: int = 1
    size: int = 0
    items: list[LogItem] = field(default_factory=list[LogItem])
    ids: dict[str, int] = field(default_factory=dict[str, int])
    settled: int = 0

    @property
    def head(self) -> int:
        """Position of the last item; ``first - 1`` when there is none."""
        return self.first + len(self.items) - 1

    def view(self, tail: int = 0) -> LogView:
        """Return the head with the last ``tail`` items."""
        items = self.items
        wanted = tuple(items[-tail:]) if tail > 0 else ()
        return new(LogView, (self.first, self.first + len(items) - 1, self.next_seq, self.stamp, self.size, wanted))

    def slice(self, start: int, end: int) -> list[LogItem]:
        """Return the items with ``start <= position < end``."""
        return self.items[max(start - self.first, 0) : max(end - self.first, 0)]

    def forget(self, gone: list[LogItem]) -> None:
        """Take removed items out of the counts."""
        for item in gone:
            self.size -= len(item.value)
            if self.ids.get(item.id) == item.seq:
                del self.ids[item.id]
