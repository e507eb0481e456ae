from __future__ import annotations

import uuid
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from a2a.compat.v0_3 import types as a2a_03
from a2a.server.agent_execution import RequestContext
from a2a.server.context import ServerCallContext
from a2a.types import a2a_pb2

from agentstate import Conversation, stateful
from agentstate.errors import ContextIdError
from agentstate.ids import CONVERSATION_NAMES, SESSION_NAMES, context_id_of


def proto_task(metadata=None, **fields) -> a2a_pb2.Task:
    task = a2a_pb2.Task(**fields)
    task.metadata.update(metadata or {})
    return task


def proto_message(metadata=None, **fields) -> a2a_pb2.Message:
    message = a2a_pb2.Message(role=a2a_pb2.ROLE_USER, **fields)
    message.metadata.update(metadata or {})
    return message


def request(message: a2a_pb2.Message, metadata=None) -> RequestContext:
    wanted = a2a_pb2.SendMessageRequest(message=message)
    wanted.metadata.update(metadata or {})
    return RequestContext(ServerCallContext(), wanted)


FOUND = {
    "metadata first": ({"metadata": {"context_id": "m"}, "context_id": "c", "id": "t"}, "m", "metadata.context_id"),
    "own field": ({"metadata": {}, "context_id": "c", "id": "t"}, "c", "context_id"),
    "camel case": ({"contextId": "c", "id": "t"}, "c", "contextId"),
    "session": ({"session_id": "s", "thread_id": "h", "id": "t"}, "s", "session_id"),
    "thread": (SimpleNamespace(thread_id="h", conversation_id="v", id="t"), "h", "thread_id"),
    "conversation": (SimpleNamespace(conversation_id="v", id="t"), "v", "conversation_id"),
    "metadata session": (SimpleNamespace(metadata={"session_id": "s"}, id="t"), "s", "metadata.session_id"),
    "task id": (SimpleNamespace(id="t"), "t", "id"),
    "empty counts as absent": ({"context_id": "", "metadata": {"context_id": None}, "id": "t"}, "t", "id"),
    "message": ({"message": {"contextId": "c"}, "id": "t"}, "c", "message.contextId"),
    "metadata of the message": (
        {"message": {"metadata": {"context_id": "m"}, "context_id": "c"}},
        "m",
        "message.metadata.context_id",
    ),
    "task id of the message": ({"message": {"taskId": "t"}}, "t", "message.taskId"),
    "number": ({"metadata": {"context_id": 42}}, "42", "metadata.context_id"),
    "uuid": (SimpleNamespace(id=uuid.UUID(int=1)), "00000000-0000-0000-0000-000000000001", "id"),
    "1.x task": (proto_task(id="t", context_id="c"), "c", "context_id"),
    "1.x metadata": (proto_task({"context_id": "m"}, id="t", context_id="c"), "m", "metadata.context_id"),
    "1.x number": (proto_task({"context_id": 42}), "42", "metadata.context_id"),
    "1.x empty": (proto_task(id="t"), "t", "id"),
    "1.x message": (proto_message(message_id="m", context_id="c"), "c", "context_id"),
    "1.x message of a task": (proto_message(message_id="m", task_id="t"), "t", "task_id"),
    "1.x request": (a2a_pb2.SendMessageRequest(message=proto_message(context_id="c")), "c", "message.context_id"),
    "context": (request(proto_message(context_id="c", task_id="t")), "c", "context_id"),
    "context metadata": (
        request(proto_message({"context_id": "n"}, context_id="c"), {"context_id": "m"}),
        "m",
        "metadata.context_id",
    ),
    "context message metadata": (
        request(proto_message({"context_id": "n"}, context_id="c")),
        "n",
        "message.metadata.context_id",
    ),
    "0.x task": (
        a2a_03.Task(id="t", context_id="c", status=a2a_03.TaskStatus(state=a2a_03.TaskState.working)),
        "c",
        "context_id",
    ),
    "0.x metadata": (
        a2a_03.Message(message_id="m", role=a2a_03.Role.user, parts=[], metadata={"thread_id": "h"}),
        "h",
        "metadata.thread_id",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_id_is_found(name):
    """The first of the places that holds an id wins, and is named."""
    task, expected, place = FOUND[name]
    found, looked = context_id_of(task)
    assert found == expected
    assert looked[-1] == place
    assert type(found) is str


def test_nothing_found_names_every_place():
    """Without an id, the places are there for the error message."""
    found, looked = context_id_of({"input": "hi"})
    assert found is None
    assert looked[0] == "metadata.context_id"
    for name in ("context_id", "contextId", "session_id", "thread_id", "conversation_id", "id"):
        assert name in looked
    for task in (None, "text", 5, object(), [], a2a_pb2.Task(), lambda: 1):
        assert context_id_of(task)[0] is None


def test_own_id_of_a_message_is_no_id_of_a_conversation():
    """A message's id is another one each time, so it is never used."""
    assert context_id_of({"role": "user", "content": "hi", "id": "m"})[0] is None
    assert context_id_of(proto_message(message_id="m"))[0] is None


def test_orders_of_the_siblings():
    """A conversation's own id comes first for one, a session's is the only one for the other."""
    task = {"metadata": {"conversation_id": "v"}, "context_id": "c", "session_id": "s", "id": "t"}
    assert context_id_of(task, CONVERSATION_NAMES)[0] == "v"
    assert context_id_of({"context_id": "c", "session_id": "s", "id": "t"}, CONVERSATION_NAMES)[0] == "c"
    assert context_id_of({"session_id": "s", "id": "t"}, CONVERSATION_NAMES)[0] == "t"
    assert context_id_of(task, SESSION_NAMES, own_id=False)[0] == "s"
    assert context_id_of({"context_id": "c", "id": "t"}, SESSION_NAMES, own_id=False) == (
        None,
        ["metadata.session_id", "session_id", "metadata.sessionId", "sessionId"],
    )


@pytest.mark.parametrize("wrong", [["c"], {"id": "c"}, True, 1.5, b"c"])
def test_what_is_no_id_is_an_error(wrong):
    """Something else where the id should be is never skipped: the state would be another one."""
    with pytest.raises(ContextIdError, match=r"metadata\.context_id") as caught:
        context_id_of({"metadata": {"context_id": wrong}, "id": "t"})
    assert caught.value.remedy


def test_ids_are_kept_exactly():
    """Hostile ids come through as they are; other code judges them."""
    for hostile in (" ", "../x", "a:b*{c}", "é", "e\u0301", "x" * 600, "\0"):
        assert context_id_of({"context_id": hostile})[0] == hostile


def test_methods_and_mocks_are_no_ids():
    """A method of that name, or a mock's made-up attribute, is no id."""
    assert context_id_of(SimpleNamespace(session_id=lambda: "s", id="t"))[0] == "t"
    assert context_id_of(MagicMock(id="t"))[0] == "t"
    assert context_id_of(MagicMock(metadata={"context_id": "c"}))[0] == "c"
    assert context_id_of(MagicMock())[0] is None


@pytest.mark.parametrize("given", [7, 7.0, "7", uuid.UUID(int=7)])
async def test_an_id_in_the_call_becomes_text_as_one_in_a_task_does(memory, given):
    """Whole numbers and UUIDs name the same state by ``context_id=``, by ``key=`` and in a task."""

    @stateful(storage=memory)
    async def by_name(task, context, context_id):
        return context_id, await context.increment(context_id, "n")

    @stateful(storage=memory, key=lambda task: task["room"])
    async def by_key(task, context, context_id):
        return context_id, await context.increment(context_id, "n")

    text = str(uuid.UUID(int=7)) if isinstance(given, uuid.UUID) else "7"
    assert await by_name({}, context_id=given) == (text, 1)
    assert await by_name({"context_id": given}) == (text, 2)
    assert await by_key({"room": given}) == (text, 3)


@pytest.mark.parametrize("given", [True, 1.5, b"7", ["7"], {"id": 7}])
async def test_what_is_no_id_is_refused_by_name_too(memory, given):
    """The error says what it was; no state is made."""

    @stateful(storage=memory)
    async def handler(task, context, context_id):
        raise AssertionError

    with pytest.raises(ContextIdError, match=type(given).__name__):
        await handler({}, context_id=given)


async def test_a_parameter_of_the_handlers_own_keeps_its_type(memory):
    """An annotated ``context_id`` is the caller's: it names the state as text, and arrives as it was."""

    @stateful(storage=memory)
    async def handler(context_id: int, conversation: Conversation):
        return context_id, conversation.id

    assert await handler(context_id=7) == (7, "7")
