"""What a head seals away: items of long logs, journal records, idempotency keys; and how it is found again.

A sealed document is written before the head that names it and removed after the head that no
longer does, so a head never names what isn't there. A document that no head names, because its
writer lost the race or its life, is never read.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.keyvalue.documents import pack, pack_item, place_of, unpack, unpack_item
from agentstate.storage.keyvalue.head import Segment, pack_once, pack_record, unpack_once, unpack_record
from agentstate.storage.protocol import JOURNAL_COUNT, ONCE_COUNT, ONCE_SECONDS

if TYPE_CHECKING:
    from agentstate.storage.image_log import Log
    from agentstate.storage.keyvalue.bytestore import Access
    from agentstate.storage.keyvalue.head import Head
    from agentstate.storage.protocol import JournalRecord, LogItem, OnceRecord, Part

__all__ = ["SegmentGoneError", "Segments"]

TAIL_ITEMS: Final = 96
TAIL_BYTES: Final = 48 * 1024
KEPT_ITEMS: Final = 16
SEALED_ITEMS: Final = 256
SEALED_BYTES: Final = 256 * 1024
RECORDS: Final = 32
KEYS: Final = 16


class SegmentGoneError(Exception):
    """A sealed document isn't there: the head that names it has been replaced meanwhile, or it is lost."""


