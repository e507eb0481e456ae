"""My Skill: answers each message by itself."""

from agentstate import message_text, register_handler


@register_handler("my_skill")
async def my_skill(task):
    """Answer one message. To let it remember, decorate it with ``@agentstate.stateful``."""
    return f"You said: {message_text(task)}"
