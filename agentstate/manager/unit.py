"""A unit of work on any number of states of one store: what a transaction, or a single call, runs in.

It is a turn that holds no lease and has read nothing: each state joins it at its first touch, and
a blind write reads nothing at all. Everything that was read is checked in the commit, also of
states that it doesn't change; so a unit is serialisable, and all or nothing.

A unit belongs to one event loop; several tasks of it may work in one unit. Cancelling an await
loses only the unit's own buffers; the commit is carried through (see `agentstate.state.settle`).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, cast

from agentstate.errors import ConflictError, TurnClosedError, UnsupportedError
from agentstate.manager.lock import NOTHING, is_lock
from agentstate.scope import StateScope
from agentstate.state.buffer import Buffer
from agentstate.state.logbuffer import LogBuffer
from agentstate.state.record import encode_record
from agentstate.state.settings import TurnSettings
from agentstate.state.settle import settle
from agentstate.state.turn import Frame, Turn, current, new_id
from agentstate.storage.protocol import ANY, INLINE_BYTES, KEEP, OnceRecord, Snapshot, Wants

if TYPE_CHECKING:
    from agentstate.manager.routes import Routes
    from agentstate.state.record import Origin
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Committed, Part

__all__ = ["NOTHING", "Unit", "UnitFrame"]

_NOWHERE: Final = Snapshot(scope=StateScope("custom", ("a unit of work",)), now=0.0)
_STRICT: Final = TurnSettings(turns="optimistic", turn_timeout=inf, history=0)
_SAVING: Final = _STRICT._replace(autosave=True)


class Unit(Turn):
    """See the module's docstring.

    Attributes:
        unread: states that joined, and of which nothing was read yet.
        root: its frame below all savepoints.
        sent: how many letters its outbox holds.
    """

    __slots__ = ("_bound", "root", "routes", "sent", "unread")

    def __init__(self, routes: Routes, origin: Origin, *, autosave: bool = False) -> None:
        """Begin with nothing. With ``autosave`` values that were changed and not set are stored."""
        # Which store it is shows at the first touch; until then nothing asks for it.
        super().__init__(cast("Store", None), _NOWHERE, _SAVING if autosave else _STRICT, origin)
        self.routes = routes
        self.unread: set[StateScope] = set()
        self._bound = False
        self.sent = 0
        self.root = UnitFrame(self, None)
        self.frame = self.root

    def check_open(self) -> None:
        """Raise unless the unit may still be used."""
        if self.closed:
            raise TurnClosedError(
                f"This {self.origin.operation} has ended.", remedy="Open another one for what comes after it."
            )

    def takes(self, scope: StateScope) -> bool:
        """Return whether a state is in this unit, or can join it."""
        store = self.routes.of(scope.kind).store
        if scope in self.root.buffers or not self._bound:
            return True
        return store is self.store and store.storage.capabilities.atomic_scopes

    def own_scope(self) -> StateScope:
        """Return the state that joined first: letters to others lie in it."""
        return next(iter(self.root.buffers))

    def join(self, scope: StateScope) -> Snapshot:
        """Let a state join.

        Raises:
            UnsupportedError: it can't be committed together with those that joined before.
        """
        store = self.routes.of(scope.kind).store
        self._meet_turn(store, scope)
        if not self._bound:
            self.store, self._bound = store, True
        elif store is not self.store or not store.storage.capabilities.atomic_scopes:
            first = next(iter(self.root.buffers))
            where = (
                f"{store.storage.name} can't"
                if store is self.store
                else f"{self.store.storage.name} and {store.storage.name} can't"
            )
            raise UnsupportedError(
                f"{where} commit {scope} together with {first}.",
                scope=scope,
                remedy="Use a transaction of its own for it, the outbox for blind changes, or a backend that can.",
            )
        self.unread.add(scope)
        return Snapshot(scope=scope, now=0.0, complete=False)

    def _meet_turn(self, store: Store, scope: StateScope) -> None:
        """Work under the caller's lock on this state, if there is one; what a handler's turn holds is refused."""
        held = Frame.joined(store, scope) if current.get() is not None else None
        if held is None:
            return
        if not is_lock(held):
            raise UnsupportedError(
                f"{scope} is in a handler's turn, which would conflict with this {self.origin.operation}.",
                scope=scope,
                remedy="Change it by the handler's own context or state, which are one commit already.",
            )
        held.check_open()
        self.lease = held.turn.lease

    async def load(self, buffer: Buffer, wants: Wants) -> Snapshot:
        """Read more of a state, at the stamp it was first read at.

        Raises:
            ConflictError: it has changed since.
            ContextNotFoundError: it belongs to somebody else.
        """
        base = buffer.snapshot
        scope = base.scope
        if scope not in self.unread:
            return await super().load(buffer, wants)
        more = await self.store.read(scope, wants, principal=self.routes.owner_of(scope.kind))
        if scope in self.unread:
            self.unread.discard(scope)
            base.stamp, base.birth, base.owner, base.parent = more.stamp, more.birth, more.owner, more.parent
            base.created_at, base.updated_at, base.expires_at = more.created_at, more.updated_at, more.expires_at
            base.sections, base.logs, base.labels = more.sections, more.logs, more.labels
            base.entry_bytes, base.now = more.entry_bytes, more.now
            _lay_over_stored(buffer)
        elif more.stamp != base.stamp:  # another task of this unit was quicker, and somebody came between
            raise ConflictError(
                f"{scope} changed while this {self.origin.operation} was reading it.",
                scope=scope,
                expected=base.stamp,
                found=more.stamp,
                what="the state",
            )
        return more

    async def commit(self, *, once: OnceRecord | None = None) -> tuple[Committed, ...]:
        """Commit what was changed, on condition of what was read, and end the unit, whatever happens."""
        try:
            for buffer in self.root.buffers.values():
                buffer.settle_handed(autosave=self.settings.autosave)
            self.check_open()
            parts = self.parts()
        finally:
            self.close()
        if not parts or (len(self.root.buffers) == 1 and parts[0].checks_only):
            return ()  # what was read of one state was read at one stamp
        storage = self.store.storage
        commit_id = new_id()
        once = once._replace(commit_id=commit_id) if once is not None else None
        work = storage.commit(parts, commit_id=commit_id, lease=self.lease, once=once)
        found = storage.capabilities
        if found.leases == "process" and found.durability == "none" and found.taskless:
            return await work
        return await settle(work, taskless=storage.capabilities.taskless)

    def parts(self) -> list[Part]:
        """Return what this unit commits: the changed states first, then those it only relies on."""
        changed = [self._part(buffer) for buffer in self.root.buffers.values() if buffer.changed]
        for buffer in self.root.buffers.values():
            part = None if buffer.changed else self._checks(buffer)
            if part is not None:
                changed.append(part)
        return changed

    def _checks(self, buffer: Buffer) -> Part | None:
        """Return what the commit relies on in a state that it doesn't change."""
        part = buffer.part()
        part.checks_only = True
        if part.scope in self.root.watched:
            part.base = buffer.snapshot.stamp
        return part if part.checks or part.base is not ANY else None

    def _part(self, buffer: Buffer) -> Part:
        kind = buffer.snapshot.scope.kind
        owner, settings = self.routes.owner_of(kind), self.routes.of(kind).settings
        if owner is not None:
            buffer.claim(owner)
        part = buffer.part()
        part.parent = self.root.parents.get(part.scope, KEEP)
        # Labels are stored as a whole: of two who change them, one begins again.
        if part.scope in self.root.watched or (part.labels is not KEEP and not part.clear):
            part.base = buffer.snapshot.stamp
        if part.ttl is KEEP and settings.ttl is not None:
            part.ttl, part.sliding = settings.ttl, settings.ttl_mode == "sliding"
        part.record = encode_record(part, self.origin, self.store.clock())
        return part


