"""Conversation memory: a skill that knows what was said before.

Run it twice; the second time it remembers the first:  python examples/demo_conversation_memory_skill.py
"""

import asyncio

from agentstate import aclose, dispatch, message_text, register_handler, stateful


@register_handler("conversation_memory")
@stateful
async def conversation_memory(task, context, context_id):
    """Counts the messages of a conversation, and recalls the last ones when it is asked."""
    text = message_text(task)
    history = await context.get_history(context_id, limit=6)
    number = await context.increment(context_id, "interaction_count")
    await context.add_to_history(context_id, "user", text)
    topics = [message["content"] for message in history if message["role"] == "user"]
    if "remember" in text.lower() and topics:
        reply = f"I remember. Lately you said: {'; '.join(topics)}"
    else:
        reply = f"This is message number {number}. What else?"
    await context.add_to_history(context_id, "assistant", reply)
    return reply


async def main():
    """Hold a short conversation."""
    for text in ("I am planning a trip to Lisbon.", "I would like to go by train.", "Do you remember my plans?"):
        print(f"you:   {text}")
        print(f"skill: {await dispatch('conversation_memory', {'context_id': 'memory-demo', 'text': text})}")
    await aclose()


if __name__ == "__main__":
    asyncio.run(main())
