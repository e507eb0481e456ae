"""How stateful handlers look, and how they find their state in what they are called with."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import typing
from types import SimpleNamespace

import pytest

from agentstate import (
    Conversation,
    ConversationContext,
    apply_state,
    configure,
    current,
    stateful,
    stateful_session,
    with_state,
)
from agentstate.decorator import BoundHandler
from agentstate.errors import ContextIdError, HandlerSignatureError
from agentstate.storage import registry

STORAGE = registry.create("memory", {})
state = stateful(storage=STORAGE, key="c-1")


@state
async def function(task: dict, conversation: Conversation) -> int:
    """Count."""
    return await conversation.increment("n")


@state
async def stream(task: dict, conversation: Conversation) -> typing.AsyncIterator[int]:
    """Count."""
    yield await conversation.increment("n")


@state
def block(task: dict, context, context_id) -> int:
    """Count."""
    return context.increment(context_id, "n")


class Agent:
    """Handlers of every kind that a class can have."""

    room = "c-1"

    @state
    async def method(self, task: dict, conversation: Conversation) -> int:
        """Count."""
        assert self.room == "c-1"
        return await conversation.increment("n")

    @state
    async def leading(self, conversation: Conversation, task: dict) -> int:
        """Count."""
        assert self.room == "c-1"
        assert task == {}
        return await conversation.increment("n")

    @classmethod
    @state
    async def of_class(cls, task: dict, conversation: Conversation) -> int:
        """Count."""
        assert cls.room == "c-1"
        return await conversation.increment("n")

    @state
    @classmethod
    async def of_class_inside(cls, conversation: Conversation, task: dict) -> int:
        """Count."""
        assert cls.room == "c-1"
        return await conversation.increment("n")

    @staticmethod
    @state
    async def static(task: dict, conversation: Conversation) -> int:
        """Count."""
        return await conversation.increment("n")

    @state
    @staticmethod
    async def static_inside(conversation: Conversation, task: dict) -> int:
        """Count."""
        assert task == {}
        return await conversation.increment("n")

    async def plain(self, conversation: Conversation, task: dict) -> int:
        """Count."""
        assert self.room == "c-1"
        return await conversation.increment("n")

    async def __call__(self, task: dict, conversation: Conversation) -> int:
        """Count."""
        assert self.room == "c-1"
        return await conversation.increment("n")


async def flagged(flag: str, task: dict, conversation: Conversation) -> int:
    """Count."""
    assert flag == "yes"
    return await conversation.increment("n")


agent = Agent()
HANDLERS = {
    "function": function,
    "method": agent.method,
    "method, leading": agent.leading,
    "method of a class": agent.of_class,
    "method of a class, inside": agent.of_class_inside,
    "static method": agent.static,
    "static method, inside": agent.static_inside,
    "bound before": state(agent.plain),
    "object": state(agent),
    "partial": state(functools.partial(flagged, "yes")),
}


@pytest.fixture(params=HANDLERS)
def handler(request):
    """A handler of each kind, which counts its calls."""
    return HANDLERS[request.param]


@pytest.fixture(autouse=True)
async def empty():
    """Each test begins without a state."""
    await ConversationContext(STORAGE).clear_context("c-1")


def test_signatures(handler):
    """Whatever asks for a handler's parameters sees the caller's alone."""
    assert str(inspect.signature(handler)) == "(task: dict) -> int"
    assert inspect.getfullargspec(handler).args[-1] == "task"
    for hints in (typing.get_type_hints(handler), inspect.get_annotations(handler), handler.__annotations__):
        assert hints == {"task": dict, "return": int}
    assert str(inspect.signature(functools.wraps(handler)(lambda task: task))) == "(task: dict) -> int"


def test_looks(handler):
    """Name, docstring and kind are those of the function inside."""
    assert inspect.iscoroutinefunction(handler)
    assert asyncio.iscoroutinefunction(handler)
    assert handler.__doc__ == "Count." or isinstance(handler.__wrapped__, functools.partial)
    assert handler.bound.store.storage is STORAGE


async def test_calls(handler):
    """The caller's arguments by position or by name; the turn's id may be given, too."""
    assert [await handler({}), await handler(task={}), await handler({}, context_id="c-1")] == [1, 2, 3]
    assert await ConversationContext(STORAGE).get_variable("c-1", "n") == 3


async def test_calls_through_the_class():
    """A method of a class may be called with its object, as any method."""
    assert [await Agent.method(agent, {}), await Agent.leading(agent, {}), await Agent.leading(agent, task={})] == [
        1,
        2,
        3,
    ]
    assert str(inspect.signature(Agent.method)) == "(self, task: dict) -> int"
    assert await Agent.of_class({}) == 4
    assert await Agent.static_inside({}) == 5


def test_other_kinds():
    """Streams and synchronous handlers are what they were."""
    assert inspect.isasyncgenfunction(stream)
    assert not inspect.iscoroutinefunction(stream)
    assert not inspect.iscoroutinefunction(block)
    assert str(inspect.signature(block)) == "(task: dict) -> int"
    assert block({}) == 1


def test_who_is_called_inside_is_not_taken_for_the_task():
    """An object's own attributes never name the state."""

    class Identified:
        context_id = "wrong"

        @classmethod
        @stateful(storage=STORAGE)
        def of_class(cls, task, context, context_id):
            return context_id

        @stateful(storage=STORAGE)
        def method(self, task, context, context_id):
            return context_id

    task = {"context_id": "right"}
    for handler in (Identified.of_class, Identified().method, functools.partial(Identified.method, Identified())):
        assert handler(task) == "right"