class Segments:
    """The sealed documents of one state."""

    def __init__(self, access: Access, place: str, head: Head) -> None:
        """``place`` begins the keys of all that belongs to the state."""
        self._access = access
        self._place = place
        self._head = head
        self.garbage: list[str] = []

    # -- reading ---------------------------------------------------------------------------

    async def _load(self, segment: Segment) -> Any:
        raw = await self._access.get(key := self._place + segment.key)
        if raw is None:
            raise SegmentGoneError(key)
        return unpack(key, raw, self._head.image.scope)

    async def fill(self, name: str, low: int, high: int) -> None:
        """Bring the items with ``low <= position < high`` into the image, and what is sealed together with them."""
        log = self._head.image.logs[name]
        for segment in self._head.segments(name):
            if segment.first < high and low <= segment.last:
                for position, told in enumerate(await self._load(segment), segment.first):
                    if max(log.first, segment.first) <= position <= segment.last:
                        item, unique = unpack_item(told, position)
                        log.items[position - log.first] = item
                        if unique:
                            log.ids[item.id] = item.seq

    async def find(self, name: str, item_id: str) -> LogItem | None:
        """Return the item with a unique id, and let the image know it."""
        log = self._head.image.logs.get(name)
        if log is None:
            return None
        if item_id not in log.ids and self._head.segments(name):
            raw = await self._access.get(key := self._id_key(name, item_id))
            told = unpack(key, raw, self._head.image.scope) if raw is not None else None
            if told is not None and told["birth"] == self._head.image.birth:
                await self.fill(name, told["position"], told["position"] + 1)
        seq = log.ids.get(item_id)
        return next((item for item in log.items if item.seq == seq), None) if seq is not None else None

    def _id_key(self, name: str, item_id: str) -> str:
        return f"{self._place}id/{place_of(name)}/{place_of(item_id)}"

    async def journal(self, after: int) -> list[JournalRecord]:
        """Return the journal records after a version, oldest first."""
        found: list[JournalRecord] = []
        for segment in self._head.segments(""):
            if segment.last > after:
                found += map(unpack_record, await self._load(segment))
        image = self._head.image
        oldest = max(after, image.version - JOURNAL_COUNT)
        return [one for one in (*found, *image.journal) if one.stamp.version > oldest]

    async def once(self, key: str, now: float) -> OnceRecord | None:
        """Return what an idempotency key did, within its retention."""
        head = self._head
        known = head.image.known_once(key, now)
        if known is not None or head.once_count <= len(head.image.once):
            return known
        raw = await self._access.get(at := f"{self._place}once/{place_of(key)}")
        told = unpack(at, raw, head.image.scope) if raw is not None else None
        if told is None or told["birth"] != head.image.birth or told["number"] <= head.once_count - ONCE_COUNT:
            return None
        found = unpack_once(told["once"])
        return found if found.at > now - ONCE_SECONDS else None

    # -- changing --------------------------------------------------------------------------

    async def prepare(self, part: Part) -> None:
        """Bring what a part looks at into the image."""
        logs = self._head.image.logs
        for cut in part.cuts:
            if cut.log in logs:
                await self.fill(cut.log, cut.position, logs[cut.log].head + 1)
        for trim in part.trims:
            if trim.log in logs:
                await self.fill(trim.log, 0, trim.position)
        for edit in part.edits:
            if edit.log in logs:
                await self.fill(edit.log, edit.position, edit.position + 1)
        for item in part.appends:
            if item.unique:
                await self.find(item.log, item.id)

    async def settle(self, part: Part | None, birth: int) -> None:
        """Let the sealed documents follow the image, after a part was applied; ``birth`` is the image's before."""
        head = self._head
        if head.image.birth != birth:
            self.garbage += await self._access.list_keys(self._place)
            head.sealed.clear()
            head.once_count = len(head.image.once)
        elif part is not None:
            for cut in part.cuts:
                for segment in head.segments(cut.log):
                    segment.last = min(segment.last, cut.position - 1)
            for edit in part.edits:
                await self._rewrite(edit.log, edit.position)
        for name, log in head.image.logs.items():
            self._forget(name, log.first)
            await self._seal(name, log)
        self._forget("", head.image.version - JOURNAL_COUNT + 1)
        await self._seal_journal()
        await self._seal_once()

    def _forget(self, name: str, first: int) -> None:
        segments = self._head.segments(name)
        kept = [one for one in segments if one.first <= one.last and one.last >= first]
        self.garbage += [self._place + one.key for one in segments if one not in kept]
        self._head.sealed[name] = kept

    async def _rewrite(self, name: str, position: int) -> None:
        """Seal the items anew that lie in the segment of a position, if it is sealed; they are in the image."""
        segments = self._head.segments(name)
        log = self._head.image.logs[name]
        for number, old in enumerate(segments):
            if old.first <= position <= old.last and old.last >= log.first:
                self.garbage.append(self._place + old.key)
                first = max(old.first, log.first)
                segments[number] = await self._write(name, log, first, old.last)

    async def rewrite_due(self, now: float) -> None:
        """Seal the segments anew of which items were emptied by a sweep."""
        for name in self._head.image.logs:
            for segment in list(self._head.segments(name)):
                if segment.due is not None and segment.due <= now:
                    await self._rewrite(name, segment.last)

    async def _seal(self, name: str, log: Log) -> None:
        segments = self._head.segments(name)
        start = max(segments[-1].last + 1 if segments else log.first, log.first)
        tail = log.slice(start, log.head + 1)
        if len(tail) <= TAIL_ITEMS and sum(len(item.value) for item in tail) <= TAIL_BYTES:
            return
        end = log.head + 1 - KEPT_ITEMS
        while end <= log.head and sum(len(item.value) for item in log.slice(end, log.head + 1)) > TAIL_BYTES:
            end += 1
        while start < end:
            stop, size = start, 0
            while stop < end and stop - start < SEALED_ITEMS and (stop == start or size < SEALED_BYTES):
                size += len(log.items[stop - log.first].value)
                stop += 1
            segments.append(await self._write(name, log, start, stop - 1))
            start = stop

    async def _write(self, name: str, log: Log, first: int, last: int) -> Segment:
        key = f"log/{place_of(name)}/{first:09d}-{secrets.token_hex(8)}"
        items = log.slice(first, last + 1)
        unique = [log.ids.get(item.id) == item.seq for item in items]
        for item, one in zip(items, unique, strict=True):
            if one:
                at = self._id_key(name, item.id)
                told = {"birth": self._head.image.birth, "position": item.position}
                await self._access.set(at, pack(at, told))
        body = [pack_item(item, unique=one) for item, one in zip(items, unique, strict=True)]
        await self._access.set(self._place + key, pack(self._place + key, body))
        due = min((item.expires_at for item in items if item.expires_at is not None and item.value), default=None)
        return Segment(key, first, last, due, spent=items[0].expires_at is not None and not items[0].value)

    async def _seal_journal(self) -> None:
        records = self._head.image.journal
        sizes = sum(len(one.record) for one in records)
        if not records or (len(records) <= RECORDS and sizes <= TAIL_BYTES):
            return
        first, last = records[0].stamp.version, records[-1].stamp.version
        key = f"journal/{first:09d}-{secrets.token_hex(8)}"
        await self._access.set(self._place + key, pack(self._place + key, [pack_record(one) for one in records]))
        self._head.segments("").append(Segment(key, first, last))
        records.clear()

    async def _seal_once(self) -> None:
        head, once = self._head, self._head.image.once
        while len(once) > KEYS:
            oldest = next(iter(once.values()))
            key = f"{self._place}once/{place_of(oldest.key)}"
            told = {
                "birth": head.image.birth,
                "number": head.once_count - len(once) + 1,
                "once": pack_once(oldest),
            }
            await self._access.set(key, pack(key, told))
            del once[oldest.key]
