from __future__ import annotations

import copy
import enum
import json
import os
import random
import subprocess
import sys
import timeit
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstate import codec
from agentstate.errors import ContextIdError, DamagedStateError, UnsupportedValueError
from agentstate.models import ConversationState, Message, new_id, utc_now_iso


class Role(enum.StrEnum):
    AGENT = "agent"


class OddRole(str, enum.Enum):  # noqa: UP042 - hosts have these, and their str() is the member's name
    USER = "user"


def stored(message: Message) -> Message:
    return Message.from_json(codec.decode(codec.encode(message.to_json())), seq=7, position=3)


def state(**changes) -> ConversationState:
    parts = {
        "context_id": "c-1",
        "user_id": "ann",
        "created_at": 0.5,
        "updated_at": 1_700_000_000,
        "version": 4,
        "metadata": {"topic": "x"},
        "variables": {"prefs": {"theme": "dark"}},
        "history": [Message.new("user", "hi")],
    }
    return ConversationState(**parts | changes)


# -- messages --------------------------------------------------------------------------------


def test_message_by_attribute_and_by_key():
    """A message is the same by attribute, by key, as a dict and as JSON."""
    message = Message.new("user", "hi", id="m-1", metadata={"lang": "en"}, timestamp=0)
    expected = {
        "id": "m-1",
        "role": "user",
        "content": "hi",
        "timestamp": "1970-01-01T00:00:00.000000+00:00",
        "metadata": {"lang": "en"},
    }
    assert dict(message) == expected
    assert json.loads(json.dumps(dict(message))) == expected
    assert message == expected
    assert list(message) == list(expected)
    for key, value in expected.items():
        assert message[key] == value
        assert getattr(message, key) == value
    assert message.get("role") == "user"
    assert message.get("nothing", 1) == 1
    assert "tool_calls" not in message
    assert message.tool_calls is None
    assert message.tool_call_id is None
    assert message.name is None
    with pytest.raises(KeyError):
        message["tool_calls"]


def test_message_from_stored_form():
    """What was stored comes back equal, with its place in the log."""
    message = Message.new(
        "assistant", None, tool_calls=({"id": "t", "name": "f"},), tool_call_id="t", name="bot", metadata={"at": (1, 2)}
    )
    back = stored(message)
    assert back == message
    assert hash(back) == hash(message)
    assert (back.seq, back.position, message.seq, message.position) == (7, 3, 0, 0)
    assert back.content == ""
    assert back.tool_calls == [{"id": "t", "name": "f"}]
    assert (back.tool_call_id, back.name, back.metadata) == ("t", "bot", {"at": (1, 2)})
    moved = message.at(9, 8)
    assert (moved, moved.seq, moved.position) == (message, 9, 8)


def test_fields_of_later_releases_are_kept():
    """A field that this release doesn't know survives reading and writing."""
    data = Message.new("user", "hi").to_json() | {"mood": "good"}
    assert Message.from_json(data).to_json()["mood"] == "good"
    assert Message.from_json(data).changed(content="x")["mood"] == "good"


def test_messages_differ_by_value():
    """Equality is of the fields, not of the place."""
    message = Message.new("user", "hi", id="m")
    assert message != Message.new("user", "ho", id="m", timestamp=message.timestamp)
    assert message == Message.new("user", "hi", id="m", timestamp=message.timestamp)
    assert message != "hi"
    assert len({message, stored(message)}) == 1


@pytest.mark.parametrize("role", ["agent", "assistant", Role.AGENT])
def test_agent_is_assistant(role):
    """The two names of one role are stored as one."""
    message = Message.new(role, "hi")
    assert message.role == message["role"] == "assistant"
    assert type(message.role) is str


