"""The conversation of one request, as the code inside an application gets it.

Nothing is read before its first use. A plain request then takes one turn, which is committed
with the response. Where a turn for the whole life would lock others out for hours (websockets,
server-sent events), each call is atomic by itself, and ``async with conversation.turn()`` makes
one turn of several.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from agentstate.context import ConversationContext
from agentstate.conversation import Conversation
from agentstate.errors import ContextIdError
from agentstate.handling import Request
from agentstate.middleware.late import LateTurn
from agentstate.scope import StateScope
from agentstate.state.turn import Frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agentstate.binding import Bound

R = TypeVar("R")

THIS = ""
"""Stands for the request's own id before it is known; no id is empty."""


class Chosen(NamedTuple):
    """Which conversation a request is for.

    Attributes:
        made: the server has just made this id up, and must tell the client.
    """

    id: str
    made: bool = False


class Chooser(Protocol):
    """Finds out which conversation a request is for."""

    async def __call__(self, bound: Bound, principal: str | None) -> Chosen:
        """Return it.

        Raises:
            ContextIdError: the request doesn't say.
        """
        ...


class RequestContext(ConversationContext):
    """A context whose turn is the request's.

    Attributes:
        late: the request's turn.
        here: the request's conversation.
        per_call: each call is atomic by itself.
        chosen: which conversation it is, once that is known.
        begun: the response has begun, so the client can no longer be told a new id.
    """

    def __init__(self, bound: Bound, name: str, principal: str | None, choose: Chooser) -> None:
        """Begin without a turn."""
        super().__init__(bound.store, settings=bound.settings, principal=principal)
        self._bound = bound
        self._name = name
        self._choose = choose
        self.late = LateTurn()
        self._own_frame: Frame | None = None
        self._scope: StateScope | None = None
        self.here = Conversation(self, THIS)
        self.per_call = False
        self.chosen: Chosen | None = None
        self.begun = False

    async def choose(self) -> Chosen:
        """Return which conversation this is, finding it out at the first call.

        Raises:
            ContextIdError: the request doesn't say, or it is too late to tell the client.
        """
        if self.chosen is None:
            chosen = await self._choose(self._bound, self._principal)
            if self.chosen is None:  # another task may have been faster
                if chosen.made and self.begun:
                    raise ContextIdError(
                        "This client's session is new or has ended, and its response has begun without a cookie.",
                        remedy="Use the conversation once before the response begins.",
                    )
                self._scope = StateScope.conversation(chosen.id)
                self.chosen = chosen
                self.here.id = chosen.id
        return self.chosen

    async def _own(self, context_id: str) -> str:
        """Return the id that is meant; the request's turn is taken on the way, where it is to have one."""
        chosen = self.chosen or await self.choose()
        scope = self._scope
        assert scope is not None
        if not self.per_call and Frame.joined(self._store, scope) is None:
            request = Request(
                scope,
                self._name,
                self._settings,
                self._principal,
                run_without=self._bound.run_without,
                correlation=self.late.gate.correlation,
            )
            self._own_frame = await self.late.take(self._store, request)
        return chosen.id if context_id == THIS else context_id

    def _joined(self, scope: StateScope) -> Frame | None:
        if self.per_call or self._scope is None:
            return Frame.joined(self._store, scope)
        return Frame.joined(self._store, self._scope) or self._own_frame

    async def _run(self, context_id: str, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        return await super()._run(await self._own(context_id), operation, *args, **kwargs)

    async def increment(self, context_id: str, key: str, by: int = 1) -> int:
        """See `ConversationContext.increment`."""
        return await super().increment(await self._own(context_id), key, by)

    async def commit(self) -> None:
        """Publish what the turn here has changed so far, and go on."""
        frame = None if self._scope is None else self._joined(self._scope)
        if frame is not None:
            await frame.commit()

    @asynccontextmanager
    async def turn(self, context_id: str, *, name: str = "turn") -> AsyncGenerator[Conversation]:
        """Open a turn for a block: the request's own if it has one, else a turn that ends with the block."""
        own = (await self.choose()).id if context_id == THIS else context_id
        async with super().turn(own, name=name) as conversation:
            yield conversation
