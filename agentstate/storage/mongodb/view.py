"""A state as far as it was loaded, at one point of its chain, and who holds its turn there.

It is the reference `Image`, with the parts of it in memory that somebody asked for. Each document
of the chain says what it changed and what the state's head is after it, so a view follows the
chain by applying changes and taking the newest head over. It is not for several tasks at once:
whoever has the scope's lock has the view.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.storage.image import Image
from agentstate.storage.image_log import Log
from agentstate.storage.mongodb.bodies import (
    item_of,
    once_of,
    packed_item,
    packed_stamp,
    signed,
    stamp_of,
    unsigned,
)
from agentstate.storage.mongodb.keys import scope_key
from agentstate.storage.mongodb.window import Window
from agentstate.storage.protocol import INLINE_BYTES, Entry

if TYPE_CHECKING:
    from agentstate.scope import StateScope

__all__ = ["Turn", "View"]

INLINE_ITEMS: Final = 20
INLINE_ITEM_BYTES: Final = 16 * 1024
MOST_LOADED: Final = 512
MOST_ONCE: Final = 32
MOST_ENTRY_BYTES: Final = 2**20


@dataclass(slots=True)
class Turn:
    """Who holds the turn (``nonce`` 0: nobody) and who stands in line: since when, and from which process."""

    nonce: int = 0
    counter: int = 0
    holder: str = ""
    since: float = 0.0
    until: float = 0.0
    line: dict[int, tuple[float, str]] = field(default_factory=dict[int, tuple[float, str]])

    def held(self, now: float) -> bool:
        """Whether somebody holds it now."""
        return self.nonce != 0 and self.until > now


@dataclass(slots=True)
class View:
    """A state after the ``number``-th document of its chain (0: none yet).

    Attributes:
        born: the number of the document that made this incarnation. What earlier documents
            wrote is void.
        failing: failed turns from before this number are void.
        image_at: the number of the last document that carries an image.
        complete: all entries are loaded.
        missing: entries that were looked for and aren't there.
        ids: unique ids that were looked for, as ``(log, id)``, with their ``seq``.
        settled: everything up to this number is in the other collections, as far as anybody said.
        followed: what documents from this number on wrote is in the view.
        confirmed: when the chain was last seen to end here, on the loop's clock.
    """

    scope: StateScope
    image: Image
    key: str = ""
    number: int = 0
    turn: Turn = field(default_factory=Turn)
    born: int = 0
    failing: int = 0
    image_at: int = 0
    complete: bool = True
    missing: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    ids: dict[tuple[str, str], int | None] = field(default_factory=dict[tuple[str, str], int | None])
    no_once: set[str] = field(default_factory=set[str])
    settled: int = 0
    followed: int = 1
    confirmed: float = 0.0

    @classmethod
    def of(cls, scope: StateScope) -> View:
        """Return the view of a state that has no chain yet."""
        return cls(scope, Image(scope), scope_key(scope))

    @property
    def loaded_bytes(self) -> int:
        """About what the view takes in memory."""
        windows = (log.items.loaded_bytes for log in self.image.logs.values() if isinstance(log.items, Window))
        results = (len(one.result or b"") + 200 for one in self.image.once.values())
        return 1000 + min(self.image.entry_bytes, 10**9) + 100 * len(self.image.entries) + sum(windows) + sum(results)

    # -- the head ---------------------------------------------------------------------------

    def head(self) -> dict[str, Any]:
        """Return everything of the state but its contents."""
        image, turn = self.image, self.turn
        return {
            "stamp": packed_stamp(image.stamp) if image.stamp is not None else None,
            "version": image.version,
            "birth": signed(image.birth),
            "owner": image.owner,
            "parent": image.parent,
            "labels": [[name, value] for name, value in image.labels.items()],
            "times": [image.created_at, image.updated_at, image.expires_at],
            "bytes": image.entry_bytes,
            "sections": [[name, *packed_stamp(stamp)] for name, stamp in image.sections.items()],
            "logs": [
                [name, log.first, len(log.items), log.next_seq, *packed_stamp(log.stamp), log.size]
                for name, log in image.logs.items()
            ],
            "turn": [turn.nonce, turn.counter, turn.holder, turn.since, turn.until],
            "line": [[nonce, asked, home] for nonce, (asked, home) in turn.line.items()],
            "from": [self.born, self.failing, self.image_at, self.settled],
        }

    def take_head(self, number: int, head: dict[str, Any]) -> None:
        """Take the head of a later document over; its change was applied before."""
        image = self.image
        image.stamp = stamp_of(*head["stamp"]) if head["stamp"] is not None else None
        image.version, image.birth = head["version"], unsigned(head["birth"])
        image.owner, image.parent = head["owner"], head["parent"]
        image.labels = {name: value for name, value in head["labels"]}  # noqa: C416 - pairs come as lists
        image.created_at, image.updated_at, image.expires_at = head["times"]
        image.entry_bytes = head["bytes"]
        image.sections = {name: stamp_of(version, commit) for name, version, commit in head["sections"]}
        for name in [name for name in image.logs if name not in {one[0] for one in head["logs"]}]:
            del image.logs[name]
        for name, first, length, next_seq, version, commit, size in head["logs"]:
            log = image.logs.get(name)
            if log is None:
                log = image.logs[name] = Log(stamp_of(version, commit), first, items=Window(length))
            assert isinstance(log.items, Window)
            log.items.resize(first - log.first, length)
            log.first, log.next_seq, log.size, log.stamp = first, next_seq, size, stamp_of(version, commit)
        nonce, counter, holder, since, until = head["turn"]
        line = {waiting: (asked, home) for waiting, asked, home in head["line"]}
        self.turn = Turn(nonce, counter, holder, since, until, line)
        self.born, self.failing, self.image_at, settled = head["from"]
        self.settled = max(self.settled, settled)
        self.number = number

    # -- changes ----------------------------------------------------------------------------

    def apply(self, change: dict[str, Any], head: dict[str, Any]) -> None:
        """Apply what a document of the chain says it changed."""
        if change.get("clear"):
            self.forget()
        for section, name in change.get("deletes", ()):
            self.image.entries.pop((section, name), None)
            self.missing.add((section, name))
        for section, name, value, version, commit, expires_at in change.get("puts", ()):
            self.image.entries[section, name] = Entry(value, stamp_of(version, commit), expires_at)
            self.missing.discard((section, name))
        for log, low, high in change.get("gone", ()):
            for at, seq in self.ids.items():
                if at[0] == log and seq is not None and low <= seq <= high:
                    self.ids[at] = None
        if once := change.get("once"):
            self._take_once(once)
        self._take_items([*change.get("items", ()), *change.get("edits", ())], head)

    def _take_once(self, packed: list[Any]) -> None:
        once = once_of(packed)
        self.image.once[once.key] = once
        self.no_once.discard(once.key)

    def _take_items(self, items: list[list[Any]], head: dict[str, Any]) -> None:
        bounds = {name: (first, length) for name, first, length, *_ in head["logs"]}
        for packed in items:
            name, item = packed[0], item_of(packed)
            at = (name, item.id)
            if packed[6]:
                self.ids[at] = item.seq
            elif self.ids.get(at) == item.seq:
                self.ids[at] = None
            if name not in bounds:
                continue
            first, length = bounds[name]
            log = self.image.logs.get(name)
            if log is None:
                log = self.image.logs[name] = Log(stamp_of(0, 0), first, items=Window(length))
            assert isinstance(log.items, Window)
            log.items.load(item.position - log.first, item)

    def prune(self) -> None:
        """Let go of what was loaded beyond what a view may take in memory."""
        image = self.image
        pruned = len(self.ids) > MOST_LOADED or len(image.once) + len(self.no_once) > MOST_ONCE
        for log in image.logs.values():
            assert isinstance(log.items, Window)
            pruned = log.items.prune(MOST_LOADED) or pruned
        if image.entry_bytes > MOST_ENTRY_BYTES and len(image.entries) + len(self.missing) > 1:
            image.entries.clear()
            self.missing.clear()
            self.complete, pruned = False, True
        if pruned:
            self.ids.clear()
            image.once.clear()
            self.no_once.clear()
            # What the chain alone knows of these has to be carried over before they are looked up again.
            self.followed = self.number + 1

    def fork(self) -> View:
        """Return a view that can be changed while this one stays as it is."""
        image = dataclasses.replace(self.image)
        image.entries, image.sections, image.once = dict(image.entries), dict(image.sections), dict(image.once)
        image.commits, image.journal = image.commits.copy(), image.journal.copy()
        image.logs = {
            name: dataclasses.replace(log, items=Window.of(log.items).fork(), ids=dict(log.ids))
            for name, log in image.logs.items()
        }
        made = dataclasses.replace(self, image=image, turn=dataclasses.replace(self.turn, line=dict(self.turn.line)))
        made.missing, made.ids, made.no_once = set(self.missing), dict(self.ids), set(self.no_once)
        return made

    def forget(self) -> None:
        """Forget all contents: the state begins anew."""
        image = self.image
        for kept in (image.entries, image.sections, image.logs, image.once, self.missing, self.ids, self.no_once):
            kept.clear()
        self.complete = True

    # -- images -----------------------------------------------------------------------------

    def picture(self) -> dict[str, Any]:
        """Return the contents that a newcomer needs, as far as they are small."""
        entries = None
        if self.complete and self.image.entry_bytes <= INLINE_BYTES:
            entries = [
                [section, name, entry.value, *packed_stamp(entry.stamp), entry.expires_at]
                for (section, name), entry in self.image.entries.items()
            ]
        return {"entries": entries, "tails": self._tails()}

    def _tails(self) -> list[list[Any]]:
        tails: list[list[Any]] = []
        left = INLINE_ITEM_BYTES
        for name, log in self.image.logs.items():
            assert isinstance(log.items, Window)
            for item in reversed(log.items.tail(INLINE_ITEMS)):
                left -= len(item.value) + len(item.id)
                if left < 0:
                    return tails
                # Whether its id is unique isn't known of an item that was loaded by its place.
                tails.append(packed_item(name, item, unique=False))
        return tails

    def take_picture(self, picture: dict[str, Any], number: int, head: dict[str, Any]) -> None:
        """Begin with an image that a document carries."""
        self.forget()
        self.complete = picture["entries"] is not None
        for section, name, value, version, commit, expires_at in picture["entries"] or ():
            self.image.entries[section, name] = Entry(value, stamp_of(version, commit), expires_at)
        self._take_items(picture["tails"], head)
        self.ids.clear()
        self.take_head(number, head)
        self.followed = number + 1
