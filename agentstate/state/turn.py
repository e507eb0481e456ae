"""A turn: one unit of work on a state, read once, buffered, committed once.

A `Turn` belongs to one task tree. What handlers see are its `Frame`s: the root frame is the
turn's own; a handler that calls another one on the same state runs it in a child frame,
merged on success and dropped on its error. Frames of one parent run one at a time, and only
descendants re-enter. Whatever has ended raises `TurnClosedError`.

Nothing is shared before the commit, so cancelling an await here loses only this turn's own
buffer; the commit itself is carried through (see `settle`). All frames of a turn run on the
turn's event loop; other threads reach it through a synchronous context.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from hashlib import blake2b
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from agentstate.errors import (
    CommitUnknownError,
    ConflictError,
    ContextNotFoundError,
    LeaseLostError,
    ReadOnlyTurnError,
    TurnClosedError,
    TurnTimeoutError,
    UnsupportedError,
)
from agentstate.randomness import random_bits
from agentstate.state.access import Access
from agentstate.state.buffer import Buffer
from agentstate.state.renewal import renewer

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.state.line import Ticket
    from agentstate.state.record import Origin
    from agentstate.state.renewal import Renewed
    from agentstate.state.settings import TurnSettings
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Committed, Lease, OnceRecord, Snapshot, Wants

At = tuple[str, str]
current: ContextVar[Frame | None] = ContextVar("agentstate_frame", default=None)
"""The innermost frame that the running code belongs to."""


def _leave_in_child() -> None:
    current.set(None)  # the turn is the parent process's: what a child changed in it would be lost


os.register_at_fork(after_in_child=_leave_in_child)


def new_id() -> int:
    """Return a random id: 63 bits, never zero. A forked child draws other ones."""
    return random_bits(63) or 1


class Turn:
    """One turn on one state; see the module's docstring.

    Attributes:
        lazy: nothing was read at the start; each need is loaded when it comes. So are calls
            outside of turns: their own small unit of work.
        principal: who asks; ``None`` when the host doesn't know.
        plain: calls need nothing but the buffer: the usual case, until the turn ends.
        publishing: set while a commit half-way is under way: whoever would change something waits
            for it, since what changed meanwhile would be taken for a part of it.
    """

    __slots__ = (
        "closed",
        "context_id",
        "deadline",
        "failure_kept",
        "frame",
        "lazy",
        "lease",
        "loop",
        "messages",
        "once",
        "once_key",
        "origin",
        "plain",
        "principal",
        "publishing",
        "renewed",
        "scope",
        "settings",
        "store",
        "ticket",
        "unknown",
    )

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        settings: TurnSettings,
        origin: Origin,
        *,
        lazy: bool = False,
        principal: str | None = None,
        parent: Frame | None = None,
    ) -> None:
        """Begin over a snapshot."""
        self.store = store
        self.scope = snapshot.scope
        self.context_id = snapshot.scope.id
        self.settings = settings
        self.plain = settings.commit == "turn" and settings.turns != "read"
        self.origin = origin
        self.lazy = lazy
        self.principal = principal
        self.closed = False
        self.publishing: asyncio.Event | None = None
        self.ticket: Ticket | None = None
        self.lease: Lease | None = None
        self.renewed: Renewed | None = None
        self.unknown: CommitUnknownError | None = None
        self.once: OnceRecord | None = None
        self.once_key: str | None = None
        self.messages = 0
        self.loop = asyncio.get_running_loop()
        self.deadline = monotonic() + settings.turn_timeout
        self.frame = Frame(self, parent, {snapshot.scope: Buffer(snapshot)})

    def close(self) -> None:
        """End the turn: whoever still has it, or a frame of it, can't use it any more."""
        self.closed = True
        self.plain = False
        self.deadline = -inf
        self.frame.open = False
        self.frame = _ENDED  # the two hold each other, which only the garbage collector would notice
        if self.renewed is not None:
            renewer.discard(self.renewed)

    def check_open(self) -> None:
        """Raise unless the turn may still be used."""
        if self.closed:
            raise TurnClosedError(
                f"The turn of {self.scope} has ended.",
                scope=self.scope,
                remedy="Don't keep the context after the handler; open a turn of its own for later work.",
            )
        if monotonic() > self.deadline:
            raise TurnTimeoutError(
                f"The turn of {self.scope} ran longer than {self.settings.turn_timeout:g} s.",
                scope=self.scope,
                remedy="Raise turn_timeout=, or commit what is done with context.commit() in shorter handlers.",
            )
        if self.unknown is not None:  # to commit the rest might commit this part twice
            raise self.unknown
        if self.renewed is not None and self.renewed.lost:
            raise LeaseLostError(f"Another holder took the turn of {self.scope}.", scope=self.scope)

    async def quiet(self) -> None:
        """Wait until no commit half-way is under way."""
        while self.publishing is not None:
            await self.publishing.wait()

    def next_message_id(self) -> str | None:
        """Return the id of this turn's next message when it derives from an idempotency key.

        A turn that published a part and was run again then adds no message twice.
        """
        if self.once_key is None:
            return None
        self.messages += 1
        return f"{blake2b(self.once_key.encode(), digest_size=12).hexdigest()}-{self.messages}"

    async def load(self, buffer: Buffer, wants: Wants) -> Snapshot:
        """Read more of a state, at the stamp it was first read at.

        Raises:
            ConflictError: it has changed since.
        """
        base = buffer.snapshot
        more = await self.store.read(base.scope, wants, principal=self.principal)
        base.now = more.now
        if self.lazy and base.stamp is None and not base.birth:
            base.stamp, base.birth, base.owner = more.stamp, more.birth, more.owner
            base.created_at, base.updated_at, base.expires_at = more.created_at, more.updated_at, more.expires_at
            base.sections, base.logs, base.labels = more.sections, more.logs, more.labels
            base.entry_bytes = more.entry_bytes
            self.lazy = False
        elif more.stamp != base.stamp:
            raise ConflictError(
                f"{base.scope} changed while this turn was reading it.",
                scope=base.scope,
                expected=base.stamp,
                found=more.stamp,
                what="the state",
            )
        return more


