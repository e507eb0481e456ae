"""A memory assistant: remembers facts it is told, for each conversation, for a day.

Talk to it:  python examples/memory_assistant.py [CONVERSATION]
"""

import asyncio
import sys

from agentstate import Conversation, aclose, message_text, stateful

HELP = "Say 'remember KEY = VALUE', 'what is KEY?', 'forget KEY' or 'everything'."


@stateful(ttl=24 * 3600)
async def memory_assistant(task, conversation: Conversation):
    """Answers from what it was told before."""
    text = message_text(task).strip()
    await conversation.add("user", text)
    reply = await answer(text, conversation)
    await conversation.add("assistant", reply)
    return reply


async def answer(text, conversation):
    """Return the reply to one message."""
    word, _, rest = text.rstrip("?").partition(" ")
    if word == "remember" and "=" in rest:
        key, _, value = (part.strip() for part in rest.partition("="))
        await conversation.set(key, value)
        return f"I will remember that {key} is {value}."
    if text.startswith("what is "):
        return f"{await conversation.get(text.removeprefix('what is ').rstrip('?'), 'something I was never told')}."
    if word == "forget":
        return "Forgotten." if await conversation.delete(rest.strip()) else "I didn't know that."
    if word == "everything":
        known = (await conversation.state()).variables
        return ", ".join(f"{key} is {value}" for key, value in known.items()) or "I know nothing yet."
    return HELP


async def main(context_id):
    """Talk until the input ends."""
    print(HELP)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        print(await memory_assistant({"context_id": context_id, "text": line}), flush=True)
    await aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory-assistant"))
