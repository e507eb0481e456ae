"""Reading pages out of an image in memory."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from agentstate.storage.protocol import Entry, EntryPage, LogItem, LogPage, Snapshot

if TYPE_CHECKING:
    from agentstate.storage.file.held import Held
    from agentstate.storage.file.scope import ScopeFiles
    from agentstate.storage.protocol import Wants

__all__ = ["entry_page", "found_item", "held_of", "log_page", "snapshot"]


def held_of(files: ScopeFiles) -> Held:
    """Return the image of files that were just refreshed."""
    assert files.held is not None
    return files.held


def snapshot(held: Held, now: float, wants: Wants, once: str | None) -> Snapshot:
    """Return what a read wants; an expired state is absent."""
    image = held.image
    return image.snapshot(wants, now, once) if image.alive(now) else Snapshot(scope=image.scope, now=now)


def log_page(
    held: Held, now: float, log: str, start: int | None = None, end: int | None = None, limit: int | None = None
) -> LogPage:
    """See `Storage.read_log`."""
    found = held.image.logs.get(log) if held.image.alive(now) else None
    if found is None:
        return LogPage(None, ())
    low = found.first if start is None else max(start, found.first)
    high = found.head + 1 if end is None else min(end, found.head + 1)
    if limit is not None and start is not None:
        high = min(high, low + limit)
    elif limit is not None:
        low = max(low, high - limit)
    return LogPage(found.view(), tuple(found.slice(low, high)))


def found_item(held: Held, now: float, log: str, id: str) -> LogItem | None:  # noqa: A002
    """See `Storage.find_item`."""
    found = held.image.logs.get(log) if held.image.alive(now) else None
    seq = found.ids.get(id) if found is not None else None
    if found is None or seq is None:
        return None
    return found.items[bisect_left(found.items, seq, key=lambda item: item.seq)]


def entry_page(held: Held, now: float, section: str, prefix: str, cursor: str | None, limit: int) -> EntryPage:
    """See `Storage.scan`."""
    image = held.image
    page: list[tuple[str, Entry]] = []
    if image.alive(now):
        keys = [key for name, key in image.entries if name == section and key.startswith(prefix)]
        for key in sorted(key for key in keys if cursor is None or key > cursor):
            entry = image.entry(section, key, now)
            if entry is not None:
                page.append((key, entry))
            if len(page) > limit:
                return EntryPage(tuple(page[:limit]), page[limit - 1][0])
    return EntryPage(tuple(page), None)
