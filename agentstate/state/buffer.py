"""What a turn has read and changed of one state, before its commit.

A buffer lies over a snapshot, or (in a frame) over the buffer of the turn it runs in. Reads
see its own changes first. It remembers the stamp of everything it read, so that the commit
can check it, and the bytes behind every mutable value it handed out, so that a change that
was never set is noticed. It does no input or output: what isn't loaded is `MISSING`, and the
turn loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate import codec
from agentstate.errors import ConflictError, UnsavedChangeError
from agentstate.state.logbuffer import LogBuffer
from agentstate.storage.protocol import ANY, KEEP, Check, Entry, Increment, Keep, Part, Put, Snapshot, Stamp
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentstate.storage.protocol import Committed

At = tuple[str, str]


class _Missing:
    """The type of `MISSING`."""


MISSING: Final = _Missing()


class _Written(NamedTuple):
    value: bytes | None  # None: deleted
    ttl: float | None = None


class _Mark(NamedTuple):
    """What a buffer, and those below it, had done to an entry when a frame over them read it."""

    written: _Written | None
    delta: int | None
    cleared: bool
    below: _Mark | None


class Buffer:
    """The changes of one state in a turn or frame."""

    __slots__ = (
        "_absent",
        "_handed",
        "_marks",
        "_reads",
        "cleared",
        "deltas",
        "expiry",
        "labels",
        "logs",
        "owner",
        "parent",
        "section_reads",
        "snapshot",
        "touched",
        "written",
    )

    def __init__(self, snapshot: Snapshot, parent: Buffer | None = None) -> None:
        """Lie over a snapshot, or over a parent's buffer of the same state."""
        self.snapshot = snapshot
        self.parent = parent
        self.written: dict[At, _Written] = {}
        self.deltas: dict[At, int] = {}
        self.logs: dict[str, LogBuffer] = {}
        self.cleared = False
        self.owner: str | Keep | None = KEEP
        self.labels: Mapping[str, str] | Keep = KEEP
        self.expiry: float | Keep | None = KEEP
        self.section_reads: set[str] = set()
        self.touched = False
        self._reads: dict[At, Stamp | None] = {}
        self._absent: set[At] = set()
        self._handed: dict[At, tuple[Any, bytes]] = {}
        self._marks: dict[At, _Mark] = {}

    # -- entries -----------------------------------------------------------------------------

    def peek(self, at: At) -> bytes | int | _Missing | None:
        """Return an entry as this turn sees it; ``None`` when absent, `MISSING` when not loaded."""
        written = self.written.get(at)
        if written is not None:
            below: bytes | int | _Missing | None = written.value
        elif self.cleared:
            below = None
        elif self.parent is not None:
            below = self.parent.peek(at)
        else:
            below = self._stored(at)
        if at not in self.deltas or isinstance(below, (bytes, _Missing)):
            return below
        return (below or 0) + self.deltas[at]

    def _stored(self, at: At) -> bytes | int | _Missing | None:
        entry = self.snapshot.entries.get(at)
        if entry is not None:
            return entry.value
        return None if self.snapshot.complete or at in self._absent else MISSING

    def load(self, at: At, entry: Entry | None) -> None:
        """Note an entry that was read later, at the snapshot's stamp."""
        if self.parent is not None:
            self.parent.load(at, entry)
        elif entry is None:
            self._absent.add(at)
        else:
            self.snapshot.entries[at] = entry

    def root(self) -> Buffer:
        """Return the turn's own buffer of this state."""
        return self if self.parent is None else self.parent.root()

    def get(self, at: At) -> Any:
        """Return the value of a loaded entry, `MISSING` when it is absent; the read is checked at commit."""
        data: bytes | int | _Missing | None
        if self.parent is None and not (self.written or self.deltas or self.cleared):
            entry = self.snapshot.entries.get(at)  # nothing lies over it: most reads of most turns
            data, self._reads[at] = (None, None) if entry is None else (entry.value, entry.stamp)
        else:
            if at not in self._reads and at not in self.written and not self.cleared:
                self._note_read(at)
            data = self.peek(at)
        if at in self._handed:
            return self._handed[at][0]
        if data is None or type(data) is int:
            return MISSING if data is None else data
        assert type(data) is bytes
        value = codec.decode(data)
        if codec.is_mutable(value):
            self._handed[at] = (value, data)
        return value

    def _note_read(self, at: At) -> None:
        entry = self.root().snapshot.entries.get(at)
        self._reads[at] = entry.stamp if entry is not None else None
        if self.parent is not None:
            self._marks[at] = self.parent.mark(at)

    def mark(self, at: At) -> _Mark:
        """Return what was done to an entry here and below."""
        below = self.parent.mark(at) if self.parent is not None else None
        return _Mark(self.written.get(at), self.deltas.get(at), self.cleared, below)

    def put(self, at: At, value: Any, ttl: float | None = None) -> None:
        """Set an entry. Raises `UnsupportedValueError` when the value wouldn't come back the same."""
        data = codec.encode(value)
        self.written[at] = new(_Written, (data, ttl))
        self.deltas.pop(at, None)
        if codec.is_mutable(value):
            self._handed[at] = (value, data)
        elif self._handed:
            self._handed.pop(at, None)

    def delete(self, at: At) -> None:
        """Delete an entry."""
        self.written[at] = _Written(None)
        self.deltas.pop(at, None)
        self._handed.pop(at, None)

    def increment(self, at: At, by: int) -> int:
        """Add to a loaded entry and return what this turn sees; not a read, so it never conflicts."""
        now = self.peek(at)
        if isinstance(now, bytes):
            value = self.get(at)
            if type(value) is not int:
                raise TypeError(f"{at[1]!r} holds {type(value).__name__}, not a number")
            self.put(at, value + by, self.ttl_left(at))
            return value + by
        assert not isinstance(now, _Missing)
        self.deltas[at] = self.deltas.get(at, 0) + by
        return (now or 0) + by

    def ttl_left(self, at: At) -> float | None:
        """Return the lifetime an entry has left as this turn sees it: a new value doesn't lengthen it."""
        written = self.written.get(at)
        if written is not None:
            return written.ttl
        if self.cleared:
            return None
        if self.parent is not None:
            return self.parent.ttl_left(at)
        entry = self.snapshot.entries.get(at)
        if entry is None or entry.expires_at is None:
            return None
        return max(entry.expires_at - self.snapshot.now, 0.0)

    def keys(self, section: str, stored: Iterable[str]) -> list[str]:
        """Return the keys of a section as this turn sees it; the listing is checked at commit."""
        self.section_reads.add(section)
        return sorted(self.seen_keys(section, set(stored)))

    def seen_keys(self, section: str, stored: set[str]) -> set[str]:
        """Return the keys of a section as this turn sees it, given those that are stored."""
        below = set[str]() if self.cleared else set(stored)
        if self.parent is not None and not self.cleared:
            below = self.parent.seen_keys(section, stored)
        for (name, key), written in self.written.items():
            if name == section:
                (below.discard if written.value is None else below.add)(key)
        return below.union(key for name, key in self.deltas if name == section)

    # -- logs and the whole ------------------------------------------------------------------

    def log(self, name: str) -> LogBuffer:
        """Return the buffer of a log."""
        found = self.logs.get(name)
        if found is None:
            if self.parent is not None and not self.cleared:
                found = LogBuffer(None, self.parent.log(name))
            else:
                found = LogBuffer(None if self.cleared else self.snapshot.logs.get(name), None)
            self.logs[name] = found
        return found

    def clear(self) -> None:
        """Delete everything."""
        self.written.clear()
        self.deltas.clear()
        self.logs.clear()
        self._handed.clear()
        self.cleared = True
        self.owner = None
        self.labels = {}

    def touch(self, owner: str | Keep | None) -> None:
        """Make sure that the state exists after the commit, and whose it is."""
        self.touched = True
        if isinstance(owner, str):
            self.owner = owner

    def claim(self, principal: str) -> None:
        """Make a state that this turn creates, or creates anew, its principal's."""
        if (self.cleared or not self.snapshot.birth) and not isinstance(self.owner, str):
            self.owner = principal

    @property
    def owned_by(self) -> str | None:
        """Whose the state is, as this turn sees it."""
        if not isinstance(self.owner, Keep):
            return self.owner
        return self.snapshot.owner if self.parent is None else self.parent.owned_by

    @property
    def exists(self) -> bool:
        """Whether the state is there, as this turn sees it."""
        return self.changed or (bool(self.snapshot.birth) if self.parent is None else self.parent.exists)

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(
            self.written
            or self.deltas
            or self.cleared
            or self.touched
            or self.owner is not KEEP
            or self.labels is not KEEP
            or self.expiry is not KEEP
            or any(log.changed for log in self.logs.values())
        )

    def settle_handed(self, *, autosave: bool) -> None:
        """Notice values that were changed after they were read or set.

        Raises:
            UnsavedChangeError: one was, and ``autosave`` is off.
        """
        for at, (value, data) in list(self._handed.items()):
            if not codec.changed(value, data):
                continue
            if not autosave:
                raise UnsavedChangeError(
                    f"The value of {at[1]!r} was changed, but not set.",
                    key=at[1],
                    remedy=f"Call set_variable(..., {at[1]!r}, value) after changing it, or use autosave=True.",
                )
            now = codec.encode(value)
            self.written[at] = _Written(now, self.ttl_left(at))
            self._handed[at] = (value, now)

    # -- ending ------------------------------------------------------------------------------

    def merge(self, child: Buffer) -> None:
        """Take over what a frame that succeeded has read and changed.

        Raises:
            ConflictError: this turn changed, meanwhile, what the frame had read.
        """
        self._refuse_stale(child)
        if child.cleared:
            self.clear()
        self._merge_entries(child)
        for name, log in child.logs.items():
            self.log(name).merge(log)
        self.section_reads |= child.section_reads
        self.touched |= child.touched
        for name in [one for one in ("owner", "labels", "expiry") if getattr(child, one) is not KEEP]:
            setattr(self, name, getattr(child, name))

    def _merge_entries(self, child: Buffer) -> None:
        for at, stamp in child._reads.items():
            if at not in self.written:
                self._reads.setdefault(at, stamp)
                mark = child._marks.get(at)
                if mark is not None and mark.below is not None:
                    self._marks.setdefault(at, mark.below)
        for at, written in child.written.items():
            self.deltas.pop(at, None)
            self._handed.pop(at, None)
            self.written[at] = written
        for at, delta in child.deltas.items():
            self.increment(at, delta)
        for at, handed in child._handed.items():
            self._handed.setdefault(at, handed)

    def _refuse_stale(self, child: Buffer) -> None:
        changed = [at[1] for at, mark in child._marks.items() if self.mark(at) != mark]
        changed += [name for name, log in child.logs.items() if log.stale]
        if changed:
            raise ConflictError(
                f"{changed[0]!r} was changed while a nested handler that relied on it was running.",
                scope=self.snapshot.scope,
                what=changed[0],
            )

    def committed(self, done: Committed) -> None:
        """Lie over the state as a commit of this buffer left it: a turn goes on after it."""
        base = self.snapshot
        if done.stamp is None or self.cleared:
            base.entries, base.sections, base.logs = {}, {}, {}
            base.complete = True
            self._reads.clear()
        if done.stamp is not None:
            for (section, key), one in self.written.items():
                self._settle((section, key), one.value, done.stamp)
            for at, number in done.counters.items():
                self._settle(at, number, done.stamp)
        base.stamp, base.birth, base.expires_at = done.stamp, done.birth, done.expires_at
        base.logs.update(done.logs)
        for name, log in self.logs.items():
            if name in base.logs:
                log.committed(base.logs[name])
        if not isinstance(self.owner, Keep):
            base.owner = self.owner
        self.written, self.deltas, self.cleared, self.touched = {}, {}, False, False
        self.owner = self.labels = self.expiry = KEEP

    def _settle(self, at: At, value: bytes | int | None, stamp: Stamp) -> None:
        base = self.snapshot
        base.sections[at[0]] = stamp
        if value is None:
            base.entries.pop(at, None)
            self._absent.add(at)
        else:
            base.entries[at] = Entry(value, stamp)
        if at in self._reads:
            self._reads[at] = stamp if value is not None else None

    def part(self) -> Part:
        """Return the change as a part of a commit, with the checks of what was read."""
        base = self.snapshot
        part = Part(
            scope=base.scope,
            birth=base.birth or ANY,
            base=base.stamp if isinstance(self.owner, str) else ANY,  # of two who take it, one gets it
            checks=self._checks(),
            clear=self.cleared,
            owner=self.owner,
            labels=self.labels,
            ttl=self.expiry,
        )
        if self.written:
            part.puts = [new(Put, (*at, *one)) for at, one in self.written.items() if one.value is not None]
            if len(part.puts) < len(self.written):
                part.deletes = [at for at, one in self.written.items() if one.value is None]
        if self.deltas:
            part.increments = [Increment(*at, by) for at, by in self.deltas.items()]
        for name, log in self.logs.items():
            log.add_to(part, name)
        return part

    def _checks(self) -> list[Check]:
        checks = [new(Check, ("entry", at[0], stamp, at[1])) for at, stamp in self._reads.items()]
        checks += [Check("section", name, self.snapshot.sections.get(name)) for name in self.section_reads]
        for name, log in self.logs.items():
            if log.was_read:
                stored = self.snapshot.logs.get(name)
                checks.append(new(Check, ("log", name, None if stored is None else stored.stamp, "")))
        return checks
