"""How states end, with all that is below them, and where a lookup finds a parent's values."""

# ruff: noqa: PT012 - what raises is the end of a lock's block, and the block is the test
from __future__ import annotations

import asyncio

import pytest

from agentstate import StateManager, StateScope, configure
from agentstate.errors import ConfigError, ContextIdError, ContextNotFoundError, LeaseLostError, TurnTimeoutError
from agentstate.manager import entries, lifetime
from agentstate.storage.protocol import LeaseRequest, Wants
from agentstate.testing.faults import FaultyStorage


@pytest.fixture
def ending(monkeypatch):
    """Let the states of all kinds end in one way."""

    def set_policy(manager, policy):
        of = manager.routes.of
        monkeypatch.setattr(manager.routes, "of", lambda kind: of(kind)._replace(on_end=policy))

    return set_policy


async def family(manager):
    """Make a workflow with two steps, a conversation below it, and a session below that."""
    workflow = manager.workflow("w/1")
    await workflow.set("k", 1)
    for name in ("s1", "s/2"):
        await workflow.step(name).set("k", 1)
    conversation = manager.conversation("c", parent=workflow)
    await conversation.add_message("user", "hi")
    await manager.session("x", parent=conversation).set("k", 1)
    await manager.workflow("w").set("k", 1)
    await manager.step("w", "other").set("k", 1)
    below = [workflow.step("s1"), workflow.step("s/2"), conversation, manager.session("x")]
    return workflow, below


async def there(states):
    """Return which of them exist."""
    return [await one.exists() for one in states]


async def test_deleted_with_all_below(manager, ending):
    """A state that is deleted at its end takes its children along, and nobody else's."""
    ending(manager, "delete")
    workflow, below = await family(manager)
    await manager.set_parent(workflow.scope, manager.team("t").scope)
    async with workflow:
        assert await there([workflow, *below]) == [True] * 5
    assert await there([workflow, *below]) == [False] * 5
    assert await there([manager.workflow("w"), manager.step("w", "other")]) == [True, True]
    found = await manager.run(manager.team("t").scope, entries.keys, lifetime.CHILDREN, "")
    assert found == []


async def test_expired_with_all_below(clocked, clock, ending):
    """A state that expires after its end does so with its children, and the sweep removes them."""
    manager = StateManager(clocked)
    ending(manager, "expire:100")
    workflow, below = await family(manager)
    assert await manager.end(workflow.scope)
    info = await workflow.info()
    assert info.labels == {}
    clock.advance(99)
    assert await there([workflow, *below]) == [True] * 5
    clock.advance(2)
    assert await there([workflow, *below]) == [False] * 5
    assert (await manager.sweep()).expired >= 5 or clocked.capabilities.native_expiry


async def test_kept(manager, ending):
    """A state that is kept stays as it is."""
    ending(manager, "keep")
    workflow, below = await family(manager)
    before = await workflow.info()
    await workflow.end()
    assert await workflow.info() == before
    assert await there(below) == [True] * 4


async def test_ended_although_the_block_raised(joint, ending):
    """The block's exception goes on, and the state has ended."""
    ending(joint, "delete")
    with pytest.raises(ZeroDivisionError):
        async with joint.workflow("w") as workflow:
            await workflow.set("k", 1)
            raise ZeroDivisionError
    assert not await joint.exists(StateScope.workflow("w"))


@pytest.mark.parametrize("policy", ["delete", "expire:100"])
@pytest.mark.parametrize("commits", range(1, 9))
async def test_a_crash_half_way(storage, ending, policy, commits):
    """Wherever it stopped, the next sweep finishes the end: nothing is half ended for good."""
    faulty = FaultyStorage(storage)
    manager = StateManager(faulty)
    ending(manager, policy)
    workflow, below = await family(manager)
    faulty.fail_at(commit=commits)
    try:
        await manager.end(workflow.scope)
        stopped = False
    except ConnectionError:
        stopped = True
    after = StateManager(storage)
    if stopped and commits == 1:  # nothing was stored, so nothing ends
        assert (await after.sweep()).ended == 0
        assert await there([workflow, *below]) == [True] * 5
        return
    await after.sweep()
    if policy == "delete":
        assert await there([workflow, *below]) == [False] * 5
    else:
        assert all([(await one.info()).expires_at for one in [workflow, *below]])
    assert (await after.sweep()).ended == 0


async def test_a_held_state_ends_later(manager, ending):
    """A state whose turn is held isn't pulled away: the sweep after it ends it."""
    ending(manager, "delete")
    workflow, below = await family(manager)
    async with manager.lock(below[0].scope) as held:
        assert not await manager.end(workflow.scope)
        await held.set("k", 2)
        assert await workflow.exists()
    assert (await manager.sweep()).ended == 1
    assert await there([workflow, *below]) == [False] * 5


@pytest.mark.parametrize("policy", ["", "expire", "expire:x", "expire:-1", "drop"])
def test_a_policy_that_is_none(policy):
    """What isn't a policy is refused."""
    with pytest.raises(ConfigError):
        lifetime.seconds_of(policy)


