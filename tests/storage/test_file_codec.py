"""What the file backend writes as JSON comes back byte for byte."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstate.errors import UnsupportedValueError
from agentstate.scope import StateScope
from agentstate.storage.file.codec import (
    decode_entry,
    decode_once,
    decode_part,
    decode_stamp,
    decode_value,
    dump,
    encode_entry,
    encode_once,
    encode_part,
    encode_stamp,
    encode_value,
)
from agentstate.storage.protocol import (
    Append,
    CutTail,
    EditItem,
    Entry,
    Increment,
    OnceRecord,
    Part,
    Put,
    Stamp,
    TrimHead,
)

SCOPE = StateScope.GLOBAL
STAMP = Stamp(3, 2**64 - 1)


def through(value):
    """Return a value after a trip through JSON."""
    return orjson.loads(orjson.dumps(value))


@given(st.binary(max_size=200))
def test_bytes_come_back(value):
    """Any bytes come back."""
    assert decode_value(through(encode_value(value))) == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20))
def test_json_comes_back(value):
    """The text of any JSON value comes back, however its writer spelled it."""
    import json

    data = json.dumps(value).encode("utf-8", "surrogatepass")
    assert decode_value(through(encode_value(data))) == data


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b'{"a":1}', "json"),
        (b"12", "json"),
        (b'"text"', "json"),
        (b"[]", "json"),
        (b'{"a": 1}', "text"),
        (b'{"a":1,"a":2}', "text"),
        (b"123456789012345678901234567890", "text"),
        (b"NaN", "b64"),
        (b"\x00", "b64"),
        (b"", "b64"),
        (b"[" * 2000 + b"]" * 2000, "text"),
        (b'"' + b"x" * 100_000 + b'"', "text"),
        (b'"\xff"', "b64"),
        (b'{"a":\n1}', "text"),
    ],
)
def test_plain_json_stays_readable(value, kind):
    """A value stands in the file as JSON when that is exact, else as text, else as base64."""
    encoded = encode_value(value)
    assert list(encoded) == [kind]
    line = orjson.dumps(encoded)
    assert b"\n" not in line
    assert decode_value(orjson.loads(line)) == value


def test_deep_values_fit_into_a_line():
    """The deepest value that is written as JSON can be read inside everything around it."""
    for depth in range(200, 300):
        value = b"[" * depth + b"]" * depth
        line = orjson.dumps({"ops": [{"part": {"puts": [["s", "k", encode_value(value), None]]}}]})
        assert decode_value(orjson.loads(line)["ops"][0]["part"]["puts"][0][2]) == value


def test_parts_come_back():
    """Everything that a part changes comes back; what it leaves alone stays left alone."""
    full = Part(
        scope=SCOPE,
        clear=True,
        cuts=[CutTail("l", 3)],
        trims=[TrimHead("l", 1)],
        edits=[EditItem("l", 2, 5, b"{}")],
        deletes=[("s", "k")],
        puts=[Put("s", "k", b"\x00", 1.5), Put("s", "ключ", b"1")],
        increments=[Increment("s", "n", -(2**63))],
        appends=[Append("l", "id", b"1", 2.0, unique=True), Append("l", "", b"")],
        owner=None,
        parent="p",
        labels={"a": "b"},
        ttl=None,
        sliding=False,
    )
    assert decode_part(SCOPE, through(encode_part(full))) == full
    for part in (Part(scope=SCOPE), Part(scope=SCOPE, ttl=3.0, owner="ada", labels={})):
        again = decode_part(SCOPE, through(encode_part(part)))
        assert (again.owner, again.parent, again.labels, again.ttl) == (part.owner, part.parent, part.labels, part.ttl)
        assert encode_part(again) == encode_part(part)


def test_small_things_come_back():
    """Entries, stamps and idempotency records come back."""
    for entry in (Entry(-(2**63), STAMP), Entry(b"\xff", STAMP, 1.25)):
        assert decode_entry(through(encode_entry(("s", "k"), entry))) == (("s", "k"), entry)
    for once in (OnceRecord("k", "f", 2**64 - 1, None, 1.5), OnceRecord("k", "f", 1, b"{}", 0.0)):
        assert decode_once(through(encode_once(once))) == once
    assert decode_stamp(encode_stamp(STAMP)) == STAMP
    assert decode_stamp(encode_stamp(None)) is None


def test_what_utf8_cannot_express_is_refused():
    """A key with an unpaired surrogate is refused before anything is written."""
    with pytest.raises(UnsupportedValueError):
        dump(encode_part(Part(scope=SCOPE, puts=[Put("s", "\ud800", b"1")])), "it", SCOPE)
