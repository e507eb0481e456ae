from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import MagicMock, Mock

import pydantic
import pytest
from a2a.compat.v0_3 import types as a2a_03
from a2a.server.agent_execution import RequestContext
from a2a.server.context import ServerCallContext
from a2a.types import a2a_pb2

from agentstate import message_text as exported
from agentstate.models import Message
from agentstate.text import message_text


def said(text: str, role: int = a2a_pb2.ROLE_USER) -> a2a_pb2.Message:
    return a2a_pb2.Message(message_id="m", role=role, parts=[a2a_pb2.Part(text=text)])


def request(message: a2a_pb2.Message | None) -> RequestContext:
    wanted = None if message is None else a2a_pb2.SendMessageRequest(message=message)
    return RequestContext(ServerCallContext(), wanted)


class TextPart(pydantic.BaseModel):
    kind: Literal["text"] = "text"
    text: str


class DataPart(pydantic.BaseModel):
    kind: Literal["data"] = "data"
    data: dict[str, Any]


class Part(pydantic.RootModel[TextPart | DataPart]):
    pass


class OldMessage(pydantic.BaseModel):
    role: str
    parts: list[Part]


class OldTask(pydantic.BaseModel):
    id: str = "t"
    contextId: str = "c"  # noqa: N815 - as the first releases spelled it
    history: list[OldMessage] | None = None


def old(role: str, *texts: str) -> OldMessage:
    return OldMessage(role=role, parts=[Part(TextPart(text=text)) for text in texts])


def current(role: str, text: str) -> a2a_03.Message:
    part = a2a_03.Part(root=a2a_03.TextPart(text=text))
    return a2a_03.Message(message_id="m", role=a2a_03.Role(role), parts=[part])


def test_it_is_exported():
    """The package itself offers it."""
    assert exported is message_text


PLAIN = {
    "text": ("hi", "hi"),
    "nothing": (None, ""),
    "number": (5, ""),
    "bytes": (b"hi", ""),
    "empty dict": ({}, ""),
    "object": (object(), ""),
    "input": ({"input": "hi"}, "hi"),
    "input object": (SimpleNamespace(id="t", input="hi"), "hi"),
    "text attribute": (SimpleNamespace(text="hi"), "hi"),
    "content attribute": (SimpleNamespace(content="hi"), "hi"),
    "nested input": ({"input": {"text": "hi"}}, "hi"),
    "input messages": ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
    "message text": ({"message": "hi"}, "hi"),
    "message parts": ({"message": {"parts": [{"text": "a"}, {"kind": "data"}, {"text": "b"}]}}, "a\nb"),
    "message object": (SimpleNamespace(message=SimpleNamespace(parts=[SimpleNamespace(text="hi")])), "hi"),
    "root parts": ({"parts": [{"root": {"text": "hi"}}]}, "hi"),
    "json-rpc": ({"params": {"message": {"role": "user", "parts": [{"kind": "text", "text": "hi"}]}}}, "hi"),
    "chat message": ({"role": "user", "content": "hi"}, "hi"),
    "content parts": ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, "b"]}, "a\nb"),
    "chat": ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "u"),
    "chat ended by a tool": ({"messages": [{"role": "user", "content": "u"}, {"role": "tool", "content": "t"}]}, "u"),
    "chat without a user": ({"messages": [{"role": "assistant", "content": "a"}]}, ""),
    "langchain": ([SimpleNamespace(type="human", content="u"), SimpleNamespace(type="ai", content="a")], "u"),
    "our messages": ([Message.new("user", "u"), Message.new("assistant", "a")], "u"),
    "our message": (Message.new("user", "hi"), "hi"),
    "parts alone": ([{"text": "a"}, "b"], "a\nb"),
    "no message but input": ({"message": None, "input": "hi"}, "hi"),
    "text-less message": ({"message": {"parts": []}, "input": "hi"}, "hi"),
    "unicode": ({"text": "héllo 🙂\n"}, "héllo 🙂\n"),
    "empty history": ({"history": [], "status": {"message": {"parts": [{"text": "hi"}]}}}, "hi"),
    "status of the agent": ({"status": {"message": {"role": "agent", "parts": [{"text": "which?"}]}}}, ""),
    "wrong shapes": ({"message": 5, "parts": 7, "history": "x", "status": [], "text": {"a": 1}, "content": b"x"}, ""),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_shapes(name):
    """Text, mappings, chat messages and objects of one's own."""
    task, expected = PLAIN[name]
    assert message_text(task) == expected