def test_frameworks_may_set_the_signature():
    """Setting it, or the annotations, changes what others see, and not the function."""

    async def inside(task, conversation: Conversation): ...

    handler = state(inside)
    handler.__signature__ = inspect.Signature([])
    handler.__annotations__["task"] = int
    assert str(inspect.signature(handler)) == "()"
    assert handler.__annotations__ == {"task": int}
    handler.__annotations__ = {}
    assert typing.get_type_hints(handler) == {}
    assert list(inspect.signature(inside).parameters) == ["task", "conversation"]
    assert inside.__annotations__ == {"conversation": "Conversation"}


async def test_frameworks_may_set_the_signature_of_a_method():
    """They do it where the method's function is, also for a method that was bound before."""

    class Other:
        @state
        async def method(self, task, conversation: Conversation): ...

        async def plain(self, task, conversation: Conversation): ...

    for handler in (Other().method, state(Other().plain)):
        whole = inspect.signature(handler.__func__)
        assert str(whole) == "(self, task)"
        handler.__func__.__signature__ = whole.replace(parameters=[*whole.parameters.values()][:1])
        assert str(inspect.signature(handler)) == "()"


def test_copies_and_pickles():
    """Handlers are copied and pickled as functions are: by what they are, and by name."""
    for made in (copy.copy(function), copy.deepcopy({"x": function})["x"], pickle.loads(pickle.dumps(function))):
        assert made is function
    bound = agent.method
    assert copy.deepcopy(bound).__self__ is agent
    again = pickle.loads(pickle.dumps(bound))
    assert isinstance(again, BoundHandler)
    assert isinstance(again.__self__, Agent)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (7, "7 is no function"),
        (Agent, "is no function"),
        (function, "function has state already"),
        (agent.method, "Agent.method has state already"),
        (agent.of_class, "Agent.of_class has state already"),
    ],
)
def test_what_can_be_decorated(wrong, said):
    """Classes, values and stateful handlers can't."""
    for decorate in (stateful, stateful(storage="memory"), with_state()):
        with pytest.raises(HandlerSignatureError, match=said):
            decorate(wrong)


def test_generators():
    """A synchronous generator is told to become an asynchronous one."""
    with pytest.raises(HandlerSignatureError, match="Make it 'async def'"):

        @stateful
        def numbers(task, context, context_id):
            yield 1


def test_with_state_does_not_hide_mistakes():
    """A handler may take nothing injected, but ``inject=`` must name what is there."""
    with pytest.raises(HandlerSignatureError, match="names no parameter"):
        with_state(inject={"context": "missing"})(flagged)
    handler = with_state({"backend": "memory"})(lambda task: task)
    assert handler.binding.effective().settings.backend == "memory"


# -- which state -------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("c-7", {}), ("c-7",)])
async def test_an_id_that_the_handler_takes_itself(memory, args):
    """Beside a conversation, ``context_id`` is the caller's, by position or by name, and stronger than the task."""

    @stateful(storage=memory)
    async def handler(context_id: str, conversation: Conversation, task: dict | None = None):
        return context_id, conversation.id

    assert str(inspect.signature(handler)) == "(context_id: str, task: dict | None = None)"
    assert await handler(*args) == ("c-7", "c-7")
    assert await handler(context_id="c-7", task={"context_id": "c-8"}) == ("c-7", "c-7")
    with pytest.raises(ContextIdError, match="No id for handler"):
        await handler("")


