"""The snapshot of a state (``state.json``) and the archive of its log items (``items-….jsonl``).

The snapshot holds everything but the values of log items; those are copied from the log to the
archive once, so that a snapshot costs what the entries weigh, however long the history is. The
archive is a chain of sealed lines, each of which says from which position on its items replace
what an earlier line said. The snapshot names the archive with its length and last digest:
whatever an interrupted snapshot left behind these doesn't count.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agentstate.storage.file.codec import (
    decode_entry,
    decode_item,
    decode_once,
    decode_stamp,
    decode_value,
    encode_entry,
    encode_item,
    encode_once,
    encode_stamp,
    encode_value,
    some_stamp,
)
from agentstate.storage.file.held import Held
from agentstate.storage.file.lines import read_lines, seal
from agentstate.storage.image import Image
from agentstate.storage.image_log import Log
from agentstate.storage.protocol import KNOWN_COMMITS, LogItem

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.file.lines import Json

__all__ = ["Archive", "archived", "decode_state", "encode_state", "worth_rewriting"]

LINE_ITEMS: Final = 256
ITEM_OVERHEAD: Final = 120
SLACK: Final = 64 * 1024


class _Items(NamedTuple):
    """The items of one log from position ``first`` on, and the numbers of those that are found by their id."""

    first: int
    items: list[LogItem]
    ids: dict[str, int]


class Archive(NamedTuple):
    """Which bytes hold the items: a file's name, how much of it counts, its last digest."""

    file: str
    size: int
    sum: str


def archived(image: Image, archive: Archive, *, anew: bool) -> tuple[bytes, Archive]:
    """Return what to write behind ``archive``, and the archive with it.

    Args:
        image: whose items to write.
        archive: what is there already.
        anew: write all items, not only those that changed.
    """
    lines: list[bytes] = []
    total = archive.sum
    for name, log in image.logs.items():
        start = log.first if anew else max(log.first, log.settled + 1)
        for at in range(start, log.head + 1, LINE_ITEMS):
            items = log.slice(at, at + LINE_ITEMS)
            rows = [encode_item(item, unique=log.ids.get(item.id) == item.seq) for item in items]
            line, total = seal(orjson.dumps({"log": name, "from": at, "items": rows}), total)
            lines.append(line)
    data = b"".join(lines)
    return data, Archive(archive.file, archive.size + len(data), total)


def worth_rewriting(image: Image, size: int) -> bool:
    """Return whether an archive of ``size`` bytes is mostly items that are no more."""
    alive = sum(log.size * 4 // 3 + ITEM_OVERHEAD * len(log.items) for log in image.logs.values())
    return size > 2 * alive + SLACK


def _read_items(data: bytes, archive: Archive) -> dict[str, _Items]:
    lines = read_lines(data, "")
    if not lines or lines[-1].end != archive.size or lines[-1].sum != archive.sum:
        raise ValueError(f"{archive.file} has other lines than the snapshot says")
    logs: dict[str, _Items] = {}
    for line in lines:
        name, at = line.body["log"], line.body["from"]
        found = logs.get(name)
        if found is None or not found.first <= at <= found.first + len(found.items):
            found = logs[name] = _Items(at, [], {})
        for gone in found.items[at - found.first :]:
            if found.ids.get(gone.id) == gone.seq:
                del found.ids[gone.id]
        del found.items[at - found.first :]
        for row in line.body["items"]:
            item, unique = decode_item(row)
            found.items.append(item)
            if unique:
                found.ids[item.id] = item.seq
    return logs


# -- the snapshot ----------------------------------------------------------------------------


def encode_state(held: Held, archive: Archive | None) -> Json:
    """Return everything but the values of log items."""
    image = held.image
    return {
        "version": image.version,
        "stamp": encode_stamp(image.stamp),
        "birth": f"{image.birth:016x}",
        "lineage": held.lineage,
        "owner": image.owner,
        "parent": image.parent,
        "labels": image.labels,
        "created_at": image.created_at,
        "updated_at": image.updated_at,
        "expires_at": image.expires_at,
        "gone_at": held.gone_at,
        "floor": held.floor,
        "records": held.records,
        "entries": [encode_entry(at, entry) for at, entry in image.entries.items()],
        "sections": {name: str(stamp) for name, stamp in image.sections.items()},
        "logs": {name: _encode_log(log) for name, log in image.logs.items()},
        "commits": [str(stamp) for stamp in image.commits],
        "once": [encode_once(once) for once in image.once.values()],
        "failures": [[at, encode_value(data)] for at, data in held.failures],
        "items": None if archive is None else list(archive),
    }


def _encode_log(log: Log) -> Json:
    blank = [
        item.position
        for item in log.items
        if not item.value and item.expires_at is not None and log.ids.get(item.id) != item.seq
    ]
    return {"stamp": str(log.stamp), "first": log.first, "head": log.head, "next": log.next_seq, "blank": blank}


def decode_state(scope: StateScope, data: Json, items: bytes) -> Held:
    """Return the state of a snapshot, with the bytes of its archive.

    Raises:
        ValueError: the two don't fit (so do its relatives `KeyError` and `TypeError`).
    """
    found = _read_items(items, Archive(*data["items"])) if data["items"] is not None else {}
    entries = dict(decode_entry(row) for row in data["entries"])
    once = [decode_once(row) for row in data["once"]]
    image = Image(
        scope,
        version=data["version"],
        stamp=decode_stamp(data["stamp"]),
        birth=int(data["birth"], 16),
        owner=data["owner"],
        parent=data["parent"],
        labels=data["labels"],
        created_at=data["created_at"],
        updated_at=data["updated_at"],
        expires_at=data["expires_at"],
        entries=entries,
        sections={name: some_stamp(stamp) for name, stamp in data["sections"].items()},
        logs={name: _decode_log(name, row, found) for name, row in data["logs"].items()},
        entry_bytes=sum(
            len(key) + (8 if isinstance(entry.value, int) else len(entry.value)) for (_, key), entry in entries.items()
        ),
        commits=deque((some_stamp(stamp) for stamp in data["commits"]), maxlen=KNOWN_COMMITS),
        once={one.key: one for one in once},
    )
    failures = [(at, decode_value(value)) for at, value in data["failures"]]
    held = Held(image, data["lineage"], data["floor"], data["records"], failures, gone_at=data["gone_at"])
    held.find_due()
    return held


def _decode_log(name: str, data: Json, found: dict[str, _Items]) -> Log:
    first: int = data["first"]
    head: int = data["head"]
    start, items, ids = found.get(name) or _Items(first, [], {})
    low, high = max(first - start, 0), max(head + 1 - start, 0)
    gone = items[:low] + items[high:]
    if gone:
        items = items[low:high]
    if len(items) != head + 1 - first:
        raise ValueError(f"the log {name!r} has {len(items)} of its {head + 1 - first} items")
    blank: list[int] = data["blank"]
    for position in blank:
        emptied = items[position - first]
        items[position - first] = emptied._replace(value=b"")
        gone.append(emptied)
    for item in gone:
        if ids.get(item.id) == item.seq:
            del ids[item.id]
    size = sum([len(item.value) for item in items])
    return Log(some_stamp(data["stamp"]), first, data["next"], size, items, ids, head)