def test_role_enums_of_hosts():
    """An enum of text gives its value, whatever its str() says."""
    assert Message.new(OddRole.USER, "hi").role == "user"
    assert type(Message.new(OddRole.USER, "hi").role) is str


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"role": ""}, "$.role"),
        ({"role": None}, "$.role"),
        ({"role": 1}, "$.role"),
        ({"content": None}, "$.content"),
        ({"content": {"text": "x"}}, "$.content"),
        ({"content": 5}, "$.content"),
        ({"content": [{"x": object()}]}, "$.content[0].x"),
        ({"metadata": {"when": object()}}, "$.metadata.when"),
        ({"tool_calls": [{"f": object()}]}, "$.tool_calls[0].f"),
        ({"tool_call_id": ""}, "$.tool_call_id"),
        ({"name": 5}, "$.name"),
        ({"timestamp": "yesterday"}, "$.timestamp"),
        ({"timestamp": "2026-01-01T00:00:00"}, "$.timestamp"),
        ({"timestamp": datetime(2026, 1, 1)}, "$.timestamp"),  # noqa: DTZ001
        ({"timestamp": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, "$.timestamp"),
        ({"timestamp": float("nan")}, "$.timestamp"),
        ({"timestamp": 1e300}, "$.timestamp"),
        ({"timestamp": b"x"}, "$.timestamp"),
    ],
)
def test_wrong_fields_are_named(changes, path):
    """A field that can't be kept is refused when the message is made, with its path and what to do."""
    with pytest.raises(UnsupportedValueError) as caught:
        Message.new(**{"role": "user", "content": "hi"} | changes)
    assert caught.value.path == path
    assert caught.value.remedy


@pytest.mark.parametrize("own_id", ["", "x" * 513, "a\0b", 5])
def test_wrong_ids_are_refused(own_id):
    """A message's id obeys the rules of ids."""
    with pytest.raises(ContextIdError):
        Message.new("user", "hi", id=own_id)


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-01-31T13:00:00+01:00",
        "2026-01-31T12:00:00Z",
        "2026-01-31 12:00+00:00",
        datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1))),
        1769860800,
        1769860800.0,
    ],
)
def test_timestamps_have_one_form(timestamp):
    """Whatever a timestamp was given as, it is ISO 8601 in UTC with microseconds."""
    assert Message.new("user", "hi", timestamp=timestamp).timestamp == "2026-01-31T12:00:00.000000+00:00"


def test_timestamp_of_a_clock():
    """Without a timestamp it is now, by the clock that was given or the system's."""
    assert Message.new("user", "hi", now=1.5).timestamp == "1970-01-01T00:00:01.500000+00:00"
    before = datetime.now(UTC)
    made = datetime.fromisoformat(Message.new("user", "hi").timestamp)
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)


def test_nothing_is_shared_with_the_caller():
    """Changing what was passed in or handed out changes no message."""
    parts, metadata, calls = [{"text": "a"}], {"tags": ["x"]}, [{"f": {}}]
    message = Message.new("user", parts, metadata=metadata, tool_calls=calls)
    expected = copy.deepcopy(dict(message))
    parts[0]["text"], metadata["tags"][0], calls[0]["f"]["x"] = "b", "y", 1
    message.content[0]["text"] = "c"
    message["content"].append(1)
    message.metadata["tags"].append("z")
    message.to_json()["metadata"]["new"] = 1
    message.tool_calls.clear()
    dict(message)["content"].clear()
    assert dict(message) == expected


def test_messages_are_read_only():
    """Setting an attribute or a key raises."""
    message = Message.new("user", "hi")
    for name in ("role", "content", "seq", "position", "anything"):
        with pytest.raises(AttributeError):
            setattr(message, name, "x")
    with pytest.raises(TypeError):
        message["role"] = "x"


def test_changed_message():
    """An edit keeps id, place and time, and what it isn't given."""
    old = stored(Message.new("user", "hi", metadata={"a": 1}, name="ann"))
    new = old.changed(content="ho")
    assert dict(new) == dict(old) | {"content": "ho"}
    assert (new.seq, new.position) == (7, 3)
    assert old.changed(content=["p"], metadata={}).metadata == {}
    with pytest.raises(UnsupportedValueError):
        old.changed(content=5)
    with pytest.raises(UnsupportedValueError):
        old.changed(content=[object()])


def test_stored_items_that_are_no_message():
    """A history item without the fields of a message is damage that names what is missing."""
    for data in ({}, {"role": "user", "content": "x"}):
        with pytest.raises(DamagedStateError, match=r"id.*timestamp"):
            Message.from_json(data, position=5)


def test_message_repr_is_short():
    """A long content doesn't fill the screen."""
    assert len(repr(Message.new("user", "x" * 10_000))) < 200
    assert repr(Message.new("user", "hi", id="m")) == "Message(role='user', content='hi', id='m', position=0)"
    assert "position=3" in repr(stored(Message.new("user", [{"text": "x"}] * 100)))


