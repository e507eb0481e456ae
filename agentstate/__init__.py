"""Durable, shared, inspectable state for AI agent handlers, in one decorator.

::

    from agentstate import stateful, message_text

    @stateful
    async def assistant(task, context, context_id):
        seen = await context.get_variable(context_id, "visits", 0)
        await context.set_variable(context_id, "visits", seen + 1)
        return f"visit number {seen + 1}, you said {message_text(task)}"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentstate.config import configure
    from agentstate.context import ConversationContext
    from agentstate.conversation import Conversation
    from agentstate.decorator import (
        apply_state,
        stateful,
        stateful_conversation,
        stateful_session,
        stateful_user,
        with_state,
    )
    from agentstate.dispatching import dispatch, register_handler
    from agentstate.manager import AgentFields, BoundState, ScopedState, StateManager, Transaction
    from agentstate.models import ConversationState, Message
    from agentstate.running import current
    from agentstate.scope import StateScope
    from agentstate.stores import aclose
    from agentstate.synchronous import SyncConversation, SyncConversationContext
    from agentstate.text import message_text

__version__ = "0.1.0"

_WHERE = {
    "AgentFields": "agentstate.manager",
    "BoundState": "agentstate.manager",
    "Conversation": "agentstate.conversation",
    "ConversationContext": "agentstate.context",
    "ConversationState": "agentstate.models",
    "Message": "agentstate.models",
    "ScopedState": "agentstate.manager",
    "StateManager": "agentstate.manager",
    "StateScope": "agentstate.scope",
    "SyncConversation": "agentstate.synchronous",
    "SyncConversationContext": "agentstate.synchronous",
    "Transaction": "agentstate.manager",
    "aclose": "agentstate.stores",
    "apply_state": "agentstate.decorator",
    "configure": "agentstate.config",
    "current": "agentstate.running",
    "dispatch": "agentstate.dispatching",
    "message_text": "agentstate.text",
    "register_handler": "agentstate.dispatching",
    "stateful": "agentstate.decorator",
    "stateful_conversation": "agentstate.decorator",
    "stateful_session": "agentstate.decorator",
    "stateful_user": "agentstate.decorator",
    "with_state": "agentstate.decorator",
}

__all__ = [
    "AgentFields",
    "BoundState",
    "Conversation",
    "ConversationContext",
    "ConversationState",
    "Message",
    "ScopedState",
    "StateManager",
    "StateScope",
    "SyncConversation",
    "SyncConversationContext",
    "Transaction",
    "__version__",
    "aclose",
    "apply_state",
    "configure",
    "current",
    "dispatch",
    "message_text",
    "register_handler",
    "stateful",
    "stateful_conversation",
    "stateful_session",
    "stateful_user",
    "with_state",
]


def __getattr__(name: str) -> Any:
    """Load a public name on its first use, so that importing agentstate costs next to nothing."""
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