class Frame(Access):
    """What a handler's context works on.

    Attributes:
        own: the buffer of the turn's own state, where it has one.
    """

    __slots__ = ("_lock", "buffers", "open", "own", "parent", "turn")

    def __init__(self, turn: Turn, parent: Frame | None, buffers: dict[StateScope, Buffer]) -> None:
        """Begin a frame of a turn."""
        self.turn = turn
        self.parent = parent
        self.buffers = buffers
        self.own = buffers.get(turn.scope)
        self.open = True
        self._lock: asyncio.Lock | None = None

    @staticmethod
    def joined(store: Store, scope: StateScope) -> Frame | None:
        """Return the open frame that already holds this state's turn in the running code's ancestry."""
        frame = current.get()
        while frame is not None:
            turn = frame.turn
            if frame.open and not turn.closed and turn.store is store and turn.scope == scope:
                return frame
            frame = frame.parent
        return None

    def tickets(self) -> list[Ticket]:
        """Return the tickets of all turns that this frame runs in."""
        found: dict[int, Ticket] = {}
        frame: Frame | None = self
        while frame is not None:
            ticket = frame.turn.ticket
            if ticket is not None and not frame.turn.closed:
                found[id(ticket)] = ticket
            frame = frame.parent
        return list(found.values())

    @property
    def lock(self) -> asyncio.Lock:
        """Makes frames of this parent run one at a time."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    def child(self, *, principal: str | None = None, read_only: bool = False) -> Frame:
        """Return a frame inside this one, for whoever calls the nested handler.

        Raises:
            ContextNotFoundError: the state is, or will be, somebody else's.
        """
        self.check_open()
        own = self.buffers[self.turn.scope]
        owner = own.owned_by or (None if own.snapshot.birth else self.turn.principal) or None
        if principal is not None and owner not in (None, principal):
            raise not_found(self.turn.scope)
        kind = ReadFrame if read_only else type(self)
        return kind(self.turn, self, {scope: Buffer(b.snapshot, b) for scope, b in self.buffers.items()})

    async def merge(self, child: Frame) -> None:
        """Take over a child that succeeded."""
        await self.turn.quiet()
        self.check_open()
        for scope, buffer in child.buffers.items():
            mine = self.buffers.get(scope)
            if mine is None:
                self.buffers[scope] = buffer
            else:
                mine.merge(buffer)

    def check_open(self) -> None:
        """Raise unless this frame may still be used."""
        if not self.open:
            raise TurnClosedError(f"The call on {self.turn.scope} that this context belongs to has ended.")
        self.turn.check_open()

    def ready(self, context_id: str) -> Buffer | None:
        """Return the buffer of the turn's own state if a call on it needs nothing but the buffer.

        That is the usual case: a small state, read whole, in a turn that commits at its end. Whether
        the turn took too long is asked at its commit.
        """
        turn = self.turn
        if not (turn.plain and self.open and context_id == turn.context_id):
            return None
        if turn.renewed is not None and turn.renewed.lost:
            self.check_open()
        own = self.own
        return own if own is not None and own.snapshot.complete else None

    async def buffer(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state; another state than the turn's joins it at its present stamp.

        Raises:
            UnsupportedError: the backend can't commit several states as one.
        """
        turn = self.turn
        if turn.publishing is not None:
            await turn.quiet()
        self.check_open()
        found = self.buffers.get(scope)
        if found is not None:
            return found
        if not turn.store.storage.capabilities.atomic_scopes:
            raise UnsupportedError(
                f"{turn.store.storage.name} can't commit {scope} together with {turn.scope}.",
                scope=scope,
                remedy="Use a turn of its own for it, before or after this one, or a backend that can.",
            )
        snapshot = await turn.store.read(scope, turn.store.wants(turn.settings, ""), principal=turn.principal)
        buffer = Buffer(snapshot)
        self.adopt(scope, buffer)
        return self.buffers[scope]

    def adopt(self, scope: StateScope, buffer: Buffer) -> None:
        """Let another state join the turn, below every frame."""
        if self.parent is not None and self.parent.turn is self.turn:
            self.parent.adopt(scope, buffer)
            buffer = Buffer(buffer.snapshot, self.parent.buffers[scope])
        self.buffers.setdefault(scope, buffer)

    async def writable(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state that is about to change."""
        buffer = await self.buffer(scope)
        if self.turn.settings.turns == "read":
            raise _read_only(scope)
        return buffer

    # -- committing --------------------------------------------------------------------------

    async def commit(self) -> tuple[Committed, ...]:
        """Publish what the turn has changed so far, and go on."""
        await self.turn.quiet()
        self.check_open()
        if self.parent is not None and self.parent.turn is self.turn:
            raise UnsupportedError(
                "A handler that runs inside another one's turn can't commit on its own.",
                scope=self.turn.scope,
                remedy="Commit in the outer handler.",
            )
        return await self.turn.store.publish(self.turn)


class ReadFrame(Frame):
    """The frame of a handler with ``turns="read"`` inside another one's turn."""

    __slots__ = ()

    def ready(self, context_id: str) -> Buffer | None:  # noqa: ARG002
        """Return nothing: each change is refused where it isn't fast."""
        return None

    async def writable(self, scope: StateScope) -> Buffer:
        """Refuse."""
        raise _read_only(scope)


def _read_only(scope: StateScope) -> ReadOnlyTurnError:
    return ReadOnlyTurnError(
        f"{scope} is read in a read-only turn.", scope=scope, remedy="Use another turns= for a handler that writes."
    )


def not_found(scope: StateScope) -> ContextNotFoundError:
    """Return the error for a state that isn't there, or not for this caller: one and the same."""
    return ContextNotFoundError(f"There is no {scope} for this caller.", scope=scope)


_ENDED = Frame.__new__(Frame)
_ENDED.open, _ENDED.buffers, _ENDED.parent = False, {}, None