async def test_lookup_through_parents(manager):
    """Stored parents are asked first, a step's workflow without being stored, and the global state last."""
    await manager.global_state.set("k", "global")
    team = manager.team("t")
    workflow = manager.workflow("w", parent=team)
    conversation = manager.conversation("c", parent=workflow)
    step = manager.step("w", "s")
    assert [await one.get("k", inherit=True) for one in (conversation, step, team)] == ["global"] * 3
    assert await conversation.get("k", "none") == "none"
    await team.set("k", "team")
    await workflow.info()
    assert [await one.get("k", inherit=True) for one in (conversation, step)] == ["team"] * 2
    await workflow.set("k", None)
    assert [await one.get("k", "x", inherit=True) for one in (conversation, step)] == [None] * 2
    await conversation.set("k", "own")
    assert await conversation.get("k", inherit=True) == "own"
    assert (await conversation.info()).parent == workflow.scope
    assert (await manager.step("w", "s").info()) is None


async def test_parents_in_a_transaction(joint):
    """A parent that is named in a transaction is stored with it."""
    with pytest.raises(ZeroDivisionError):
        async with joint.transaction() as tx:
            await tx.conversation("c", parent=StateScope.workflow("w")).set("k", 1)
            raise ZeroDivisionError
    async with joint.transaction() as tx:
        await tx.workflow("w").set("k", "above")
        child = tx.conversation("c", parent=StateScope.workflow("w"))
        assert await child.get("k", inherit=True) == "above"
    assert (await joint.conversation("c").info()).parent == StateScope.workflow("w")


async def test_nobody_is_his_own_ancestor(manager):
    """A circle of parents is refused."""
    one, two, three = (StateScope.workflow(name) for name in "abc")
    await manager.set_parent(two, one)
    await manager.set_parent(three, two)
    for parent in (three, two, one):
        with pytest.raises(ContextIdError, match="above"):
            await manager.set_parent(one, parent)


async def test_parents_of_a_tenant(joint):
    """Parents are found within the tenant."""
    manager = StateManager(joint.routes.of("agent").store, tenant="acme")
    await manager.global_state.set("k", "acme")
    await joint.global_state.set("k", "nobody's")
    child = manager.conversation("c", parent=manager.workflow("w"))
    await child.set("x", 1)
    assert await child.get("k", inherit=True) == "acme"
    assert (await child.info()).parent == StateScope.workflow("w", tenant="acme")


# -- locks -----------------------------------------------------------------------------------------


async def test_a_lock_excludes_others(manager):
    """One holds a state at a time, in the order of asking."""
    order, scope = [], StateScope.agent("a")

    async def hold(number):
        async with manager.lock(scope) as held:
            before = await held.get("n", 0)
            await asyncio.sleep(0)
            await held.set("n", before + 1)
            order.append(number)

    await asyncio.gather(*[hold(number) for number in range(10)])
    assert order == list(range(10))
    assert await manager.get(scope, "n") == 10


async def test_each_call_under_a_lock_is_stored_at_once(manager):
    """Others see what the holder set before it gives the state back; its error undoes nothing."""
    scope = StateScope.agent("a")
    with pytest.raises(ZeroDivisionError):
        async with manager.lock(scope) as held:
            await held.set("k", 1)
            assert await asyncio.create_task(StateManager(manager.routes.of("agent").store).get(scope, "k")) == 1
            await manager.set(scope, "k", 2)
            assert await held.get("k") == 2
            raise ZeroDivisionError
    assert await manager.get(scope, "k") == 2


async def test_a_lock_meets_calls_that_take_none(manager):
    """What others changed under a lock without waiting is read again, and nothing of it is lost."""
    scope = StateScope.agent("a")
    other = StateManager(manager.routes.of("agent").store)

    async def outside(call):
        import contextvars

        await asyncio.create_task(call, context=contextvars.Context())

    async with manager.lock(scope) as held:
        await held.set("n", 1)
        await outside(other.set(scope, "n", 10))
        assert await held.update("n", lambda old: old + 1) in (11, 2)
        await outside(other.append(scope, "l", 1))
        assert await held.append("l", 2) == 2
    assert await manager.get(scope, "n") == 11


async def test_what_is_read_under_a_lock(manager):
    """Each call under a lock reads what is there then, and calls at once lose nothing of each other."""
    scope, other = StateScope.agent("a"), StateManager(manager.routes.of("agent").store)
    import contextvars

    async with manager.lock(scope) as held:
        assert await held.get("k") is None
        await asyncio.create_task(other.set(scope, "k", 1), context=contextvars.Context())
        assert await held.get("k") == 1
        await asyncio.gather(*[held.set(f"k{n}", n) for n in range(10)], *[held.increment("n") for _ in range(10)])
    assert await manager.list(scope) == {"k": 1, "n": 10, **{f"k{n}": n for n in range(10)}}


