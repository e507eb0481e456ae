"""What a commit makes of a view, written down so that others can follow.

The change holds results, not orders: values, positions and counters as they are afterwards.
Applying it twice, or to a view that knows only some of the state, gives the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentstate.storage.mongodb.bodies import packed_item, packed_once, packed_stamp
from agentstate.storage.mongodb.window import Window

if TYPE_CHECKING:
    from agentstate.storage.image import Image
    from agentstate.storage.image_log import Log
    from agentstate.storage.mongodb.view import View
    from agentstate.storage.protocol import Committed, JournalRecord, LogItem, OnceRecord, Part

__all__ = ["commit_to", "drop_change", "packed_record", "sweep_change"]

Change = dict[str, Any]


def commit_to(
    view: View, part: Part, commit_id: int, now: float, *, alive: bool, once: OnceRecord | None
) -> tuple[Committed, Change, JournalRecord | None]:
    """Apply a validated part to a view; return what came of it, the change, and the journal's record."""
    image, fresh = view.image, part.clear or not alive
    gone: list[tuple[str, LogItem]] = [] if fresh else _going(image, part)
    before = {} if fresh else {name: log.next_seq for name, log in image.logs.items()}
    again = view.born > 0
    if fresh:
        view.forget()
        view.born = view.number + 1
    done = image.apply(part, commit_id, now, alive=alive, once=once)
    record = image.journal.pop() if image.journal else None
    for log in image.logs.values():
        log.items = Window.of(log.items)
    if done.stamp is None:
        return done, drop_change(view), None
    change: Change = {"clear": True, "again": again} if fresh else {}
    change |= _entries(view, part)
    change |= _items(view, part, before, gone)
    if once is not None:
        change["once"] = packed_once(image.once[once.key])
    return done, change, record


def drop_change(view: View) -> Change:
    """Return the change that a drop is. The view's image was cleared already."""
    view.born = view.failing = view.number + 1
    view.forget()
    return {"clear": True, "again": True, "drop": True}


def _going(image: Image, part: Part) -> list[tuple[str, LogItem]]:
    gone: dict[tuple[str, int], LogItem] = {}
    for cut in part.cuts:
        if log := image.logs.get(cut.log):
            gone |= {(cut.log, item.seq): item for item in log.slice(cut.position, log.head + 1)}
    for trim in part.trims:
        if log := image.logs.get(trim.log):
            gone |= {(trim.log, item.seq): item for item in log.slice(log.first, trim.position)}
    return [(name, item) for (name, _), item in gone.items()]


def _entries(view: View, part: Part) -> Change:
    puts: list[list[Any]] = []
    deletes: list[list[str]] = []
    changed = [(one.section, one.key) for one in part.puts] + [(one.section, one.key) for one in part.increments]
    touched = dict.fromkeys([*part.deletes, *changed])
    for section, name in touched:
        entry = view.image.entries.get((section, name))
        if entry is None:
            deletes.append([section, name])
            view.missing.add((section, name))
        else:
            puts.append([section, name, entry.value, *packed_stamp(entry.stamp), entry.expires_at])
            view.missing.discard((section, name))
    return {name: value for name, value in (("puts", puts), ("deletes", deletes)) if value}


def _items(view: View, part: Part, before: dict[str, int], gone: list[tuple[str, LogItem]]) -> Change:
    change: Change = {}
    if gone:
        change["gone"] = _ranges(gone)
        for name, item in gone:
            if view.ids.get((name, item.id)) == item.seq:
                view.ids[name, item.id] = None
    at = dict.fromkeys((one.log, one.position) for one in part.edits)
    edited = [(name, view.image.logs[name].slice(position, position + 1)[0]) for name, position in at]
    logs = dict.fromkeys(one.log for one in part.appends)
    added = [(name, item) for name in logs for item in _new_items(view.image.logs[name].items, before.get(name, 1))]
    for kind, items in (("edits", edited), ("items", added)):
        if items:
            change[kind] = [_packed(view, name, item) for name, item in items]
    return change


def _packed(view: View, name: str, item: LogItem) -> list[Any]:
    unique = view.image.logs[name].ids.get(item.id) == item.seq
    if unique:
        view.ids[name, item.id] = item.seq
    return packed_item(name, item, unique=unique)


def _new_items(items: list[LogItem], since: int) -> list[LogItem]:
    found: list[LogItem] = []
    for number in range(len(items) - 1, -1, -1):
        item = items[number]
        if item.seq < since:
            break
        found.append(item)
    return found[::-1]


def _ranges(gone: list[tuple[str, LogItem]]) -> list[list[Any]]:
    """Return removed items as ranges ``[log, first seq, last seq]`` of neighbours."""
    ranges: list[list[Any]] = []
    for name, item in sorted(gone, key=lambda one: (one[0], one[1].seq)):
        last = ranges[-1] if ranges else None
        if last is not None and last[0] == name and last[3] == item.position - 1:
            last[2:] = [item.seq, item.position]
        else:
            ranges.append([name, item.seq, item.seq, item.position])
    return [one[:3] for one in ranges]


def sweep_change(view: View, now: float, due: set[tuple[str, str]], items: set[tuple[str, int]], limit: int) -> Change:
    """Remove expired entries and empty expired items of a view that has them loaded; return the change.

    An expired item keeps its place until it is the log's first one.
    """
    image = view.image
    change: Change = {"deletes": [], "edits": [], "gone": []}
    for at in sorted(due)[:limit]:
        entry = image.entries.get(at)
        if entry is not None and entry.expires_at is not None and entry.expires_at <= now:
            del image.entries[at]
            image.entry_bytes -= len(at[1]) + (8 if isinstance(entry.value, int) else len(entry.value))
            view.missing.add(at)
            change["deletes"].append(list(at))
    for name, position in sorted(items)[: limit - len(change["deletes"])]:
        log = image.logs[name]
        (item,) = log.slice(position, position + 1)
        if item.value and item.expires_at is not None and item.expires_at <= now:
            log.forget([item])
            empty = log.items[position - log.first] = item._replace(value=b"")
            change["edits"].append(packed_item(name, empty, unique=False))
            view.ids[name, item.id] = None
    change["gone"] = _ranges([one for name in image.logs for one in _behind(image, name, now)])
    return change


def _behind(image: Image, name: str, now: float) -> list[tuple[str, LogItem]]:
    """Take the empty items at a log's beginning away, as far as they are loaded."""
    log = image.logs[name]
    gone: list[tuple[str, LogItem]] = []
    while len(log.items):
        first = next(iter(log.slice(log.first, log.first + 1)), None) if _is_loaded(log) else None
        if first is None or first.value or first.expires_at is None or first.expires_at > now:
            break
        gone.append((name, first))
        del log.items[:1]
        log.first += 1
    return gone


def _is_loaded(log: Log) -> bool:
    assert isinstance(log.items, Window)
    return log.items.lacks(0, 1) is None


def packed_record(record: JournalRecord) -> dict[str, Any]:
    """Return a journal record as it is stored."""
    return {
        "stamp": packed_stamp(record.stamp),
        "at": record.at,
        "record": record.record,
        "ranges": [[name, first, last] for name, (first, last) in record.ranges.items()],
        "removed": [packed_item(name, item, unique=False) for name, items in record.removed.items() for item in items],
    }
