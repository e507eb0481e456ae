"""Leases live as long as their turns: renewed apart from the handler's loop, lost with notice."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import LeaseLostError
from agentstate.scope import StateScope
from agentstate.state import renewal
from agentstate.state import store as store_module
from agentstate.state.renewal import BLOCKED_SECONDS, RENEW_SECONDS, Renewer
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store
from agentstate.storage import registry
from agentstate.storage.protocol import LeaseRequest, Part, Put, Wants
from agentstate.testing.clock import FakeClock

SCOPE = StateScope.conversation("c-1")


@pytest.fixture
async def leased(storage_options):
    """A Valkey storage, and one more on the same data."""
    options = storage_options("valkey")
    both = registry.create("valkey", options), registry.create("valkey", options)
    yield both
    for storage in both:
        await storage.close()


async def take(storage, nonce, seconds):
    """Take the turn, or learn that another has it."""
    snapshot = await storage.read(SCOPE, Wants(), lease=LeaseRequest(nonce, seconds, f"holder-{nonce}"))
    return snapshot.lease


async def test_a_lease_is_renewed_and_then_not_any_more(leased):
    """What is due is renewed through a connection of its own; past its deadline it isn't."""
    one, other = leased
    lease = await take(one, 1, 0.3)
    renewer = Renewer()
    now = time.monotonic()
    held = renewer.add(one, lease, "handler", asyncio.get_running_loop(), deadline=now + RENEW_SECONDS + 5)
    first = held.due
    await asyncio.to_thread(renewer.tick, first)
    assert (held.lost, held.due) == (False, first + RENEW_SECONDS)
    assert await take(other, 2, 30) is None
    held.deadline = held.due
    await asyncio.to_thread(renewer.tick, held.due)
    assert held.due == first + RENEW_SECONDS


async def test_a_lost_lease_is_noticed_and_its_turn_ends(leased, caplog):
    """The holder of a lease that another took is told at its next call, and its commit is refused."""
    one, other = leased
    lease = await take(one, 1, 0.05)
    async with asyncio.timeout(5):
        while await take(other, 2, 30) is None:
            await other.wait_turn(SCOPE, 2, 0.05)
    renewer = Renewer()
    now = time.monotonic()
    held = renewer.add(one, lease, "handler", asyncio.get_running_loop(), deadline=now + 600)
    await asyncio.to_thread(renewer.tick, held.due)
    assert held.lost
    assert "another holder took it" in caplog.text
    with pytest.raises(LeaseLostError):
        await one.commit([Part(scope=SCOPE, puts=[Put("variables", "x", b"1")])], commit_id=5, lease=lease)


async def test_a_turn_whose_lease_was_lost_stores_nothing(leased):
    """Through the decorator: the handler's next call raises, nothing is stored."""
    one, _ = leased

    @stateful(storage=one)
    async def handler(_, conversation: Conversation):
        await conversation.set("x", 1)
        for held in renewal.renewer._held:
            held.lost = True
        await conversation.set("y", 1)

    with pytest.raises(LeaseLostError):
        await handler({"context_id": "c-1"})
    assert not await ConversationContext(one).exists("c-1")


async def test_a_blocked_loop_is_named(memory, caplog):
    """A handler that keeps its loop from answering is named in a warning, once."""
    renewer = Renewer()
    lease = (await memory.read(SCOPE, Wants(), lease=LeaseRequest(1, 30, "h"))).lease
    now = time.monotonic()
    renewer.add(memory, lease, "slow_handler", asyncio.get_running_loop(), deadline=now + 600)
    renewer.tick(now)
    for later in (1, BLOCKED_SECONDS + 1, BLOCKED_SECONDS + 2):
        renewer.tick(now + later)
    assert caplog.text.count("slow_handler") == 1
    assert "blocks its event loop" in caplog.text


async def test_renewing_outlives_a_server_that_is_down(storage_options, caplog):
    """A renewal that fails is logged and tried again; the thread goes on."""
    from tests.servers import ValkeyServer

    with ValkeyServer() as server:
        storage = registry.create("valkey", {"url": server.url})
        lease = await take(storage, 1, 30)
        renewer = Renewer()
        now = time.monotonic()
        held = renewer.add(storage, lease, "handler", asyncio.get_running_loop(), deadline=now + 600)
        server.kill()
        await asyncio.to_thread(renewer.tick, held.due)
        assert not held.lost
        assert "renewing leases failed" in caplog.text
        await storage.close()


@pytest.mark.parametrize("backend", ["sqlite", "file", "memory"])
async def test_a_state_outlives_its_lifetime_while_its_turn_runs(backend, storage_options, monkeypatch):
    """Where the turn is a lock of the machine, a long turn keeps a state with a short lifetime there for others."""
    renewer = Renewer()
    monkeypatch.setattr(renewal, "renewer", renewer)
    monkeypatch.setattr(store_module, "renewer", renewer)
    clock = FakeClock()
    storage = registry.create(backend, storage_options(backend), clock=clock)
    context = ConversationContext(Store(storage, clock=clock), settings=TurnSettings(ttl=5))
    await context.set_variable("c-1", "k", 1)
    async with context.turn("c-1"):
        for _ in range(4):
            clock.advance(15)
            await asyncio.to_thread(renewer.tick, time.monotonic() + RENEW_SECONDS)
            for one in renewer._held:
                one.due = 0.0
            assert (await storage.read(SCOPE, Wants())).birth
    await storage.close()