# -- states ----------------------------------------------------------------------------------


def test_state_by_attribute_and_by_key():
    """The parts of a state are the same by attribute and by key."""
    found = state()
    assert found.created_at == datetime(1970, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert found["updated_at"].tzinfo is UTC
    assert (found.context_id, found.user_id, found.version) == ("c-1", "ann", 4)
    assert found.variables["prefs"] == {"theme": "dark"}
    assert found.history[0]["role"] == "user"
    assert list(found) == [
        "context_id",
        "user_id",
        "created_at",
        "updated_at",
        "version",
        "metadata",
        "variables",
        "history",
    ]
    for key in found:
        assert found[key] is getattr(found, key)
    assert state(user_id=None).user_id is None
    assert repr(found) == "ConversationState('c-1', user_id='ann', version=4, 1 variables, 1 metadata, 1 history)"


def test_state_raises_when_changed():
    """A change to the view would be lost, so it raises and says what to call."""
    found = state()
    with pytest.raises(TypeError, match="set_variable"):
        found.variables["new"] = 1
    for change in ("clear", "pop", "popitem", "update", "setdefault", "__delitem__", "__ior__"):
        with pytest.raises(TypeError, match="set_metadata"):
            getattr(found.metadata, change)("topic")
    with pytest.raises(AttributeError):
        found.version = 5
    assert not hasattr(found.history, "append")


def test_state_is_json_able_and_copies_are_free():
    """Variables are dicts that JSON encoders take, and whose copies may be changed."""
    found = state()
    assert json.dumps(found.variables) == '{"prefs": {"theme": "dark"}}'
    for made in (
        copy.copy(found.variables),
        copy.deepcopy(found.variables),
        dict(found.variables),
        found.variables | {},
    ):
        made["new"] = 1
    deep = copy.deepcopy(found.variables)
    deep["prefs"]["theme"] = "light"
    assert found.variables == {"prefs": {"theme": "dark"}}


# -- ids, times, cost ------------------------------------------------------------------------


def test_new_ids_differ():
    """Ids are 24 characters, each another."""
    made = {new_id() for _ in range(10_000)}
    assert len(made) == 10_000
    assert all(len(one) == 24 and one.isalnum() for one in made)


def test_new_ids_differ_whatever_the_application_seeds():
    """Seeding the shared generator doesn't bring ids back, which would look like second deliveries."""
    random.seed(42)
    first = new_id()
    random.seed(42)
    assert new_id() != first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_new_ids_differ_after_a_fork():
    """A child doesn't continue its parent's sequence."""
    code = (
        "import os; from agentstate.models import new_id\n"
        "child = os.fork()\n"
        "os.write(1, new_id().encode() + b'\\n')\n"
        "child and os.waitpid(child, 0)"
    )
    ids = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(ids) == 2
    assert ids[0] != ids[1]


@settings(max_examples=200, deadline=None)
@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)))  # noqa: DTZ001
def test_iso_of_any_time(moment):
    """Seconds since the epoch become the right text, to the microsecond as far as a float holds it."""
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
    found = utc_now_iso(seconds)
    assert len(found) == 32
    assert abs(datetime.fromisoformat(found) - moment) <= timedelta(microseconds=max(1, abs(seconds) * 2**-51 * 1e6))


def test_iso_sorts_and_rounds():
    """A fraction that rounds up to the next second carries over."""
    assert utc_now_iso(0.9999999) == "1970-01-01T00:00:01.000000+00:00"
    assert utc_now_iso(-0.5) == "1969-12-31T23:59:59.500000+00:00"


def test_reading_messages_is_cheap():
    """Ten messages from decoded dicts cost a few microseconds (the bound leaves room for slow machines)."""
    data = Message.new("user", "hello", metadata={"a": 1}).to_json()
    rows = [dict(data) for _ in range(10)]
    best = min(timeit.repeat(lambda: [Message.from_json(row, 1, 1) for row in rows], number=300, repeat=7)) / 300
    assert best < 30e-6


def test_importing_models_is_light():
    """Models load no driver, no encoder and no pydantic."""
    code = "import sys, agentstate.models; assert not {'pydantic', 'orjson', 'zstandard', 'decimal'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
