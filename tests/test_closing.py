"""Closing while turns run, and the end of the interpreter: leases given back, nothing half stored, no noise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time

import pytest

import agentstate
from agentstate import Conversation, ConversationContext, StateScope, stateful
from agentstate.errors import StateError, StorageClosedError
from agentstate.storage import registry
from agentstate.storage.protocol import LeaseRequest, Wants

TASK = {"context_id": "c-1"}
C1 = StateScope.conversation("c-1")
LASTING = ("sqlite", "file", "valkey")
END_SECONDS = 15


@pytest.fixture(params=LASTING)
def url(request, storage_options):
    """The URL of a fresh storage on each backend that outlives its process."""
    options = storage_options(request.param)
    if request.param == "valkey":
        return f"{options['url']}?key_prefix={options['key_prefix']}"
    return options.get("url") or f"file://{options['storage_dir']}"


async def is_free(url):
    """Whether a new process would get the turn at once."""
    storage = registry.create(registry.backend_for_url(url), {"url": url})
    try:
        return (await storage.read(C1, Wants(), lease=LeaseRequest(7, 1.0, "test"))).lease is not None
    finally:
        await storage.leave(C1, 7)
        await storage.close()


def held_open(url):
    """A handler that stays in its turn until it is told to go on."""
    inside, go = asyncio.Event(), asyncio.Event()

    @stateful(url=url)
    async def handler(task, conversation: Conversation):
        await conversation.set("n", 1)
        await conversation.add("user", "hi")
        inside.set()
        await go.wait()

    return handler, inside, go


async def test_aclose_while_a_turn_runs(url):
    """Its commit is refused, its turn is free, and the next call opens a new store."""
    handler, inside, go = held_open(url)
    running = [asyncio.create_task(handler(TASK)) for _ in range(3)]
    await inside.wait()
    async with asyncio.timeout(END_SECONDS):
        await agentstate.aclose()
        assert await is_free(url)
        go.set()
        ended = await asyncio.gather(*running, return_exceptions=True)
    assert isinstance(ended[0], StorageClosedError)
    assert all(one is None or isinstance(one, StateError) for one in ended)
    state = await ConversationContext(url).get_or_create("c-1")
    assert (state.variables, len(state.history)) in [({}, 0), ({"n": 1}, 1), ({"n": 1}, 2)]
    async with asyncio.timeout(END_SECONDS):
        await handler(TASK)
        assert await ConversationContext(url).get_variable("c-1", "n") == 1
        await agentstate.aclose()


async def test_aclose_is_idempotent_and_concurrent(url):
    """Several at once, and again; calls in between open what they need."""
    context = ConversationContext(url)
    await context.set_variable("c-1", "n", 1)
    await asyncio.gather(*(agentstate.aclose() for _ in range(3)))
    assert await ConversationContext(url).get_variable("c-1", "n") == 1
    await agentstate.aclose()
    await agentstate.aclose()


async def test_a_coroutine_that_is_closed_in_the_middle(memory):
    """Somebody else's loop gave it up: nothing is stored, and the turn is given back."""

    @stateful(storage=memory)
    async def handler(task, conversation: Conversation):
        await conversation.set("n", 1)
        await asyncio.sleep(0)

    running = handler(TASK)
    running.send(None)
    running.close()
    async with asyncio.timeout(5):
        async with ConversationContext(memory).turn("c-1") as conversation:
            assert await conversation.get("n") is None


def ended(url, code, *, kill_after=30):
    """Run a program in a process of its own; return its exit code, output and errors, and how long it took."""
    program = f"import asyncio, sys, threading\nimport agentstate\nfrom agentstate import stateful\nURL = {url!r}\n"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=kill_after,
        check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.endswith("its restart loses every state")]
    return done.returncode, done.stdout, "\n".join(said), time.monotonic() - started


HANDLERS = """
    @stateful(url=URL)
    async def count(task, context, context_id):
        return await context.increment(context_id, "n")

    @stateful(url=URL)
    async def stays(task, context, context_id):
        await context.set_variable(context_id, "n", 99)
        print("inside", flush=True)
        READY.set()
        await asyncio.Event().wait()

    @stateful(url=URL)
    def blocks(task, context, context_id):
        context.set_variable(context_id, "n", 99)
        print("inside", flush=True)
        READY.set()
        threading.Event().wait()

    TASK = {"context_id": "c-1"}
    READY = threading.Event()

    async def ready():
        while not READY.is_set():
            await asyncio.sleep(0.01)
"""
OPEN = HANDLERS + """
    print(asyncio.run(count(TASK)))
"""  # fmt: skip
CANCELLED = HANDLERS + """
    async def main():
        asyncio.create_task(stays(TASK))
        await ready()

    asyncio.run(main())
"""  # fmt: skip
LEFT = HANDLERS + """
    loop = asyncio.new_event_loop()
    task = loop.create_task(stays(TASK))
    task._log_destroy_pending = False
    loop.run_until_complete(ready())
"""  # fmt: skip
THREAD = HANDLERS + """
    thread = threading.Thread(target=blocks, args=(TASK,), daemon=True)
    thread.start()
    READY.wait()
"""  # fmt: skip
EXIT = HANDLERS + """
    async def main():
        asyncio.create_task(stays(TASK))
        await ready()
        sys.exit(3)

    asyncio.run(main())
"""  # fmt: skip


def test_an_interpreter_that_ends_with_open_stores(url):
    """Quietly, soon, and with everything stored."""
    code, out, err, seconds = ended(url, OPEN)
    assert (code, out, err) == (0, "1\n", "")
    assert seconds < END_SECONDS
    assert ended(url, OPEN)[1] == "2\n"


@pytest.mark.parametrize(
    ("program", "code"),
    [(CANCELLED, 0), (LEFT, 0), (THREAD, 0), (EXIT, 3)],
    ids=["cancelled", "left", "thread", "exit"],
)
async def test_an_interpreter_that_ends_in_the_middle_of_a_turn(url, program, code):
    """Nothing of the turn is stored, and it doesn't keep the next process waiting."""
    found, out, err, seconds = await asyncio.to_thread(ended, url, program)
    assert (found, out, err) == (code, "inside\n", "")
    assert seconds < END_SECONDS
    assert await is_free(url)
    assert await ConversationContext(url).get_variable("c-1", "n") is None
    await agentstate.aclose()
