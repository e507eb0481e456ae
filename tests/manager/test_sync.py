"""The synchronous face: the same calls from threads and scripts."""

# ruff: noqa: PT012 - what raises is the end of a transaction's block, and the block is the test
from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentstate import StateScope, stateful, sync
from agentstate import manager as asynchronous
from agentstate.errors import ConflictError, TurnError, TurnTimeoutError
from agentstate.storage import registry

A, B = StateScope.agent("a"), StateScope.team("b")


@pytest.fixture(params=("memory", "sqlite", "file", "valkey"))
def blocking(request, storage_options):
    """A synchronous manager over each backend."""
    storage = registry.create(request.param, storage_options(request.param))
    manager = sync.StateManager(storage)
    yield manager
    manager.close()


@pytest.fixture(params=("memory", "sqlite"))
def joint(request, storage_options):
    """A synchronous manager over each backend that commits several states as one."""
    manager = sync.StateManager(registry.create(request.param, storage_options(request.param)))
    yield manager
    manager.close()


PAIRS = [
    (sync.StateManager, asynchronous.StateManager),
    (sync.Transaction, asynchronous.Transaction),
    (sync.BoundState, asynchronous.BoundState),
    (sync.ScopedState, asynchronous.ScopedState),
    (sync.ConversationScope, asynchronous.ConversationScope),
    (sync.WorkflowScope, asynchronous.WorkflowScope),
    (sync.TeamScope, asynchronous.TeamScope),
    (sync.GlobalScope, asynchronous.GlobalScope),
    (sync.AgentScope, asynchronous.AgentScope),
]
ELSEWHERE = {"aclose", "resolve", "run", "check_size"}


@pytest.mark.parametrize(("blocking_class", "awaited_class"), PAIRS)
def test_the_same_surface(blocking_class, awaited_class):
    """Whatever the asynchronous face offers is here, under the same name, with the same parameters."""
    for name, member in inspect.getmembers(awaited_class):
        if name.startswith("_") or name in ELSEWHERE:
            continue
        here = getattr(blocking_class, name)
        if inspect.isfunction(member) and "how" not in inspect.signature(here).parameters and name != "lock":
            wanted = [one for one in inspect.signature(member).parameters if one != "self"]
            assert [one for one in inspect.signature(here).parameters if one != "self"] == wanted, name


def test_every_call(blocking):
    """Values are set, read, listed, changed and deleted."""
    blocking.set(A, "k", {"n": 1})
    assert blocking.get(A, "k") == {"n": 1}
    assert blocking.get(A, "k", path="/n", as_type=int) == 1
    assert blocking.increment(A, "n", 2) == 2
    assert blocking.update(A, "n", lambda old: old + 1) == 3
    assert blocking.list(A) == {"k": {"n": 1}, "n": 3}
    assert blocking.bind(agent="a").get(StateScope.AGENT, "n") == 3
    assert blocking.delete(A, "k")
    with blocking.lock(A) as held:
        held.set("in", 1)
        blocking.set(A, "in", 2)
        assert held.get("in") == 2
    workflow = blocking.workflow("w")
    workflow.update({"a": 1, "b": 2})
    workflow.step("s").set("k", 1)
    assert workflow.to_dict() == {"a": 1, "b": 2}
    blocking.conversation("c", parent=workflow).add_message("user", "hi")
    assert [one.content for one in blocking.conversation("c").history()] == ["hi"]
    assert blocking.conversation("c").get("a", inherit=True) == 1


def test_transactions(joint):
    """A transaction is committed as one, rolled back with its exception, and has savepoints."""
    with joint.transaction() as tx:
        tx.set(A, "k", 1)
        with pytest.raises(ZeroDivisionError), tx.savepoint() as inner:
            inner.set(B, "k", 1)
            raise ZeroDivisionError
        with tx.savepoint() as inner:
            inner.team("b").set("m", 1)
        assert joint.get(A, "k") is None
    assert [joint.get(A, "k"), joint.list(B)] == [1, {"m": 1}]
    with pytest.raises(ZeroDivisionError), joint.transaction() as tx:
        tx.set(A, "k", 2)
        raise ZeroDivisionError
    with pytest.raises(ConflictError), joint.transaction() as tx:
        tx.get(A, "k")
        joint.set(A, "k", 5)
        tx.set(A, "k", 6)
    assert joint.get(A, "k") == 5


def test_many_threads(blocking):
    """16 threads count, append and hold at once: nothing is lost."""

    def work(number):
        for n in range(5):
            blocking.increment(A, "counter")
            blocking.append(A, "list", [number, n])
            with blocking.lock(B) as held:
                held.set("n", held.get("n", 0) + 1)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert blocking.get(A, "counter") == blocking.get(B, "n") == 80
    assert len(blocking.get(A, "list")) == 80


