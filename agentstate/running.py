"""The conversation whose turn the running code is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.context import ConversationContext
from agentstate.errors import TurnError
from agentstate.state.turn import current as _current

if TYPE_CHECKING:
    from agentstate.conversation import Conversation

__all__ = ["current"]


def current() -> Conversation:
    """Return the conversation of the innermost turn that the running code is in.

    Raises:
        TurnError: it is in none.
    """
    frame = _current.get()
    while frame is not None:
        if frame.open and not frame.turn.closed:
            return ConversationContext(frame.turn.store, frame=frame).conversation(frame.turn.scope.id)
        frame = frame.parent
    raise TurnError(
        "There is no turn here.", remedy="Call this from a handler with @stateful, or open one with context.turn(id)."
    )
