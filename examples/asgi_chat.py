"""A chat in the browser: streamed replies, one conversation for each browser, all in one ASGI application.

python examples/asgi_chat.py --port 8000        # pip install starlette uvicorn
"""

import argparse
import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from agentstate.middleware import ASGIStateMiddleware

PAGE = """<!doctype html><title>chat</title>
<style>body { font: 1rem sans-serif; max-width: 40rem; margin: 2rem auto } p { white-space: pre-wrap }</style>
<div id=log></div><form><input name=text autofocus autocomplete=off size=50><button>say</button></form>
<script>
function show(text) { const p = log.appendChild(document.createElement("p")); p.textContent = text; return p }
document.forms[0].onsubmit = async event => {
  event.preventDefault(); const text = event.target.text.value; event.target.reset(); show("you: " + text)
  const reply = show("agent: "), reader = (await fetch("/chat", { method: "POST", body: text })).body.getReader()
  for (let part; !(part = await reader.read()).done;) reply.textContent += new TextDecoder().decode(part.value)
}
</script>"""


async def page(request):
    """The page."""
    return HTMLResponse(PAGE)


async def chat(request):
    """Stream the reply; message and reply are stored when the last word has been sent."""
    text = (await request.body()).decode()
    return StreamingResponse(reply(text, request.state.conversation), media_type="text/plain")


async def reply(text, conversation):
    """What a model would say, word by word."""
    before = await conversation.history(limit=20)
    await conversation.add("user", text)
    said = [message.content for message in before if message.role == "user"]
    words = f"You said {text!r}. Before that: {', '.join(said) or 'nothing'}."
    for word in words.split(" "):
        yield f"{word} "
        await asyncio.sleep(0.01)
    await conversation.add("assistant", words)


routes = [Route("/", page), Route("/chat", chat, methods=["POST"])]
# The server makes the ids; secure=False because this is plain HTTP on one's own machine.
app = ASGIStateMiddleware(Starlette(routes=routes), cookie="chat", secure=False, ttl=24 * 3600)


def main():
    """Serve on a port, 0 for any free one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    listener = socket.create_server(("127.0.0.1", parser.parse_args().port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
