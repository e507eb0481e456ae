"""What a turn has read and changed of one log, before its commit.

Positions below ``end`` are stored items (or those of the frame's parent); what was appended
here comes after them. Stored items are loaded from the end backwards, as far as a read needs
them: `missing` says which, and the turn loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentstate.storage.protocol import CutTail, EditItem, LogItem, TrimHead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.storage.protocol import Append, LogView, Part


@dataclass(slots=True)
class _Edit:
    seq: int
    value: bytes


class LogBuffer:
    """The changes of one log in a turn or frame."""

    __slots__ = ("_edits", "_origin", "end", "loaded", "parent", "pending", "start", "view", "was_read")

    def __init__(self, view: LogView | None, parent: LogBuffer | None) -> None:
        """Lie over a stored log, over a parent's buffer, or over nothing."""
        self.view = view
        self.parent = parent
        self.loaded: list[LogItem] = [] if view is None else list(view.items)
        self.pending: list[Append] = []
        self.was_read = False
        self._edits: dict[int, _Edit] = {}
        if parent is None and view is not None:
            self.start, self.end = view.first, view.head + 1
        else:
            self.start, self.end = self._bounds()
        self._origin = (self.start, self.end)

    def _bounds(self) -> tuple[int, int]:
        if self.parent is not None:
            return self.parent.start, self.parent.next_position
        return (self.view.first, self.view.head + 1) if self.view is not None else (1, 1)

    @property
    def next_position(self) -> int:
        """Where the next item goes."""
        return self.end + len(self.pending)

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.pending) or bool(self._edits) or (self.start, self.end) != self._origin

    # -- reading -----------------------------------------------------------------------------

    def missing(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the range of stored positions that must be loaded before `items` can serve this one."""
        if self.parent is not None:
            return self.parent.missing(max(start, self.start), min(end, self.end))
        start, end = max(start, self.start), min(end, self.end)
        known = self.loaded[0].position if self.loaded else (self.view.head + 1 if self.view is not None else self.end)
        return (start, known) if start < min(end, known) else None

    def load(self, items: Iterable[LogItem]) -> None:
        """Take items that come directly before those loaded already."""
        if self.parent is not None:
            self.parent.load(items)
        else:
            # Another read may have brought some of them meanwhile.
            known = self.loaded[0].position if self.loaded else self.next_position
            self.loaded[:0] = [item for item in items if item.position < known]

    def items(self, start: int, end: int) -> list[LogItem]:
        """Return loaded items with ``start <= position < end``, as this turn sees them.

        An item that has no ``seq`` yet (it isn't committed) has 0.
        """
        self.was_read = True
        found = self._stored(max(start, self.start), min(end, self.end))
        if self._edits:
            found = [
                item._replace(value=self._edits[item.position].value) if item.position in self._edits else item
                for item in found
            ]
        low, high = max(start - self.end, 0), max(end - self.end, 0)
        own = self.pending[low:high]
        return found + [LogItem(0, self.end + low + n, one.id, one.value) for n, one in enumerate(own)]

    def tail(self, count: int) -> list[LogItem] | None:
        """Return the last items as this turn sees them, ``None`` when some must be loaded first."""
        if self.parent is None and not (self.pending or self.changed):
            loaded = self.loaded
            if len(loaded) < count and len(loaded) < self.end - self.start:
                return None
            self.was_read = True
            return loaded[-count:]
        start, end = max(self.next_position - count, self.start), self.next_position
        return self.items(start, end) if self.missing(start, end) is None else None

    def _stored(self, start: int, end: int) -> list[LogItem]:
        if self.parent is not None:
            return self.parent.items(start, end)
        if not self.loaded or start >= end:
            return []
        first = self.loaded[0].position
        return self.loaded[max(start - first, 0) : max(end - first, 0)]

    # -- changing ----------------------------------------------------------------------------

    def append(self, one: Append) -> int:
        """Add an item; return its position."""
        pending = self.pending
        pending.append(one)
        return self.end + len(pending) - 1

    def cut(self, position: int) -> None:
        """Remove the items at ``position`` and after."""
        if position < self.end:
            self.end = max(position, self.start)
            self.pending.clear()
            self._edits = {at: edit for at, edit in self._edits.items() if at < self.end}
        else:
            del self.pending[position - self.end :]

    def trim(self, position: int) -> None:
        """Remove the items before ``position``."""
        if position > self.end:
            del self.pending[: position - self.end]
        self.start = min(max(position, self.start), self.end)
        if self._edits:
            self._edits = {at: edit for at, edit in self._edits.items() if at >= self.start}

    def edit(self, item: LogItem, value: bytes) -> None:
        """Replace the value of an item that `items` returned."""
        if item.position >= self.end:
            number = item.position - self.end
            self.pending[number] = self.pending[number]._replace(value=value)
        else:
            self._edits[item.position] = _Edit(item.seq, value)

    # -- ending ------------------------------------------------------------------------------

    def committed(self, view: LogView) -> None:
        """Lie over the log as a commit of this buffer left it."""
        known = {item.position: item for item in self.items(view.first, view.head + 1)} if self.was_read else {}
        added = len(self.pending)
        exact = view.next_seq - (self.view.next_seq if self.view is not None else 1) == added
        first_new = view.head + 1 - added
        self.view, self.pending, self._edits = view, [], {}
        self.loaded = [
            item._replace(seq=item.seq or view.next_seq - added + (position - first_new))
            for position, item in sorted(known.items())
        ]
        if not exact:
            self.loaded = []
        self._origin = self.start, self.end = self._bounds()

    @property
    def stale(self) -> bool:
        """Whether the parent's log moved under the positions at which this frame changed it."""
        if self.parent is None or self._origin == self._bounds():
            return False
        return bool(self._edits) or (self.start, self.end) != self._origin

    def merge(self, child: LogBuffer) -> None:
        """Take over what a frame did; its positions are this buffer's until the trim."""
        for position, edit in child._edits.items():
            self.edit(LogItem(edit.seq, position, "", b""), edit.value)
        if child.end < child._origin[1]:
            self.cut(child.end)
        if child.start > self.start:
            self.trim(child.start)
        self.pending.extend(child.pending)
        self.was_read |= child.was_read

    def add_to(self, part: Part, name: str) -> None:
        """Add what this turn changed to a part of a commit."""
        view = self.view
        if view is not None and (self._edits or (self.start, self.end) != self._origin):
            part.cuts = [*part.cuts, *([CutTail(name, self.end)] if self.end <= view.head else [])]
            part.trims = [*part.trims, *([TrimHead(name, self.start)] if self.start > view.first else [])]
            part.edits = [*part.edits, *(EditItem(name, at, one.seq, one.value) for at, one in self._edits.items())]
        if self.pending:
            part.appends = [*part.appends, *self.pending]
