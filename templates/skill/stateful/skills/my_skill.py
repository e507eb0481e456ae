"""My Skill: remembers its conversations."""

from agentstate import message_text, register_handler, stateful


@register_handler("my_skill")
@stateful
async def my_skill(task, context, context_id):
    """Answer one message. What is changed here is stored when this returns: all of it, or nothing."""
    text = message_text(task)
    earlier = await context.get_history(context_id, limit=10)
    count = await context.increment(context_id, "messages")
    await context.add_to_history(context_id, "user", text)

    # Ask your model here. After a side effect that must not happen twice (an e-mail is sent, a
    # payment is made), set what belongs to it and `await context.commit()`: what is stored then
    # stays, whatever fails later.
    reply = f"Message {count}: {text}" + (f" (before that: {earlier[-1]['content']})" if earlier else "")

    await context.add_to_history(context_id, "assistant", reply)
    return reply
