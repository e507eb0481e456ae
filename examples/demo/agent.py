"""An A2A agent (a2a-sdk 1.x) whose one skill is the handler in skill.py.

Run it by itself:  python examples/demo/agent.py --port 8000
"""

import argparse
import asyncio
import socket
from contextlib import asynccontextmanager

import uvicorn
from a2a.helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from a2a.utils.errors import UnsupportedOperationError
from skill import assistant
from starlette.applications import Starlette

import agentstate


class SkillExecutor(AgentExecutor):
    """Hands each message to the skill and sends its reply back."""

    async def execute(self, context, event_queue):
        reply = await assistant(context)
        await event_queue.enqueue_event(new_text_message(reply, context_id=context.context_id))

    async def cancel(self, context, event_queue):
        raise UnsupportedOperationError(message="this agent answers at once")


def application(url):
    """The agent as an ASGI application."""
    card = AgentCard(
        name="Assistant",
        description="Remembers who you are, what you like and what it is doing for you.",
        version="1.0.0",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="assistant", name="Assistant", description="Talks and remembers.", tags=["memory"])],
    )
    handler = DefaultRequestHandler(SkillExecutor(), InMemoryTaskStore(), card)
    routes = [*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")]
    return Starlette(routes=routes, lifespan=closing)


@asynccontextmanager
async def closing(_app):
    """Give connections back when the server is stopped politely."""
    yield
    await agentstate.aclose()


async def serve(port):
    """Serve on a port, 0 for any free one, and print the address."""
    listener = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server = uvicorn.Server(uvicorn.Config(application(url), log_level="error"))
    print(url, flush=True)
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(serve(parser.parse_args().port))