def _lay_over_stored(buffer: Buffer) -> None:
    """Let the logs to which blind appends were made lie over the stored ones, now that these are known."""
    if buffer.parent is not None:
        _lay_over_stored(buffer.parent)
    for name, old in buffer.logs.items():
        if not buffer.cleared:
            below = buffer.parent.log(name) if buffer.parent is not None else None
            buffer.logs[name] = log = LogBuffer(buffer.snapshot.logs.get(name) if below is None else None, below)
            log.pending = old.pending


class UnitFrame(Frame):
    """A unit's buffers, or a savepoint's over them.

    Attributes:
        parents: what is to be stored as the parents of states.
        watched: states that must be as they were read, whole: what was asked is more than their entries.
    """

    __slots__ = ("parents", "watched")

    turn: Unit

    def __init__(self, turn: Unit, parent: UnitFrame | None) -> None:
        """Begin without any state: none is the unit's own."""
        super().__init__(turn, parent, {})
        self.parents: dict[StateScope, str] = {} if parent is None else dict(parent.parents)
        self.watched: set[StateScope] = set()

    def begin(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state, which joins the unit now if it hasn't yet."""
        found = self.buffers.get(scope)
        if found is None:
            if isinstance(self.parent, UnitFrame):
                below = self.parent.begin(scope)
                found = Buffer(below.snapshot, below)
            else:
                found = Buffer(self.turn.join(scope))
            self.buffers[scope] = found
        return found

    def savepoint(self) -> UnitFrame:
        """Return a frame over this one: merged on success, dropped on error."""
        self.check_open()
        return UnitFrame(self.turn, self)

    async def merge(self, child: Frame) -> None:
        """Take over a savepoint that succeeded."""
        await super().merge(child)
        if isinstance(child, UnitFrame):
            self.parents |= child.parents
            self.watched |= child.watched

    def keep_reads(self, dropped: UnitFrame) -> None:
        """Go on relying on what a dropped savepoint has read: who caught its error may decide by it."""
        self.watched |= dropped.watched
        for scope, buffer in dropped.buffers.items():
            mine = self.buffers[scope]
            for check in buffer.part().checks:
                if check.kind == "entry":
                    mine.get((check.name, check.key))
                elif check.kind == "section":
                    mine.section_reads.add(check.name)
                else:
                    mine.log(check.name).was_read = True

    async def buffer(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state.

        Raises:
            UnsupportedError: it can't be committed together with those that joined before.
        """
        self.check_open()
        return self.begin(scope)

    async def known(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state, and have read at least what the state is."""
        buffer = await self.buffer(scope)
        if scope in self.turn.unread:
            await self.turn.load(buffer, NOTHING)
        return buffer

    async def writable(self, scope: StateScope) -> Buffer:
        """Return the buffer of a state that is about to change; one that has owners is looked at first."""
        if self.turn.routes.owner_of(scope.kind) is not None:
            return await self.known(scope)
        return await self.buffer(scope)

    async def keys(self, scope: StateScope, section: str) -> list[str]:
        """Return the keys of a section, in order, all of one moment."""
        found = await super().keys(scope, section)
        buffer = self.buffers[scope]
        if buffer.snapshot.entry_bytes > INLINE_BYTES:  # they came in pages
            await self.turn.load(buffer, NOTHING)
        return found

    async def log(self, scope: StateScope, log: str, *, tail: int | None = 0) -> LogBuffer:
        """Return the buffer of a log, its head loaded."""
        buffer = await self.buffer(scope)
        if scope in self.turn.unread:
            await self.turn.load(buffer, Wants((), (), ((log, 2**31 if tail is None else tail),), 0))
        return buffer.log(log)
