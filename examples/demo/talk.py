"""An A2A client: sends each line of its input to an agent, and prints the reply.

Talk to a running agent:  python examples/demo/talk.py http://127.0.0.1:8000/ --conversation c-1
"""

import argparse
import asyncio
import contextlib
import json
import sys
import uuid

import httpx
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_message_text
from a2a.types import Message, Part, Role, SendMessageRequest
from a2a.utils.errors import A2AError

TALK_SECONDS = 60.0


async def say(client, conversation, text):
    """Send one message and return the text of the reply."""
    message = Message(
        message_id=uuid.uuid4().hex, context_id=conversation, role=Role.ROLE_USER, parts=[Part(text=text)]
    )
    async for event in client.send_message(SendMessageRequest(message=message)):
        return get_message_text(event.message)
    return ""


async def talk(url, conversation):
    """Hold the conversation until the input ends; a failing agent doesn't end it."""
    at_terminal = sys.stdin.isatty()
    async with httpx.AsyncClient(timeout=TALK_SECONDS) as http:
        client = await create_client(url, ClientConfig(streaming=False, httpx_client=http))
        while line := await asyncio.to_thread(input, "you> " if at_terminal else ""):
            try:
                answer = {"reply": await say(client, conversation, line)}
            except (A2AError, httpx.HTTPError) as error:
                answer = {"error": " ".join(str(error).split()) or type(error).__name__}
            print(*answer.values() if at_terminal else [json.dumps(answer)], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--conversation", default="c-1")
    arguments = parser.parse_args()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        asyncio.run(talk(arguments.url, arguments.conversation))
