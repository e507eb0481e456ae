"""Handlers of each kind. Only type checkers import what their annotations name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

from agentstate import stateful

if TYPE_CHECKING:
    import agentstate
    from agentstate import Conversation, ConversationContext, SyncConversation

ROOM = "room-1"
KINDS = (
    *("trailing", "leading", "middle", "optional", "annotated", "dotted", "by name", "typed", "keyword", "synchronous"),
    *("method", "method, leading", "method, by name", "method, synchronous"),
    *("class method", "class method, inside", "static method", "static method, inside", "object", "wrapped method"),
)


async def add(amount, conversation):
    """What all of them do."""
    total = await conversation.increment("n", amount)
    await conversation.add("user", f"add {amount}")
    if amount < 0:
        raise ValueError("less than nothing")
    return total


def handlers(storage) -> dict[str, Any]:
    """Return a handler of each kind on one storage."""
    state = stateful(storage=storage, key=ROOM)
    agent = _agent(state)
    return {**_functions(state), **_typed(state), **_methods(agent), "object": state(_Adder())} | {
        "wrapped method": state(_Adder().later)
    }


def _functions(state) -> dict[str, Any]:
    @state
    async def trailing(amount: int, conversation: Conversation) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    async def leading(conversation: Conversation, amount: int) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    async def middle(context: ConversationContext, amount: int, context_id: str) -> int:
        """Add to the counter."""
        return await add(amount, context.conversation(context_id))

    @state
    async def keyword(amount: int, *, conversation: Conversation) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    def synchronous(amount: int, conversation: SyncConversation) -> int:
        """Add to the counter."""
        total = conversation.increment("n", amount)
        conversation.add("user", f"add {amount}")
        if amount < 0:
            raise ValueError("less than nothing")
        return total

    return {
        "trailing": trailing,
        "leading": leading,
        "middle": middle,
        "keyword": keyword,
        "synchronous": synchronous,
    }


def _typed(state) -> dict[str, Any]:
    @state
    async def optional(amount: int, conversation: Optional[Conversation] = None) -> int:  # noqa: UP045 - that form
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    async def annotated(amount: int, conversation: Annotated[Conversation, "ours"]) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    async def dotted(amount: int, conversation: agentstate.Conversation | None = None) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    @state
    async def by_name(amount: int, context, context_id) -> int:
        """Add to the counter."""
        return await add(amount, context.conversation(context_id))

    @state
    async def typed(amount: int, context: ConversationContext, context_id: str) -> int:
        """Add to the counter."""
        return await add(amount, context.conversation(context_id))

    return {"optional": optional, "annotated": annotated, "dotted": dotted, "by name": by_name, "typed": typed}


def _agent(state) -> Any:
    class Agent:
        @state
        async def method(self, amount: int, conversation: Conversation) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

        @state
        async def leading(self, conversation: Conversation, amount: int) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

        @state
        async def by_name(self, amount: int, context, context_id) -> int:
            """Add to the counter."""
            return await add(amount, context.conversation(context_id))

        @state
        def synchronous(self, amount: int, conversation: SyncConversation) -> int:
            """Add to the counter."""
            total = conversation.increment("n", amount)
            conversation.add("user", f"add {amount}")
            if amount < 0:
                raise ValueError("less than nothing")
            return total

        @classmethod
        @state
        async def of_class(cls, amount: int, conversation: Conversation) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

        @state
        @classmethod
        async def of_class_inside(cls, conversation: Conversation, amount: int) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

        @staticmethod
        @state
        async def static(amount: int, conversation: Conversation) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

        @state
        @staticmethod
        async def static_inside(conversation: Conversation, amount: int) -> int:
            """Add to the counter."""
            return await add(amount, conversation)

    return Agent


def _methods(agent) -> dict[str, Any]:
    one = agent()
    return {
        "method": one.method,
        "method, leading": one.leading,
        "method, by name": one.by_name,
        "method, synchronous": one.synchronous,
        "class method": agent.of_class,
        "class method, inside": one.of_class_inside,
        "static method": agent.static,
        "static method, inside": one.static_inside,
    }


class _Adder:
    async def __call__(self, amount: int, conversation: Conversation) -> int:
        """Add to the counter."""
        return await add(amount, conversation)

    async def later(self, conversation: Conversation, amount: int) -> int:
        """Add to the counter."""
        return await add(amount, conversation)
