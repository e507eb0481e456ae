"""One state as the file backend holds it in memory, and the steps that change it.

Each step is one operation in the log. A writer makes the step and logs it; a reader makes the
same step when it finds it in the log, so both hold the same. Steps can't fail and don't block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.file.codec import (
    decode_once,
    decode_part,
    decode_stamp,
    decode_value,
    encode_journal,
    encode_value,
)
from agentstate.storage.protocol import FAILURE_COUNT, FAILURE_SECONDS, Committed, Part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.storage.file.lines import Json
    from agentstate.storage.image import Image
    from agentstate.storage.protocol import OnceRecord

__all__ = ["TOMBSTONE_SECONDS", "FeedEntry", "Held", "feed_entries"]

TOMBSTONE_SECONDS: Final = 3600.0
ITEM_BYTES: Final = 250

FeedEntry = tuple[str | None, float]


@dataclass(slots=True)
class Held:
    """An image, and what the files keep beside it.

    Attributes:
        lineage: where the log items live, 32 hexadecimal digits.
        floor: the journal of this incarnation has only versions above it.
        records: how many journal records were ever written.
        failures: what failed turns left, with the time.
        inner_due: no entry or item expires before this.
        gone_at: when the state was dropped, while it is.
    """

    image: Image
    lineage: str = ""
    floor: int = 0
    records: int = 0
    failures: list[tuple[float, bytes]] = field(default_factory=list[tuple[float, bytes]])
    inner_due: float | None = None
    gone_at: float | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory this takes."""
        image = self.image
        size = image.entry_bytes + ITEM_BYTES * (8 + len(image.entries) + len(image.once))
        for log in image.logs.values():
            size += log.size + ITEM_BYTES * len(log.items)
        return size

    @property
    def due(self) -> float | None:
        """When a sweep finds something to remove here, at the earliest."""
        image = self.image
        if image.stamp is not None:
            state, inner = image.expires_at, self.inner_due
            return inner if state is None else state if inner is None else min(state, inner)
        ends = [at + FAILURE_SECONDS for at, _ in self.failures[-1:]]
        if self.gone_at is not None:
            ends.append(self.gone_at + TOMBSTONE_SECONDS)
        return max(ends, default=None)

    # -- steps -----------------------------------------------------------------------------

    def commit(
        self, part: Part, op: Json, *, commit_id: int, at: float, alive: bool, once: OnceRecord | None
    ) -> Committed:
        """Apply a validated part, and complete ``op`` with what the log must keep of the outcome."""
        if part.clear or not alive:
            self.floor, self.lineage, self.inner_due = self.image.version, op["lineage"], None
        done = self.image.apply(part, commit_id, at, alive=alive, once=once)
        if done.stamp is None:
            self._gone(at)
            return done
        self.gone_at = None
        if dues := self._new_dues(part, at):
            self.inner_due = _earliest((self.inner_due, *dues))
        op["stamp"] = str(done.stamp)
        if part.record is not None:
            self.records += 1
            op["journal"] = encode_journal(self.image.journal.pop())
        return done

    def _new_dues(self, part: Part, at: float) -> list[float | None]:
        """Return the expiries that a part, just applied, brings or brings back."""
        dues: list[float | None] = [at + put.ttl for put in part.puts if put.ttl is not None]
        dues += [at + item.ttl for item in part.appends if item.ttl is not None]
        if part.trims:
            dues += self._heads()
        for edit in part.edits:
            dues += [item.expires_at for item in self.image.logs[edit.log].slice(edit.position, edit.position + 1)]
        return dues

    def drop(self, at: float) -> Json:
        """Remove the state, and return the operation."""
        self.image.apply(Part(scope=self.image.scope, clear=True), 0, at, alive=True, once=None)
        self.floor = self.image.version
        self._gone(at)
        return {"op": "drop", "at": at}

    def _gone(self, at: float) -> None:
        self.gone_at, self.lineage, self.inner_due = at, "", None
        self.failures.clear()

    def expire(self, to: float) -> Json:
        """Move the expiry of the state, and return the operation."""
        self.image.expires_at = to
        return {"op": "expire", "to": to}

    def fail(self, data: bytes, at: float) -> Json:
        """Keep what a failed turn left, and return the operation."""
        kept = [one for one in self.failures if one[0] > at - FAILURE_SECONDS]
        self.failures = [*kept, (at, data)][-FAILURE_COUNT:]
        return {"op": "failure", "at": at, "data": encode_value(data)}

    def sweep(self, at: float, limit: int) -> tuple[Json | None, int, int]:
        """Remove expired entries and items; return the operation (``None``: nothing was), and how many of each."""
        before = [log.first for log in self.image.logs.values()]
        entries, items = self.image.sweep(at, limit)
        self.find_due()
        if not (entries or items) and before == [log.first for log in self.image.logs.values()]:
            return None, 0, 0
        return {"op": "sweep", "at": at, "limit": limit}, entries, items

    def find_due(self) -> None:
        """Look through everything for the next expiry."""
        image = self.image
        dues: list[float | None] = [one.expires_at for one in image.entries.values() if one.expires_at is not None]
        for log in image.logs.values():
            dues += [item.expires_at for item in log.items if item.expires_at is not None and item.value]
        self.inner_due = _earliest((*dues, *self._heads()))

    def _heads(self) -> list[float | None]:
        """Return when the first items of the logs expire: one that was emptied further back goes only there."""
        return [log.items[0].expires_at for log in self.image.logs.values() if log.items]

    def replay(self, op: Json) -> None:
        """Make a step that the log holds.

        Raises:
            ValueError: it leads elsewhere than it did when it was written.
        """
        match op["op"]:
            case "commit":
                self._replay_commit(op)
            case "drop":
                self.drop(op["at"])
            case "expire":
                self.expire(op["to"])
            case "failure":
                self.fail(decode_value(op["data"]), op["at"])
            case "sweep":
                self.sweep(op["at"], op["limit"])
            case other:
                raise ValueError(f"unknown operation {other!r}")

    def _replay_commit(self, op: Json) -> None:
        part = decode_part(self.image.scope, op["part"])
        once = decode_once(op["once"]) if "once" in op else None
        shown: dict[str, Any] = {"lineage": op.get("lineage", "")}
        done = self.commit(part, shown, commit_id=int(op["commit"], 16), at=op["at"], alive=op["alive"], once=once)
        if done.stamp != decode_stamp(op.get("stamp")):
            raise ValueError(f"a commit leads to {done.stamp}, not to {op.get('stamp')}")
        self.records += "journal" in op


def feed_entries(ops: Iterable[Json]) -> list[FeedEntry]:
    """Return which of these operations the feed tells, as stamp in text (``None``: dropped) and time."""
    entries: list[FeedEntry] = []
    for op in ops:
        kind = op["op"]
        if kind == "drop" or (kind == "commit" and ("stamp" in op or op["alive"])):
            entries.append((op.get("stamp"), op["at"]))
    return entries


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((at for at in times if at is not None), default=None)