A2A_1 = {
    "message": (said("hi"), "hi"),
    "parts": (
        a2a_pb2.Message(parts=[a2a_pb2.Part(text="a"), a2a_pb2.Part(url="u"), a2a_pb2.Part(text="b")]),
        "a\nb",
    ),
    "history": (
        a2a_pb2.Task(id="t", history=[said("first"), said("reply", a2a_pb2.ROLE_AGENT), said("last")]),
        "last",
    ),
    "history ended by the agent": (a2a_pb2.Task(history=[said("u"), said("a", a2a_pb2.ROLE_AGENT)]), "u"),
    "status": (a2a_pb2.Task(id="t", status=a2a_pb2.TaskStatus(message=said("hi"))), "hi"),
    "status of the agent": (a2a_pb2.Task(status=a2a_pb2.TaskStatus(message=said("a", a2a_pb2.ROLE_AGENT))), ""),
    "bare task": (a2a_pb2.Task(id="t"), ""),
    "request": (a2a_pb2.SendMessageRequest(message=said("hi")), "hi"),
    "context": (request(said("hi")), "hi"),
    "context without text": (request(a2a_pb2.Message(role=a2a_pb2.ROLE_USER)), ""),
    "context without request": (request(None), ""),
    "status of agent, history of user": (
        a2a_pb2.Task(history=[said("u")], status=a2a_pb2.TaskStatus(message=said("a", a2a_pb2.ROLE_AGENT))),
        "u",
    ),
}


@pytest.mark.parametrize("name", A2A_1)
def test_a2a_1(name):
    """The protobuf types of A2A 1.x."""
    task, expected = A2A_1[name]
    assert message_text(task) == expected


def test_user_message_without_text_is_not_replaced_by_an_older_one():
    """When the user's last message is a picture, the text before it isn't what was said now."""
    picture = a2a_pb2.Message(role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(url="u")])
    assert message_text(a2a_pb2.Task(history=[said("before"), picture])) == ""


def test_a2a_0():
    """The pydantic types of A2A 0.x, whose text is under ``part.root``."""
    assert message_text(old("user", "a", "b")) == "a\nb"
    assert message_text(OldTask(history=[old("user", "u"), old("agent", "a")])) == "u"
    assert message_text(SimpleNamespace(message=old("user", "hi"))) == "hi"
    assert message_text(OldTask()) == ""
    mixed = OldMessage(role="user", parts=[Part(DataPart(data={"text": "no"})), Part(TextPart(text="yes"))])
    assert message_text(mixed) == "yes"
    status = a2a_03.TaskStatus(state=a2a_03.TaskState.working, message=current("agent", "a"))
    task = a2a_03.Task(id="t", context_id="c", status=status, history=[current("user", "u"), current("agent", "a")])
    assert message_text(task) == "u"
    assert message_text(a2a_03.MessageSendParams(message=current("user", "hi"))) == "hi"
    params = a2a_03.MessageSendParams(message=current("user", "hi"))
    assert message_text(a2a_03.SendMessageRequest(id="1", params=params)) == "hi"


def test_mocks_of_tasks():
    """A mock that says only what its test needs works, and its made-up attributes are no text."""
    for kind in (Mock, MagicMock):
        task = kind()
        assert message_text(task) == ""
        task.message.parts = [Mock(text="hi")]
        assert message_text(task) == "hi"
        assert message_text(kind(input="hi")) == "hi"


def test_value_that_holds_itself():
    """A structure without end is no endless search."""
    loop: dict[str, Any] = {}
    loop["input"] = loop["params"] = loop["message"] = loop["parts"] = loop
    assert message_text(loop) == ""


def test_it_imports_nothing():
    """Finding text loads no framework, no encoder and no pydantic."""
    code = (
        "import sys; from agentstate.text import message_text; message_text({'input': {'parts': [{'text': 'x'}]}});"
        "assert not {'pydantic', 'a2a', 'google.protobuf', 'orjson'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
