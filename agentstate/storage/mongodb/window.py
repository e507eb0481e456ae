"""The items of a log that were loaded, standing in for all of them.

`agentstate.storage.image` works on a list that holds every item of a log. Here only those that
somebody asked for are in memory; the list knows how many there are, and touching one that wasn't
loaded is a mistake of ours that shows at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentstate.storage.protocol import LogItem

__all__ = ["Window"]


class Window(list["LogItem"]):
    """A list of which some items are loaded; index 0 is the log's first item."""

    def __init__(self, length: int) -> None:
        """Begin with none of ``length`` items loaded."""
        super().__init__()
        self._low = 0
        self._length = length
        self._loaded: dict[int, LogItem] = {}

    @classmethod
    def of(cls, items: list[LogItem]) -> Window:
        """Return the window that holds all of a plain list, or the window that it is."""
        if isinstance(items, Window):
            return items
        made = cls(0)
        for item in items:
            made.append(item)
        return made

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return self._length > 0

    def __iter__(self) -> Iterator[LogItem]:
        return iter(self[:])

    @overload
    def __getitem__(self, at: SupportsIndex) -> LogItem: ...
    @overload
    def __getitem__(self, at: slice) -> list[LogItem]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> LogItem | list[LogItem]:
        if isinstance(at, slice):
            return [self._loaded[self._low + one] for one in range(*at.indices(self._length))]
        return self._loaded[self._low + range(self._length)[at]]

    def __setitem__(self, at: SupportsIndex | slice, item: LogItem | Iterable[LogItem]) -> None:
        assert not isinstance(at, slice)
        self._loaded[self._low + range(self._length)[at]] = item  # type: ignore[assignment] # pyright: ignore[reportArgumentType]

    def __delitem__(self, at: SupportsIndex | slice) -> None:
        gone = range(self._length)[at] if isinstance(at, slice) else range(int(at), int(at) + 1)
        if not gone:
            return
        assert gone[0] == 0 or gone[-1] == self._length - 1, "a log shrinks at its ends"
        for one in gone:
            self._loaded.pop(self._low + one, None)
        if gone[0] == 0:
            self._low += len(gone)
        self._length -= len(gone)

    def append(self, item: LogItem) -> None:
        """Add an item at the end."""
        self._loaded[self._low + self._length] = item
        self._length += 1

    def load(self, index: int, item: LogItem) -> None:
        """Note an item that is there already."""
        self._loaded[self._low + index] = item

    def lacks(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the bounds of what isn't loaded between two indexes, ``None`` if all is."""
        missing = [one for one in range(max(start, 0), min(end, self._length)) if self._low + one not in self._loaded]
        return (missing[0], missing[-1] + 1) if missing else None

    def tail(self, most: int) -> list[LogItem]:
        """Return the last items, at most so many, as far as they are loaded without a gap."""
        found: list[LogItem] = []
        for one in range(self._length - 1, max(self._length - most, 0) - 1, -1):
            item = self._loaded.get(self._low + one)
            if item is None:
                break
            found.append(item)
        return found[::-1]

    def prune(self, most: int) -> bool:
        """Keep the last items only, if more than ``most`` are loaded; return whether."""
        if len(self._loaded) <= most:
            return False
        kept = range(self._low + self._length - most // 4, self._low + self._length)
        self._loaded = {one: self._loaded[one] for one in kept if one in self._loaded}
        return True

    def fork(self) -> Window:
        """Return a window that can be changed while this one stays as it is."""
        made = Window(self._length)
        made._low, made._loaded = self._low, dict(self._loaded)
        return made

    def resize(self, shift: int, length: int) -> None:
        """Follow a log that lost ``shift`` items at its head and has ``length`` now."""
        self._low += shift
        self._length = length
        for one in [one for one in self._loaded if not self._low <= one < self._low + length]:
            del self._loaded[one]

    @property
    def loaded_bytes(self) -> int:
        """About what the loaded items take."""
        return sum(len(item.value) + 100 for item in self._loaded.values())
