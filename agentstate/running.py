"""The conversation whose turn the running code is in."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from agentstate.context import ConversationContext
from agentstate.errors import TurnError
from agentstate.state.turn import current as _current

if TYPE_CHECKING:
    from agentstate.conversation import Conversation

__all__ = ["current"]

offered: ContextVar[Conversation | None] = ContextVar("agentstate_offered", default=None)
"""Set by middleware: the request's conversation, whose turn is taken at its first use."""


def current() -> Conversation:
    """Return the conversation of the innermost turn that the running code is in, else of its request.

    Raises:
        TurnError: it is in none.
    """
    frame = _current.get()
    while frame is not None:
        if frame.open and not frame.turn.closed:
            return ConversationContext.in_frame(frame).conversation(frame.turn.scope.id)
        frame = frame.parent
    conversation = offered.get()
    if conversation is not None:
        return conversation
    raise TurnError(
        "There is no turn here.", remedy="Call this from a handler with @stateful, or open one with context.turn(id)."
    )
