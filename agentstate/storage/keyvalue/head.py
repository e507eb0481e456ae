"""The head document of a state: all of it but what long logs have sealed away.

A head holds an `Image`, whose logs know only their last items: the places of the others are
filled with `FAR`, until somebody needs them. Sealed items lie in segments, documents that are
never changed; the head names them. So a commit rewrites the head and nothing else, and now and
then writes one more segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.image import Image
from agentstate.storage.image_log import Log
from agentstate.storage.keyvalue.documents import (
    pack_bytes,
    pack_item,
    read_stamp,
    unpack,
    unpack_bytes,
    unpack_item,
)
from agentstate.storage.protocol import Entry, JournalRecord, LogItem, OnceRecord, Stamp

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = ["FAR", "Head", "Segment", "Turn", "pack_once", "pack_record", "unpack_once", "unpack_record"]

FAR: Final = LogItem(0, 0, "", b"", None)


@dataclass(slots=True)
class Segment:
    """Items of a log, or records of the journal, in a document of their own.

    Attributes:
        key: of the document, behind what begins the keys of all that belongs to the state.
        first: position of the first item; of a journal's segment: version of the first record.
        last: of the last one that still counts.
        due: when the first of them expires, if one does.
        spent: the first of them has expired and was emptied.
    """

    key: str
    first: int
    last: int
    due: float | None = None
    spent: bool = False


@dataclass(slots=True)
class Turn:
    """Who holds the turn, and who waits for it with which nonce, since they asked last."""

    nonce: int = 0
    counter: int = 0
    holder: str = ""
    since: float = 0.0
    until: float = 0.0
    line: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(slots=True)
class Head:
    """A head document, read.

    Attributes:
        raw: as it was read; ``None``: there is none.
        image: the state.
        sealed: the segments of each log, and of the journal under ``""``.
        once_count: how many idempotency keys there ever were; the last few lie in the image.
        outbox: commits that the feed may not tell yet: id, stamp, time.
        gone_at: when the state was dropped, while it is.
    """

    key: str
    raw: bytes | None
    image: Image
    sealed: dict[str, list[Segment]] = field(default_factory=dict[str, list[Segment]])
    once_count: int = 0
    turn: Turn = field(default_factory=Turn)
    failures: list[tuple[float, bytes]] = field(default_factory=list[tuple[float, bytes]])
    outbox: list[tuple[str, Stamp | None, float]] = field(default_factory=list[tuple[str, Stamp | None, float]])
    gone_at: float | None = None

    def segments(self, log: str) -> list[Segment]:
        """Return the segments of a log, or of the journal (``""``), oldest first."""
        return self.sealed.setdefault(log, [])

    def body(self) -> dict[str, Any]:
        """Return what is stored."""
        image = self.image
        return {
            "scope": image.scope.text,
            "version": image.version,
            "stamp": image.stamp and tuple(image.stamp),
            "birth": image.birth,
            "owner": image.owner,
            "parent": image.parent,
            "labels": image.labels,
            "times": (image.created_at, image.updated_at, image.expires_at, self.gone_at),
            "entries": [_pack_entry(at, entry) for at, entry in image.entries.items()],
            "bytes": image.entry_bytes,
            "sections": {name: tuple(stamp) for name, stamp in image.sections.items()},
            "logs": {name: self._pack_log(name, log) for name, log in image.logs.items()},
            "commits": [tuple(stamp) for stamp in image.commits],
            "once": [pack_once(one) for one in image.once.values()],
            "once_count": self.once_count,
            "journal": [pack_record(one) for one in image.journal],
            "sealed": {
                name: [(s.key, s.first, s.last, s.due, s.spent) for s in segments]
                for name, segments in self.sealed.items()
            },
            "turn": (
                *(self.turn.nonce, self.turn.counter, self.turn.holder, self.turn.since, self.turn.until),
                self.turn.line,
            ),
            "failures": [(at, pack_bytes(data)) for at, data in self.failures],
            "outbox": [(name, stamp and tuple(stamp), at) for name, stamp, at in self.outbox],
        }

    def _pack_log(self, name: str, log: Log) -> tuple[object, ...]:
        segments = self.sealed.get(name)
        start = max(segments[-1].last + 1 - log.first, 0) if segments else 0
        items = [pack_item(item, unique=log.ids.get(item.id) == item.seq) for item in log.items[start:]]
        return (tuple(log.stamp), log.first, log.next_seq, log.size, log.head, items)

    @classmethod
    def read(cls, scope: StateScope, key: str, raw: bytes | None) -> Head:
        """Return the head of a document.

        Raises:
            NewerFormatError: a newer release wrote it.
            DamagedStateError: it is not what was written.
        """
        image = Image(scope)
        if raw is None:
            return cls(key, raw, image)
        body = unpack(key, raw, scope)
        image.version, image.stamp, image.birth = body["version"], read_stamp(body["stamp"]), body["birth"]
        image.owner, image.parent, image.labels = body["owner"], body["parent"], body["labels"]
        image.created_at, image.updated_at, image.expires_at, gone_at = body["times"]
        image.entries = dict(_unpack_entry(told) for told in body["entries"])
        image.entry_bytes = body["bytes"]
        image.sections = {name: Stamp(*stamp) for name, stamp in body["sections"].items()}
        image.logs = {name: _unpack_log(told) for name, told in body["logs"].items()}
        image.commits.extend(Stamp(*stamp) for stamp in body["commits"])
        image.once = {one.key: one for one in map(unpack_once, body["once"])}
        image.journal.extend(map(unpack_record, body["journal"]))
        return cls(
            key,
            raw,
            image,
            {name: [Segment(*told) for told in segments] for name, segments in body["sealed"].items()},
            body["once_count"],
            Turn(*body["turn"]),
            [(at, unpack_bytes(data)) for at, data in body["failures"]],
            [(name, read_stamp(stamp), at) for name, stamp, at in body["outbox"]],
            gone_at,
        )


def _pack_entry(at: tuple[str, str], entry: Entry) -> tuple[object, ...]:
    value = {"counter": entry.value} if isinstance(entry.value, int) else pack_bytes(entry.value)
    return (*at, value, tuple(entry.stamp), entry.expires_at)


def _unpack_entry(told: Any) -> tuple[tuple[str, str], Entry]:
    section, key, value, stamp, expires = told
    content: bytes | int = told[2]["counter"] if isinstance(value, dict) else unpack_bytes(value)
    return (section, key), Entry(content, Stamp(*stamp), expires)


def _unpack_log(told: Any) -> Log:
    stamp, first, next_seq, size, head, items = told
    log = Log(Stamp(*stamp), first, next_seq, size)
    start = head - len(items) + 1
    log.items = [FAR] * (start - first)
    for position, one in enumerate(items, start):
        item, unique = unpack_item(one, position)
        log.items.append(item)
        if unique:
            log.ids[item.id] = item.seq
    return log


def pack_once(one: OnceRecord) -> tuple[object, ...]:
    """Return what an idempotency key did, as JSON."""
    result = None if one.result is None else pack_bytes(one.result)
    return (one.key, one.fingerprint, one.commit_id, result, one.at)


def unpack_once(told: Any) -> OnceRecord:
    """Return what an idempotency key did, from JSON."""
    key, fingerprint, commit_id, result, at = told
    return OnceRecord(key, fingerprint, commit_id, None if result is None else unpack_bytes(result), at)


def pack_record(one: JournalRecord) -> tuple[object, ...]:
    """Return a journal record as JSON."""
    removed = {
        name: [(item.position, pack_item(item, unique=False)) for item in items] for name, items in one.removed.items()
    }
    return (tuple(one.stamp), one.at, pack_bytes(one.record), one.ranges, removed)


def unpack_record(told: Any) -> JournalRecord:
    """Return a journal record from JSON."""
    stamp, at, record, ranges, removed = told
    return JournalRecord(
        Stamp(*stamp),
        at,
        unpack_bytes(record),
        {name: (first, last) for name, (first, last) in ranges.items()},
        {name: tuple(unpack_item(item, position)[0] for position, item in items) for name, items in removed.items()},
    )
