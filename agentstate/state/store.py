"""A store: one storage, and the turns taken on it.

`enter` waits for a turn and reads in one round trip; `commit_turn` ends or publishes it in
one; `abandon` gives it back (see `failures` for what is kept of a failed one). A store may be used from
any number of event loops and threads at once.

Cancellation: while waiting in line, the place in line is given up. While reading, the read
is carried through and a lease that it brought is given back. A commit is carried through
(see `settle`). Giving back is a task of the store's own and outlives its caller.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from agentstate.errors import (
    CommitUnknownError,
    StateError,
    TurnInProgressError,
    TurnTimeoutError,
)
from agentstate.observability import debug, debugging
from agentstate.state.failures import refused, who
from agentstate.state.holders import describe
from agentstate.state.legacy import legacy_of
from agentstate.state.line import Ticket, TurnLine
from agentstate.state.record import Origin, encode_record
from agentstate.state.renewal import LEASE_SECONDS, renewer
from agentstate.state.settle import Errand, own_task, settle, unheard
from agentstate.state.turn import Frame, Turn, new_id, not_found
from agentstate.storage.protocol import ANY, KEEP, LeaseRequest, Wants
from agentstate.storage.records import new

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from agentstate.scope import StateScope
    from agentstate.state.buffer import Buffer
    from agentstate.state.settings import TurnSettings
    from agentstate.storage.protocol import Committed, Lease, Part, Snapshot, Storage

LEARNED_KEYS = 64
HISTORY = "history"


class Store:
    """One storage with its lines of waiting turns."""

    def __init__(self, storage: Storage, *, clock: Callable[[], float] = time.time) -> None:
        """Wrap a storage. ``clock`` stamps messages and records, in seconds since the epoch."""
        self.storage = storage
        self.clock = clock
        self.legacy = legacy_of(storage)
        self._line = TurnLine(self._give_back)
        _stores.add(self)
        self._learned: dict[str, dict[tuple[str, str], None]] = {}
        self._wants: dict[tuple[object, ...], Wants] = {}
        # Memory never suspends in a commit, so there is nothing to carry through. What lasts may, in one process, too.
        found = storage.capabilities
        self._inline = found.leases == "process" and found.durability == "none" and found.taskless
        self._taskless = storage.capabilities.taskless
        self._renews = storage.capabilities.leases == "network"

    def forget_line(self) -> None:
        """Begin with an empty line: in a forked child nobody of the parent's line is there."""
        self._line = TurnLine(self._give_back)

    # -- reading -----------------------------------------------------------------------------

    def wants(self, settings: TurnSettings, handler: str) -> Wants:
        """Return what a handler's first read brings: all of a small state, else what it reads lately."""
        learned = self._learned.get(handler)
        at = (settings.history, settings.reads, len(learned) if learned else 0, handler if learned else "")
        found = self._wants.get(at)
        if found is None:
            named = {("variables", key): None for key in settings.reads}
            tails = ((HISTORY, settings.history),) if settings.history else ()
            found = self._wants[at] = Wants(None, tuple({**named, **(learned or {})}), tails)
        return found

    def learn(self, handler: str, at: tuple[str, str]) -> None:
        """Note that a handler reads an entry that didn't come with its first read."""
        learned = self._learned.setdefault(handler, {})
        if len(learned) < LEARNED_KEYS:
            learned[at] = None

    async def read(self, scope: StateScope, wants: Wants, *, principal: str | None = None) -> Snapshot:
        """Read a state without taking its turn.

        Raises:
            ContextNotFoundError: it belongs to somebody else.
        """
        snapshot = await self.storage.read(scope, wants)
        await self._check_seen(snapshot, principal)
        return snapshot

    async def _check_seen(self, snapshot: Snapshot, principal: str | None) -> None:
        check_owner(snapshot, principal)
        if not snapshot.birth and self.legacy is not None:
            await self.legacy.refuse(snapshot.scope)

    # -- entering ----------------------------------------------------------------------------

    async def enter(
        self,
        scope: StateScope,
        settings: TurnSettings,
        origin: Origin,
        *,
        principal: str | None = None,
        once: str | None = None,
        parent: Frame | None = None,
    ) -> Turn:
        """Wait for, and take, a turn, and read the state in the same round trip.

        Raises:
            TurnInProgressError: ``turns="reject"`` and another runs, or too many wait.
            TurnTimeoutError: the wait was too long.
            ContextNotFoundError: the state belongs to somebody else.
        """
        wants = self.wants(settings, origin.handler)
        touch = settings.ttl if settings.ttl_mode == "sliding" else None
        if settings.turns in ("read", "optimistic"):
            snapshot = await self.storage.read(scope, wants, once=once, touch=touch)
            await self._check_seen(snapshot, principal)
            return Turn(self, snapshot, settings, origin, principal=principal, parent=parent)
        started = time.monotonic()
        ticket = self._line.take(scope, origin.handler)
        if ticket is None:
            ticket = await self._wait_in_line(scope, settings, origin, parent)
        nonce = ticket.lease.nonce if ticket.lease is not None else new_id()
        try:
            request = new(LeaseRequest, (nonce, LEASE_SECONDS, describe(ticket.holder)))
            while True:
                reading = self.storage.read(scope, wants, lease=request, once=once, touch=touch)
                snapshot = await (reading if self._inline else self._carry(reading, scope, nonce))
                lease = snapshot.lease
                if lease is not None:
                    break
                await self._wait_at_storage(snapshot, settings, nonce, started + settings.wait)
        except BaseException:
            ticket.lease = None
            self._give_back_nonce(scope, nonce)
            self._leave_line(ticket)
            raise
        ticket.lease = lease
        try:
            check_owner(snapshot, principal)
            if not snapshot.birth and self.legacy is not None:
                await self.legacy.refuse(scope)
        except BaseException:
            await self._release(ticket)
            raise
        turn = Turn(self, snapshot, settings, origin, principal=principal, parent=parent)
        turn.ticket, turn.lease = ticket, lease
        if self._renews or snapshot.expires_at is not None or settings.ttl is not None:  # no state ends in its turn
            turn.renewed = renewer.add(self.storage, lease, origin.handler, turn.loop, turn.deadline)
        if debugging():
            debug("read", **who(origin, scope), waited_ms=round((time.monotonic() - started) * 1000, 2))
        return turn

    async def _wait_in_line(
        self, scope: StateScope, settings: TurnSettings, origin: Origin, parent: Frame | None
    ) -> Ticket:
        if settings.turns == "reject":
            raise self._in_progress(scope, self._line.holder(scope))
        return await self._line.wait(
            scope,
            origin.handler,
            seconds=settings.wait,
            max_waiting=settings.max_waiting,
            held=parent.tickets() if parent is not None else (),
        )

    async def _wait_at_storage(self, snapshot: Snapshot, settings: TurnSettings, nonce: int, until: float) -> None:
        scope, holder = snapshot.scope, snapshot.holder
        if settings.turns == "reject":
            raise self._in_progress(scope, holder.holder if holder is not None else "another process")
        left = until - time.monotonic()
        if left <= 0:
            raise self._timed_out(scope, settings.wait, snapshot)
        if debugging():
            debug("wait", scope=str(scope), holder=holder.holder if holder is not None else "")
        await self.storage.wait_turn(scope, nonce, left)

    async def _carry(self, reading: Coroutine[Any, Any, Snapshot], scope: StateScope, nonce: int) -> Snapshot:
        """Carry a read through when its caller is cancelled, so that a lease that it takes is given back."""
        errand = Errand(reading, taskless=self._taskless)
        try:
            return await errand
        except asyncio.CancelledError:
            if errand.task is not None:
                if not errand.task.done():
                    errand.task.add_done_callback(lambda _: self._give_back_nonce(scope, nonce))
                errand.task.add_done_callback(unheard)
            raise

    def _in_progress(self, scope: StateScope, holder: str) -> TurnInProgressError:
        return TurnInProgressError(
            f"{holder} holds the turn of {scope}.", scope=scope, remedy="Try again, or use turns='queue' to wait."
        )

    def _timed_out(self, scope: StateScope, seconds: float, snapshot: Snapshot) -> TurnTimeoutError:
        holder = snapshot.holder
        who = f"{holder.holder} for {max(snapshot.now - holder.since, 0):.1f} s" if holder else "another process"
        return TurnTimeoutError(
            f"Waited {seconds:g} s for the turn of {scope}, held by {who}.",
            scope=scope,
            remedy="Raise wait=, shorten the handler, or use turns='read' for calls that only look.",
        )

    # -- ending ------------------------------------------------------------------------------

    async def commit_call(self, part: Part, settings: TurnSettings) -> Committed:
        """Commit one blind change, outside any turn."""
        if part.birth is ANY and self.legacy is not None:
            await self.legacy.refuse(part.scope)
        if settings.ttl is not None:
            part.ttl, part.sliding = settings.ttl, settings.ttl_mode == "sliding"
        part.record = encode_record(part, Origin("call"), self.clock())
        work = self.storage.commit([part], commit_id=new_id())
        return (await (work if self._inline else settle(work, taskless=self._taskless)))[0]

    async def publish(self, turn: Turn) -> tuple[Committed, ...]:
        """Commit what a turn has changed so far; the turn goes on over what that left."""
        changed = self._changed(turn)
        if not changed:
            return ()
        parts = self._parts(turn, changed)
        turn.publishing = asyncio.Event()
        work = self._publish(turn, changed, parts)
        return await (work if self._inline else settle(work, taskless=self._taskless))

    async def _publish(self, turn: Turn, buffers: list[Buffer], parts: list[Part]) -> tuple[Committed, ...]:
        plain, turn.plain = turn.plain, False
        try:
            done = await self.storage.commit(parts, commit_id=new_id(), lease=turn.lease)
            for buffer, one in zip(buffers, done, strict=False):  # behind them: what was only relied on
                buffer.committed(one)
        except CommitUnknownError as error:
            turn.unknown = error
            raise
        finally:
            event, turn.publishing, turn.plain = turn.publishing, None, plain
            assert event is not None
            event.set()
        if debugging():
            self._say_committed(turn, done)
        return done

    def _changed(self, turn: Turn) -> list[Buffer]:
        frame = turn.frame
        changed: list[Buffer] = []
        for scope, buffer in frame.buffers.items():
            buffer.settle_handed(autosave=turn.settings.autosave)
            if buffer.changed or (turn.once is not None and scope == turn.scope):
                changed.append(buffer)
        turn.check_open()
        return changed

    def _say_committed(self, turn: Turn, done: tuple[Committed, ...]) -> None:
        debug("commit", **who(turn.origin, turn.scope), stamp=str(done[0].stamp), states=len(done))

    async def commit_turn(self, turn: Turn) -> tuple[Committed, ...]:
        """Commit what a turn has changed, and end it, whatever happens."""
        try:
            if turn.publishing is not None:
                await turn.quiet()
            if turn.lazy and self.legacy is not None:  # nothing was read yet
                await self.legacy.refuse(turn.scope)
            changed = self._changed(turn)
            parts = self._parts(turn, changed)
        except BaseException as error:
            await refused(self, turn, error)
            raise
        if not changed:
            await self.abandon(turn)
            return ()
        turn.frame.open = False  # what comes now would not be in this commit
        done = await self._send(turn, parts)
        if debugging():
            self._say_committed(turn, done)
        return done

    def _parts(self, turn: Turn, changed: list[Buffer]) -> list[Part]:
        """Return what is committed: the changed states, on condition of what was read of others."""
        parts = [self._part(turn, buffer) for buffer in changed]
        buffers = turn.frame.buffers
        for buffer in buffers.values() if 0 < len(changed) < len(buffers) else ():
            part = None if buffer in changed else buffer.part()
            if part is not None and part.checks:
                part.checks_only = True
                parts.append(part)
        return parts

    def _part(self, turn: Turn, buffer: Buffer) -> Part:
        settings = turn.settings
        if turn.principal:
            buffer.claim(turn.principal)
        part = buffer.part()
        if part.ttl is KEEP and settings.ttl is not None:
            part.ttl, part.sliding = settings.ttl, settings.ttl_mode == "sliding"
        part.record = encode_record(part, turn.origin, self.clock())
        return part

    async def _send(self, turn: Turn, parts: list[Part]) -> tuple[Committed, ...]:
        ticket = turn.ticket
        hand_over = ticket is not None and self._line.next_waits(ticket)
        commit_id = new_id()
        once = turn.once._replace(commit_id=commit_id) if turn.once is not None else None
        lease = turn.lease
        work = self.storage.commit(parts, commit_id=commit_id, lease=lease, release=not hand_over, once=once)
        try:
            done = await (work if self._inline else settle(work, taskless=self._taskless))
        except BaseException as error:
            await refused(self, turn, error)
            raise
        turn.close()
        if ticket is not None:
            orphan = self._line.leave(ticket, lease if hand_over else None)
            if orphan is not None:
                self._give_back(orphan)
        return done

    async def abandon(self, turn: Turn, failure: bytes | None = None) -> None:
        """End a turn without a commit. Carried through when the caller is cancelled."""
        turn.close()
        if turn.ticket is not None:
            turn.ticket.lease = turn.lease
            await self._release(turn.ticket, failure)
        elif failure is not None:
            await settle(self.storage.leave(turn.scope, 0, failure=failure))

    async def _release(self, ticket: Ticket, failure: bytes | None = None) -> None:
        lease = ticket.lease
        assert lease is not None
        if failure is None and self._line.next_waits(ticket):
            orphan = self._line.leave(ticket, lease)
            if orphan is not None:
                self._give_back(orphan)
            return
        work = self.storage.leave(lease.scope, lease.nonce, failure=failure)
        try:
            await (work if self._inline else settle(work, taskless=self._taskless))
        finally:
            self._line.leave(ticket)

    def _leave_line(self, ticket: Ticket) -> None:
        orphan = self._line.leave(ticket, ticket.lease)
        if orphan is not None:
            self._give_back(orphan)

    def _give_back(self, lease: Lease) -> None:
        self._give_back_nonce(lease.scope, lease.nonce)

    def _give_back_nonce(self, scope: StateScope, nonce: int) -> None:
        own_task(self._leave_quietly(scope, nonce))

    async def _leave_quietly(self, scope: StateScope, nonce: int) -> None:
        try:
            await self.storage.leave(scope, nonce)
        except StateError as error:
            # Nobody waits for this any more; a lease that can't be given back ends by itself.
            debug("a turn couldn't be given back", scope=str(scope), error=str(error))


def check_owner(snapshot: Snapshot, principal: str | None) -> None:
    """Raise what an unknown id gets unless this state is the principal's, nobody's, or the host knows nobody."""
    if principal is None or snapshot.owner is None or snapshot.owner == principal:
        return
    raise not_found(snapshot.scope)


_stores: WeakSet[Store] = WeakSet()


def _begin_anew_in_child() -> None:
    for store in _stores:
        store.forget_line()


os.register_at_fork(after_in_child=_begin_anew_in_child)