async def test_a_lock_of_somebody(storage):
    """A principal holds and changes his own states, new ones and old ones."""
    ada, bob = (StateManager(storage, principal=name) for name in ("ada", "bob"))
    for n in range(2):
        async with ada.lock(StateScope.user("u")) as held:
            await held.set("k", n)
            await held.increment("n")
            async with ada.transaction() as tx:
                await tx.user("u").increment("n")
    assert await ada.user("u").to_dict() == {"k": 1, "n": 4}
    assert (await ada.user("u").info()).owner == "ada"
    with pytest.raises(ContextNotFoundError):
        async with bob.lock(StateScope.user("u")):
            pass


async def test_a_transaction_under_a_lock(clocked, clock):
    """A transaction may hold a locked state together with others; it is refused when the lock was lost."""
    manager, scope = StateManager(clocked), StateScope.agent("a")
    async with manager.lock(scope) as held:
        await held.set("k", 1)
        async with manager.transaction() as tx:
            await tx.update(scope, "k", lambda old: old + 1)
        assert await held.get("k") == 2
    if clocked.capabilities.leases == "machine":
        return
    async with manager.lock(scope):
        clock.advance(1000)
        assert (await clocked.read(scope, Wants(), lease=LeaseRequest(7, 30.0, "thief"))).lease is not None
        with pytest.raises(LeaseLostError):
            async with manager.transaction() as tx:
                await tx.set(scope, "k", 5)
        await clocked.leave(scope, 7)
    assert await manager.get(scope, "k") == 2


async def test_a_transaction_in_a_handler(joint):
    """A transaction on the state of the handler's own turn is refused at the touch; on others it is its own commit."""
    from agentstate import stateful
    from agentstate.errors import UnsupportedError

    @stateful(storage=joint.routes.of("agent").store.storage)
    async def handler(task, context, context_id):
        await context.set_variable(context_id, "k", 1)
        async with joint.transaction() as tx:
            await tx.set(StateScope.agent("a"), "k", 1)
        with pytest.raises(UnsupportedError, match="turn"):
            async with joint.transaction() as tx:
                await tx.set(StateScope.agent("a"), "k", 2)
                await tx.conversation(context_id).set("k", 2)

    await handler({"context_id": "c"})
    assert [await joint.conversation("c").get("k"), await joint.agent("a").get("k")] == [1, 1]


async def test_waiting_too_long(manager):
    """Who waits too long for a lock gets an error that names the holder."""
    scope = StateScope.agent("a")
    import contextvars

    async with manager.lock(scope, name="the holder"):
        waiting = manager.lock(scope, wait=0.05).__aenter__()
        with pytest.raises(TurnTimeoutError, match="the holder"):
            await asyncio.create_task(waiting, context=contextvars.Context())


async def test_a_lost_lock(clocked, clock):
    """A holder that lost its lease is told at its next call, and writes nothing."""
    if clocked.capabilities.leases == "machine":
        pytest.skip("declared: the machine's locks can't be lost")
    manager, scope = StateManager(clocked), StateScope.agent("a")
    async with manager.lock(scope) as held:
        await held.set("k", 1)
        clock.advance(1000)
        taken = await clocked.read(scope, Wants(), lease=LeaseRequest(7, 30.0, "thief"))
        if taken.lease is None:
            pytest.skip("a lease on this server's own clock doesn't run out by the test's")
        with pytest.raises(LeaseLostError):
            await held.set("k", 2)
        await clocked.leave(scope, 7)
    assert await manager.get(scope, "k") == 1


async def test_a_handler_under_a_lock(joint):
    """A handler of the same state that is called under a lock joins it instead of waiting for it."""
    from agentstate import stateful

    @stateful(storage=joint.routes.of("agent").store.storage)
    async def handler(task, context, context_id):
        await context.set_variable(context_id, "n", await context.get_variable(context_id, "n", 0) + 1)

    async with joint.lock(StateScope.conversation("c")) as held:
        await held.set("n", 5)
        await handler({"context_id": "c"})
        assert await held.get("n") == 6
        await held.increment("n")
        await handler({"context_id": "c"})
    assert await joint.conversation("c").get("n") == 8


async def test_calls_inside_a_handlers_turn(joint):
    """In a handler's turn the manager's calls on its state are a part of it; others are stored at once."""
    from agentstate import stateful

    @stateful(storage=joint.routes.of("agent").store.storage)
    async def handler(task, context, context_id):
        await context.set_variable(context_id, "n", 1)
        assert await joint.conversation("c").get("n") == 1
        await joint.conversation("c").set("m", 1)
        await joint.agent("a").set("k", 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler({"context_id": "c"})
    assert not await joint.exists(StateScope.conversation("c"))
    assert await joint.agent("a").get("k") == 1


async def test_configured_lifetime(tmp_path, monkeypatch):
    """The policy of a kind comes from the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent_config.yaml").write_text(
        "state: {backend: memory, scopes: {workflow: {on_end: delete}, team: {on_end: keep}}}\n"
    )
    try:
        configure()
        manager = StateManager()
        async with manager.workflow("w") as workflow, manager.team("t") as team:
            await workflow.set("k", 1)
            await team.set("k", 1)
        assert await there([workflow, team]) == [False, True]
        assert (await team.info()).expires_at is None
    finally:
        monkeypatch.undo()
        configure()