def test_a_lock_in_another_thread(blocking):
    """A lock excludes the other threads of the process, too."""
    entered, leave, found = threading.Event(), threading.Event(), []

    def hold():
        with blocking.lock(A, name="first"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    try:
        with pytest.raises(TurnTimeoutError, match="first"), blocking.lock(A, wait=0.05):
            found.append("never")
    finally:
        leave.set()
        thread.join()
    with blocking.lock(A, wait=5) as held:
        held.set("k", 1)
    assert found == []


async def test_on_a_running_loop(joint):
    """A call on a loop's own thread raises with advice, and blocks nothing; in another thread it works."""
    for call in (
        lambda: joint.get(A, "k"),
        lambda: joint.agent("a").set("k", 1),
        lambda: joint.transaction().__enter__(),
        lambda: joint.lock(A).__enter__(),
    ):
        with pytest.raises(TurnError, match="to_thread"):
            call()
    await asyncio.to_thread(joint.set, A, "k", 1)
    assert await joint.target.get(A, "k") == 1


def test_several_loops(blocking):
    """Loops of other threads use the same manager's asynchronous side at the same time."""

    async def count():
        for _ in range(5):
            await blocking.target.update(A, "n", lambda old: (old or 0) + 1)

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(lambda: asyncio.run(count())) for _ in range(4)]
        for _ in range(5):
            blocking.update(A, "n", lambda old: (old or 0) + 1)
        for one in done:
            one.result()
    assert blocking.get(A, "n") == 25


def test_in_a_synchronous_handler(joint):
    """In a handler's turn, calls on its state are a part of it."""

    @stateful(storage=joint.target.routes.of("agent").store.storage)
    def handler(task, context, context_id):
        context.set_variable(context_id, "n", 1)
        assert joint.conversation("c").get("n") == 1
        joint.conversation("c").set("m", 2)
        if task.get("fail"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        handler({"context_id": "c", "fail": True})
    assert not joint.conversation("c").exists()
    handler({"context_id": "c"})
    assert joint.conversation("c").to_dict() == {"m": 2, "n": 1}


async def test_in_a_thread_of_an_asynchronous_handler(memory):
    """A thread that a handler started works in the handler's turn, on its loop."""
    blocking = sync.StateManager(memory)

    @stateful(storage=memory)
    async def handler(task, context, context_id):
        await asyncio.to_thread(blocking.conversation("c").set, "k", 1)
        assert await context.get_variable(context_id, "k") == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler({"context_id": "c"})
    assert await blocking.target.conversation("c").get("k") is None


FORK = """
import os, sys
from agentstate import StateScope
from agentstate.sync import StateManager

manager, scope = StateManager("sqlite:///" + sys.argv[1]), StateScope.agent("a")
manager.increment(scope, "n")
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        try:
            for _ in range(10):
                manager.increment(scope, "n")
                manager.update(scope, "m", lambda old: (old or 0) + 1)
            with manager.transaction() as tx:
                tx.set(scope, f"child-{number}", tx.get(scope, f"child-{number}", "none"))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
for _ in range(10):
    manager.increment(scope, "n")
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes, manager.get(scope, "n"), manager.get(scope, "m"))
"""


def test_forked_children(tmp_path):
    """Children that were forked while the manager was in use go on with it, and so does the parent."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "state.db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split("\n")[0] == "[0, 0, 0, 0] 51 40", done.stdout + done.stderr


def test_named_managers(tmp_path, monkeypatch):
    """Managers by the names of other documents are managers over what they name."""
    one, two = sync.InMemoryStateManager(), sync.InMemoryStateManager()
    one.set(A, "k", 1)
    assert two.get(A, "k") is None
    assert sync.SQLiteStateManager(tmp_path / "s.db").target.routes.of("agent").store.storage.name == "sqlite"
    assert sync.RedisStateManager("redis://localhost:1").target.routes.of("agent").store.storage.name == "valkey"
    assert all(isinstance(manager, sync.BaseStateManager) for manager in (one, two))


def test_the_process_has_one_global_manager():
    """Whoever asks gets the same, and a second opinion on where its states lie is refused."""
    sync.GlobalStateManager.reset_instance()
    try:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: sync.GlobalStateManager.get_instance("memory://"), range(32)))
        assert len(found) == 1
        assert sync.GlobalStateManager.get_instance() in found
        with pytest.raises(ValueError, match="reset_instance"):
            sync.GlobalStateManager.get_instance("sqlite:///other.db")
    finally:
        sync.GlobalStateManager.reset_instance()
