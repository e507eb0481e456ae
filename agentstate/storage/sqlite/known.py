"""The read cache of a SQLite state file: states as they were last read or written here, decoded.

A state that is known needs neither the reading thread nor a statement: the head of the
wal-index (`WalIndex`) tells on the spot whether anybody has committed to the file since. Three
cases, decided inside one lock that is held for microseconds:

* The head is the one that everything known was true at: nothing has changed.
* This process's own writer is at it. While it holds SQLite's write lock nobody else can commit, so
  a head without, or with exactly that one commit more, concerns at most the states of its group.
* Anything else was another process's commit: what is known is out of date, and the reading thread
  looks at each state's row to see whether that state was concerned.

So nothing stale is ever handed out. What the writer makes of a state becomes known when its transaction is
committed, and nothing of a transaction that was undone. Objects in here are never changed, only replaced.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from agentstate.storage.sqlite.walindex import commits_between

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Wants
    from agentstate.storage.sqlite.rows import State
    from agentstate.storage.sqlite.walindex import WalIndex

__all__ = ["CacheInfo", "KnownStates"]

STATE_BYTES: Final = 1500
ENTRY_BYTES: Final = 350
ITEM_BYTES: Final = 300


class CacheInfo(NamedTuple):
    """What a read cache did and holds.

    Attributes:
        hits: reads that needed nothing of the file.
        unchanged: reads that looked at the state's row, and found it unchanged since it was known.
        misses: reads that decoded the state.
        states: how many are known now.
        size: roughly the bytes they take.
    """

    hits: int
    unchanged: int
    misses: int
    states: int
    size: int


class KnownStates:
    """What is known of a file's states, at most so many bytes of it, the least recently used going first."""

    def __init__(self, most: int, index: WalIndex) -> None:
        """``most`` bytes are held; with 0 nothing ever is."""
        self._most = most
        self._index = index
        self._lock = threading.Lock()
        self._states: dict[StateScope, State] = {}
        self._size = 0
        self._head: bytes | None = None
        self._epoch = 0
        self._group: dict[StateScope, State | None] | None = None
        self._hits = self._unchanged = self._misses = 0

    def info(self) -> CacheInfo:
        """Return the counts so far."""
        with self._lock:
            return CacheInfo(self._hits, self._unchanged, self._misses, len(self._states), self._size)

    # -- reading -------------------------------------------------------------------------

    def look(self, scope: StateScope, wants: Wants) -> State | None:
        """Return what is known of a state, if that is all that is wanted, and is so at this moment."""
        with self._lock:
            state = self._states.get(scope)
            if state is None or state.epoch != self._epoch or not self._is_current(scope) or not _knows(state, wants):
                return None
            self._hits += 1
            if self._size * 2 > self._most:
                self._states[scope] = self._states.pop(scope)
            return state

    def _is_current(self, scope: StateScope) -> bool:
        head, group = self._index.head(), self._group
        if head is None or self._head is None:
            return False
        if head == self._head:
            return True
        # Only in the middle of this process's own commit. A log that begins anew changes the head, but not the count.
        if group is None:
            return False
        more = commits_between(self._head, head)
        return more == 0 or (more == 1 and scope not in group)

    def was(self, scope: StateScope) -> State | None:
        """Return what was known of a state at some time."""
        return self._states.get(scope)

    def learn(self, head: bytes | None, found: Iterable[tuple[State, bool]]) -> None:
        """Know what was read at a head; with each, whether it was known before and found unchanged."""
        with self._lock:
            now = self._index.head()
            if self._group is None and head is not None and head == now != self._head:
                self._head = head
                self._epoch += 1
            for state, unchanged in found:
                self._unchanged += unchanged
                self._misses += not unchanged
                if head is not None and head == self._head:
                    self._keep(state)

    # -- writing: on the writing thread, inside a write transaction -----------------------

    def begin(self) -> None:
        """Begin a group of commits; from here on nobody else can commit."""
        with self._lock:
            head = self._index.head()
            if head != self._head:
                self._head = head
                self._epoch += 1
            self._group = {}

    def get(self, scope: StateScope) -> State | None:
        """Return what is known of a state, changes of this group included."""
        assert self._group is not None
        if scope in self._group:
            return self._group[scope]
        state = self._states.get(scope)
        return state if state is not None and state.epoch == self._epoch and self._head is not None else None

    def put(self, scope: StateScope, state: State | None) -> None:
        """Say what the group makes of a state; ``None``: something unknown, or nothing."""
        assert self._group is not None
        self._group[scope] = state

    def end(self, *, kept: bool) -> None:
        """End the group, which was committed or undone; to be called before another may commit."""
        with self._lock:
            group, before, self._group = self._group or {}, self._head, None
            if not kept:
                return
            self._head = self._index.head()
            changes = any(state is not None for state in group.values())
            if before is None or self._head is None or not changes <= commits_between(before, self._head) <= 1:
                self._epoch += 1
                return
            for scope, state in group.items():
                if state is None:
                    self._drop(scope)
                else:
                    self._keep(state)

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._states.clear()
            self._size = 0

    def _keep(self, state: State) -> None:
        self._drop(state.scope)
        state.epoch, state.weight = self._epoch, _weight(state)
        if state.weight * 4 > self._most:
            return
        self._states[state.scope] = state
        self._size += state.weight
        while self._size > self._most:
            self._drop(next(iter(self._states)))

    def _drop(self, scope: StateScope) -> None:
        state = self._states.pop(scope, None)
        if state is not None:
            self._size -= state.weight


def _knows(state: State, wants: Wants) -> bool:
    if state.entries is None:
        return False
    for name, count in wants.tails:
        log = state.logs.get(name)
        if log is not None and len(log.items) < count and len(log.items) <= log.head - log.first:
            return False
    return True


def _weight(state: State) -> int:
    """Return roughly the bytes that a state takes; the items of a log count as much as its others."""
    weight = STATE_BYTES
    if state.entries is not None:
        weight += state.entry_bytes + ENTRY_BYTES * len(state.entries)
    for log in state.logs.values():
        if count := len(log.items):
            weight += count * (ITEM_BYTES + log.size // (log.head - log.first + 1))
    return weight
