"""A turn that is taken at its first use, and ended by whoever runs the request.

The code that first needs the state may be in another task or thread than the code that ends
the request, so the turn can't hang on a context variable that the first one sets. Instead
every request has a `Gate` in its context from the beginning, which leads to the turn once
there is one.

Several tasks of a request may come first at once: one takes the turn, the others get it. A
caller that is cancelled while it waits gives its place in line up. Ending is idempotent;
from then on nothing can be written any more, so nothing is lost without an error.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from agentstate.errors import TurnClosedError
from agentstate.handling import child, enter, failed, finish
from agentstate.state.record import Origin
from agentstate.state.turn import Frame, Turn, current, new_id

if TYPE_CHECKING:
    from agentstate.handling import Request
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Committed


class _NoTurn:
    """Stands where a gate has no turn yet: a turn that has ended, as far as anybody may ask.

    What the code of one request does in several turns has one correlation id.
    """

    closed = True
    scope = None
    ticket = None

    def __init__(self, outer: Frame | None) -> None:
        known = outer.turn.origin.correlation if outer is not None else ""
        self.origin = Origin("request", correlation=known or f"{new_id():016x}")


class Gate(Frame):
    """The place of a request's turn among the frames of the code it runs; never a frame to work in itself."""

    __slots__ = ()
    parent: Frame | None

    def __init__(self, outer: Frame | None) -> None:
        """Lead to the frame that the request was made in, for now."""
        super().__init__(cast("Turn", _NoTurn(outer)), outer, {})
        self.open = False

    @property
    def correlation(self) -> str:
        """What all turns of the request have in common in the journal."""
        return self.turn.origin.correlation

    def lead_to(self, frame: Frame) -> None:
        """Lead to the frame of the turn that was taken."""
        self.turn, self.parent = frame.turn, frame

    async def commit(self) -> tuple[Committed, ...]:
        """Publish what the request's turn has changed so far, if it was taken."""
        return () if self.parent is None else await self.parent.commit()


class LateTurn:
    """The turn of one request.

    Attributes:
        gate: to be set as the current frame for the time of the request.
        ended: nothing more can be written.
    """

    def __init__(self) -> None:
        """Take nothing yet."""
        self._outer = current.get()
        self._lock = asyncio.Lock()
        self._frame: Frame | None = None
        self._request: Request | None = None
        self._joined: Frame | None = None
        self.gate = Gate(self._outer)
        self.ended = False

    @property
    def taken(self) -> bool:
        """Whether there is a turn that has to be ended."""
        return self._frame is not None and not self.ended

    async def take(self, store: Store, request: Request) -> Frame:
        """Return the turn's frame, taking the turn if nobody has.

        Raises:
            TurnClosedError: the request's turn has ended.
            TurnTimeoutError: the wait was too long, and what else `Store.enter` raises.
        """
        async with self._lock:
            self._check_open(request)
            if self._frame is None:
                frame = await self._enter(store, request)
                self._frame, self._request = frame, request
                self.gate.lead_to(frame)
            return self._frame

    async def _enter(self, store: Store, request: Request) -> Frame:
        token = current.set(self._outer)  # the turn's ancestors are those of the request, not its own gate
        try:
            joined = Frame.joined(store, request.scope)
            if joined is not None:
                await joined.lock.acquire()
                self._joined = joined
                return self._inside(joined, request)
            turn = await enter(store, request)
        finally:
            current.reset(token)
        assert isinstance(turn, Turn)  # requests have no idempotency key
        if self.ended:
            await turn.store.abandon(turn)
            self._check_open(request)
        return turn.frame

    def _check_open(self, request: Request) -> None:
        if self.ended:
            raise TurnClosedError(
                f"The turn that this request had on {request.scope} has ended.",
                scope=request.scope,
                remedy="For work after the response use a turn of its own: async with conversation.turn().",
            )

    async def end(self, error: BaseException | None = None) -> None:
        """Commit, or after an error do what ``on_error`` says, and give the turn back.

        Raises:
            ConflictError: somebody else changed what the request relied on, and what else a commit raises.
        """
        frame, request, taken = self._frame, self._request, self.taken
        self.ended = True
        if frame is None or request is None or not taken:
            return
        # From here on a change would come too late for the commit: it raises instead of getting lost.
        frame.open = False
        if self._joined is not None:
            await self._leave(self._joined, frame, merge=error is None)
        elif error is None:
            await finish(frame.turn, request, None)
        else:
            await failed(frame.turn, request, error)

    def _inside(self, joined: Frame, request: Request) -> Frame:
        try:
            return child(joined, request)
        except BaseException:
            self._joined = None
            joined.lock.release()
            raise

    async def _leave(self, joined: Frame, frame: Frame, *, merge: bool) -> None:
        try:
            if merge:
                await joined.merge(frame)
        finally:
            joined.lock.release()

    async def end_early(self, *, seen: bool) -> None:
        """End a request that its client left; ``seen``: it has got a part of the answer.

        ``on_cancel`` says what is stored: everything (``commit``), nothing (``rollback``), or
        everything once the client has seen something (``auto``).
        """
        if not self.taken or self._request is None:
            self.ended = True
            return
        mode = self._request.settings.on_cancel
        keep = mode == "commit" or (mode == "auto" and seen)
        await self.end(None if keep else asyncio.CancelledError("the client has left"))