async def test_an_id_of_another_name(memory):
    """What the id may be called in a task, it may be called as a parameter, too."""

    @stateful_session(storage=memory)
    async def session(session_id: str, conversation: Conversation):
        return conversation.id

    @stateful(storage=memory)
    async def thread(conversation: Conversation, *, thread_id: int):
        return conversation.id

    assert await session("s-1") == "s-1"
    assert await thread(thread_id=7) == "7"


async def test_key_and_a_parameter(memory):
    """``key=`` is stronger than guesses, and weaker than an explicit ``context_id``."""

    @stateful(storage=memory, key=lambda room: f"room-{room}")
    async def handler(room: int, session_id: str, conversation: Conversation, context_id: str | None = None):
        return conversation.id

    assert await handler(7, "s-1") == "room-7"
    assert await handler(room=7, session_id="s-1") == "room-7"
    assert await handler(7, "s-1", context_id="c-1") == "c-1"
    assert await handler(7, "s-1", "c-1") == "c-1"


async def test_once_and_owner_by_name(memory):
    """Frameworks call by name: the functions get what they name all the same."""
    calls = []

    @stateful(storage=memory, key="c-1", once=lambda task: task.id, owner=lambda user: user)
    async def handler(task, user, conversation: Conversation, *, verbose=False):
        calls.append(verbose)
        return len(calls)

    task = SimpleNamespace(id="t-1")
    assert await handler(task=task, user="ann", verbose=True) == 1
    assert await handler(task, "ann", verbose=True) == 1
    assert (await ConversationContext(memory).get("c-1")).user_id == "ann"


async def test_renamed_and_not_at_all(memory):
    """``inject=`` renames; ``inject=False`` leaves every parameter to the caller."""

    @stateful(storage=memory, key="c-1", inject={"context": "state", "context_id": "sid"})
    async def renamed(context, state, sid):
        return context, sid, await state.increment(sid, "n")

    @stateful(storage=memory, key="c-1", inject=False)
    async def left_alone(context, context_id):
        return context, context_id, await current().increment("n")

    assert await renamed("theirs") == ("theirs", "c-1", 1)
    assert await left_alone("theirs", "c-1") == ("theirs", "c-1", 2)


async def test_hosts_with_a_context_of_their_own(memory):
    """A host that passes two arguments to ``(event, context)`` keeps its context."""

    class Executor:
        @stateful(storage=memory)
        async def execute(self, context, event_queue):
            return context["context_id"], event_queue, await current().increment("n")

    assert await Executor().execute({"context_id": "c-1"}, "queue") == ("c-1", "queue", 1)


# -- settings ----------------------------------------------------------------------------------


def test_none_says_for_ever(tmp_path):
    """``ttl=None`` and ``turn_timeout=None`` are settings, not absent ones."""
    (tmp_path / "agent_config.yaml").write_text("state: {backend: memory, ttl: 100, turn_timeout: 5}\n")
    configure(tmp_path / "agent_config.yaml")

    @stateful(ttl=None, turn_timeout=None)
    async def handler(task, conversation: Conversation): ...

    settings = handler.binding.effective().settings
    assert (settings.ttl, settings.turn_timeout) == (None, None)


async def test_apply_state_to_methods_and_objects(tmp_path):
    """A registry may hold anything that can be called; stateful methods stay as they are."""
    names = ("method", "plain", "object", "partial", "function")
    blocks = "".join(f"  {name}: {{state: {{ttl: 100}}}}\n" for name in names)
    (tmp_path / "agent_config.yaml").write_text(f"state: {{backend: memory}}\nhandlers:\n{blocks}")
    configure(tmp_path / "agent_config.yaml")
    table = {
        "method": agent.method,
        "plain": agent.plain,
        "object": agent,
        "partial": functools.partial(flagged, "yes"),
        "function": lambda task: task,
        "other": agent.plain,
    }
    before = dict(table)
    assert apply_state(table) == ["plain", "object", "partial", "function"]
    assert (table["method"], table["other"]) == (before["method"], before["other"])
    assert [await table[one]({"context_id": "x"}) for one in ("plain", "object", "partial")] == [1, 2, 3]


@pytest.fixture(autouse=True)
def configuration_is_put_back():
    """No test leaves its configuration behind."""
    yield
    configure()
