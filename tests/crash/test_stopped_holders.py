"""SIGSTOP of whoever holds a turn, beyond its lease: a late commit is refused, or nobody could take over."""

from __future__ import annotations

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import LeaseRequest, Part, Put
from agentstate.testing.processes import start_worker
from agentstate.testing.turns import EVERYTHING, new_id, take_turn
from tests.crash.conftest import CYCLES

pytestmark = pytest.mark.crash

ROUNDS = max(10, CYCLES // 10)
LEASE = 0.1


async def test_stopped_holders(new_place, chance):
    """A holder that was stopped while another took its turn can't commit; a kernel lock can't be taken."""
    place = new_place(0)
    storage = place.storage()
    if not storage.capabilities.shared:
        pytest.skip("not declared: shared")
    await storage.open()
    for number in range(ROUNDS):
        scope = StateScope.conversation(f"c-{number % 7}")
        with start_worker(place.spec, "hold", scope=scope.text, seconds=LEASE) as holder:
            assert await holder.receive() == "held"
            holder.stop()
            if storage.capabilities.leases == "network":
                await overtake(storage, scope, holder, commits=chance.random() < 0.5)
            else:
                await stay_out(storage, scope, holder)
    await storage.close()


async def overtake(storage, scope, holder, *, commits):
    """Take the stopped holder's turn, sometimes commit in it, and see the holder's commit refused."""
    entered = await take_turn(storage, scope, "overtaker", patience=30)
    part = Part(scope=scope, puts=[Put("variables", "by", b"overtaker")])
    if commits:
        await storage.commit([part], commit_id=new_id(), lease=entered.lease, release=True)
    holder.go_on()
    await holder.tell("commit")
    assert await holder.receive() == "LeaseLostError"
    if not commits:
        await storage.commit([part], commit_id=new_id(), lease=entered.lease, release=True)
    found = await storage.read(scope, EVERYTHING)
    assert found.entries["variables", "by"].value == b"overtaker"


async def stay_out(storage, scope, holder):
    """See that a stopped holder's kernel lock excludes others for longer than any lease, and its commit is done."""
    request = LeaseRequest(new_id(), LEASE, "outsider")
    for _ in range(3):
        assert (await storage.read(scope, EVERYTHING, lease=request)).lease is None
        await storage.wait_turn(scope, request.nonce, LEASE)
    await storage.leave(scope, request.nonce)
    holder.go_on()
    await holder.tell("commit")
    assert await holder.receive() == "done"
    found = await storage.read(scope, EVERYTHING)
    assert found.entries["variables", "by"].value == b"holder"
