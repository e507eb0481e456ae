from __future__ import annotations

import dataclasses
import enum
import struct
import subprocess
import sys
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import NamedTuple

import pydantic
import pytest
from a2a.types import a2a_pb2

from agentstate.codec import (
    MAX_DEPTH,
    MAX_VALUE_BYTES,
    changed,
    decode,
    encode,
    fingerprint,
    is_mutable,
    register_type,
)
from agentstate.errors import (
    ConfigError,
    DamagedStateError,
    UnsupportedValueError,
    ValueTooLargeError,
)


def framed(text: bytes, flags: int = 1, version: int = 1) -> bytes:
    return struct.pack(">BBBI", 1, version, flags, zlib.crc32(text, flags)) + text


def nested(depth: int):
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


class Colour(enum.Enum):
    RED = "red"
    SCARLET = "red"  # noqa: PIE796 - an alias
    BLUE = (1, 2)


class Word(str):
    __slots__ = ()


class Version(NamedTuple):
    number: int


@dataclasses.dataclass
class Point:
    x: int
    tags: set
    norm: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self):
        self.norm = float(self.x)


@dataclasses.dataclass(eq=False)
class Node:
    name: str
    below: Node | None = None


@dataclasses.dataclass
class Unregistered:
    x: int = 1


class Address(pydantic.BaseModel):
    street: str
    since: date


class Profile(pydantic.BaseModel):
    name: str = pydantic.Field(alias="fullName")
    address: Address | None = None
    scores: tuple[int, ...] = ()

    @pydantic.computed_field
    @property
    def initial(self) -> str:
        return self.name[:1]


class Secretive(pydantic.BaseModel):
    shown: int
    hidden: int = pydantic.Field(default=0, exclude=True)


class Stranger(pydantic.BaseModel):
    name: str = "x"


class Vector:
    def __init__(self, *parts):
        self.parts = parts


for registered in (Colour, Point, Node, Profile, Secretive):
    register_type(registered, f"types.{registered.__name__}")
register_type(Vector, "types.Vector", dump=lambda vector: vector.parts, load=lambda parts: Vector(*parts))

# -- refusing --------------------------------------------------------------------------------


class OddZone(tzinfo):
    def utcoffset(self, moment):
        return timedelta(0)


class LateDate(datetime):
    pass


@pytest.mark.parametrize(
    ("value", "path", "remedy"),
    [
        (Word("x"), "$", "plain str"),
        ({Word("k"): 1}, "$[<Word>]", "plain str"),
        ([True, [OrderedDict()]], "$[1][0]", "plain dict"),
        ({"a": defaultdict(int)}, "$.a", "plain dict"),
        (Counter(), "$", "plain dict"),
        ({"items": [0, 0, 0, {"when": object()}]}, "$.items[3].when", "register_type(object, dump="),
        ({"two words": {7: object()}}, "$['two words'][7]", "dump="),
        ({"k" * 99: object()}, "$." + "k" * 40 + "…", "dump="),
        ((1, {frozenset({object})}), "$[1]{*}{*}", "name as text"),
        ([Unregistered()], "$[0]", "dataclasses.asdict(value)"),
        ([Stranger()], "$[0]", "value.model_dump()"),
        (enum.Enum("Late", "A").A, "$", "value.value"),
        (enum.IntEnum("Late", "A").A, "$", "value.value"),
        (enum.StrEnum("Late", "A").A, "$", "value.value"),
        (Version(1), "$", "_asdict()"),
        (a2a_pb2.Task(), "$", "MessageToDict"),
        (type("Array", (), {"tolist": list})(), "$", "tolist()"),
        (LateDate(2026, 1, 1), "$", "plain datetime"),
        ({"t": datetime(2026, 1, 1, tzinfo=OddZone())}, "$.t", "zoneinfo"),
        (deque(), "$", "deque"),
        (range(3), "$", "range"),
        (lambda: 1, "$", "function"),
        (int, "$", "name"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_refusal_names_place_and_remedy(value, path, remedy):
    """A value that would come back different is refused, with the path inside it and what to do."""
    with pytest.raises(UnsupportedValueError) as caught:
        encode(value)
    assert caught.value.path == path
    assert remedy in caught.value.remedy
    assert path in str(caught.value)


def test_refusal_does_not_show_values():
    """An error about a value never shows the value."""
    with pytest.raises(UnsupportedValueError) as caught:
        encode({"token": ["hunter2", {("hunter2",): Unregistered}]})
    assert "hunter2" not in str(caught.value)


def test_cycles_are_refused_and_shared_parts_are_not():
    """A value that holds itself is refused; one that stands in two places is stored twice."""
    loop: dict = {"a": [1]}
    loop["a"].append(loop)
    with pytest.raises(UnsupportedValueError, match="holds itself") as caught:
        encode(loop)
    assert caught.value.path == "$.a[1]"
    shared = [1, (2,)]
    assert decode(encode({"x": shared, "y": shared})) == {"x": [1, (2,)], "y": [1, (2,)]}


def test_value_that_shares_itself_exponentially_ends_at_once():
    """Sixty lists that hold each other twice are 2**60 parts: too large, and found out early."""
    for leaf in (1, ()):
        value = [leaf]
        for _ in range(60):
            value = [value, value]
        with pytest.raises(ValueTooLargeError):
            encode(value, limit=100_000)


@pytest.mark.parametrize("leaf", [1, (1,)], ids=["plain", "tagged"])
def test_depth_limit(leaf):
    """Containers may stand 200 deep in each other, whatever they hold, and no deeper."""
    extra = 1 if leaf == 1 else 2
    deepest = nested(MAX_DEPTH - extra + 1)
    at = deepest
    while at:
        at = at[0]
    at.append(leaf)
    assert decode(encode(deepest)) == deepest
    with pytest.raises(ValueTooLargeError, match="deeper than 200"):
        encode([deepest])


def test_depth_beyond_the_parsers_limit_is_damage():
    """Stored brackets without end are refused before anything is built."""
    with pytest.raises(DamagedStateError):
        decode(b"[" * 100_000)


def test_size_limit():
    """The size before compression is limited in both directions, in every form."""
    for value in ("x" * 5000, "x" * 50_000, b"x" * 5000, ("x" * 5000,), ["x"] * 400):
        data = encode(value)
        assert decode(data) == value
        with pytest.raises(ValueTooLargeError, match="1000"):
            encode(value, limit=1000)
        with pytest.raises(ValueTooLargeError, match="1000"):
            decode(data, limit=1000)
    assert MAX_VALUE_BYTES == 16 * 1024 * 1024


def test_default_size_limit():
    """Sixteen MiB fit, one byte more doesn't."""
    assert len(decode(encode(b"x" * MAX_VALUE_BYTES))) == MAX_VALUE_BYTES
    with pytest.raises(ValueTooLargeError):
        encode(b"x" * (MAX_VALUE_BYTES + 1))


# -- registered types ------------------------------------------------------------------------


def test_registered_types_inside_others():
    """Registered types nest in containers and in each other."""
    value = {"path": [Node("a", Node("b"))], "colours": {Colour.RED: Point(1, {Colour.BLUE})}}
    back = decode(encode(value))
    assert back["colours"] == value["colours"]
    assert (back["path"][0].name, back["path"][0].below.name, back["path"][0].below.below) == ("a", "b", None)
    deep = Node("0")
    for _ in range(50):
        deep = Node("x", deep)
    assert decode(encode(deep)).below.below.name == "x"


def test_registered_class_with_its_own_dump():
    """Any class can be stored when it is told how."""
    assert decode(encode([Vector(1, (2,))]))[0].parts == (1, (2,))


def test_registered_type_that_comes_back_different_is_refused():
    """A model that dumps less than it is would lose data, so it is refused."""
    with pytest.raises(UnsupportedValueError, match=r"\$\.m") as caught:
        encode({"m": Secretive(shown=1, hidden=2)})
    assert caught.value.path == "$.m"
    assert decode(encode(Secretive(shown=1))) == Secretive(shown=1)


def test_subclass_of_a_registered_type_is_another_type():
    """Registering a class says nothing about its subclasses."""

    class Nearby(Point):
        pass

    with pytest.raises(UnsupportedValueError, match="Nearby"):
        encode(Nearby(1, set()))


def test_cycle_through_registered_types_is_refused():
    """An object that holds itself is a cycle too."""
    loop = Node("a")
    loop.below = loop
    with pytest.raises(UnsupportedValueError, match="holds itself"):
        encode(loop)


def test_unsupported_field_is_named():
    """The path goes into the fields of registered types."""
    with pytest.raises(UnsupportedValueError) as caught:
        encode([Point(1, Word("x"))])
    assert caught.value.path == "$[0].tags"


def test_unknown_type_is_named_and_never_imported():
    """A stored type that isn't registered is an error with its name; nothing is imported for it."""
    for name in ("antigravity", "os.system", "this"):
        with pytest.raises(UnsupportedValueError, match=name):
            decode(framed(b'["as","%s",["list"]]' % name.encode()))
        assert name not in sys.modules or name == "os.system"


def test_stored_data_that_the_type_refuses():
    """When a class has changed so that old data doesn't fit, the error names the class."""
    for data in (framed(b'["as","types.Profile",{}]'), framed(b'["as","types.Colour","GREEN"]')):
        with pytest.raises(UnsupportedValueError, match=r"Profile|Colour"):
            decode(data)


def test_new_fields_with_defaults_read_old_data():
    """A field added with a default doesn't make old data unreadable, and isn't a change by itself."""
    old = framed(b'["as","types.Profile",{"name":"Ann"}]')
    profile = decode(old)
    assert profile == Profile(fullName="Ann")
    assert not changed(profile, old)
    profile.name = "Bob"
    assert changed(profile, old)


def test_aliases_read_renamed_types():
    """A class that was renamed reads what its old name wrote, and writes its new one."""

    @dataclasses.dataclass
    class Renamed:
        x: int

    register_type(Renamed, "types.Renamed", aliases=["types.OldName"])
    assert decode(framed(b'["as","types.OldName",{"x":1}]')) == Renamed(1)
    assert b"types.Renamed" in encode(Renamed(1))


def test_register_type_as_decorator_and_again():
    """It returns the class, takes its qualified name, and registering again (a reload) is no error."""

    @register_type
    @dataclasses.dataclass
    class Once:
        x: int

    assert b"Once" in encode(Once(1))
    assert register_type(Once) is Once


def test_register_type_says_what_is_wrong():
    """Taken names, needless and impossible registrations are configuration errors."""
    with pytest.raises(ConfigError, match=r"types\.Point.*belongs to"):
        register_type(Unregistered, "types.Point")
    with pytest.raises(ConfigError, match=r"types\.Node"):
        register_type(Unregistered, aliases=["types.Node"])
    with pytest.raises(ConfigError, match="without registering"):
        register_type(datetime)
    with pytest.raises(ConfigError, match="only one"):
        register_type(deque, dump=list)
    with pytest.raises(ConfigError, match="dump="):
        register_type(deque)
    with pytest.raises(UnsupportedValueError):
        encode(Unregistered())


def test_errors_of_a_dump_are_typed():
    """A dump that fails is an unsupported value, with the user's error as its cause."""

    class Moody:
        pass

    def fail(_):
        raise RuntimeError("no")

    register_type(Moody, "types.Moody", dump=fail, load=fail)
    with pytest.raises(UnsupportedValueError, match="RuntimeError") as caught:
        encode([Moody()])
    assert caught.value.path == "$[0]"
    with pytest.raises(UnsupportedValueError, match="RuntimeError"):
        decode(framed(b'["as","types.Moody",1]'))


def test_unknown_zone_and_foreign_path():
    """What is whole but can't live on this machine is unsupported, not damaged."""
    with pytest.raises(UnsupportedValueError, match="tzdata"):
        decode(framed(b'["datetime","2026-01-01T00:00:00",0,"Mars/Olympus"]'))
    foreign = "WindowsPath" if sys.platform != "win32" else "PosixPath"
    with pytest.raises(UnsupportedValueError, match="operating system"):
        decode(framed(b'["path","%s","x"]' % foreign.encode()))


# -- change detection and fingerprints -------------------------------------------------------


def test_is_mutable():
    """Whatever can be changed in place is mutable, at any depth."""
    for value in ([], {}, set(), bytearray(), ([],), frozenset({(1, (Node("x"),))}), Point(1, set()), Vector()):
        assert is_mutable(value), value
    for value in (1, "x", None, 1.5, True, b"x", (1, ("x",)), frozenset({1}), Colour.RED, date.today(), Path()):  # noqa: DTZ011
        assert not is_mutable(value), value


def test_changed():
    """A change in place is noticed, a different way to write the same value isn't one."""
    value = {"a": [1, {"b": {1, 2}}]}
    data = encode(value)
    assert not changed(value, data)
    assert not changed(decode(b'{ "a" : 1.0 }'), b'{ "a" : 1.0 }')
    value["a"][1]["b"].add(3)
    assert changed(value, data)
    assert changed({"x": object()}, encode({"x": 1}))
    assert changed([True], encode([1]))


def test_fingerprint_is_stable_across_processes():
    """It depends on the value only: not on hash seeds, not on the order of keys."""
    expected = fingerprint({"b": {"x", "y", "z"}, "a": (1, 2)})
    code = "from agentstate.codec import fingerprint; print(fingerprint({'a': (1, 2), 'b': {'z', 'x', 'y'}}))"
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert found.stdout.strip() == expected


def test_fingerprint_tells_values_apart():
    """Different values have different fingerprints, types included; what has none is None."""
    task = a2a_pb2.Task(id="t", context_id="c")
    values = [1, 1.0, True, "1", None, [1], (1,), {1}, {"1": 1}, {1: 1}, b"1", ["tuple", 1], task, a2a_pb2.Message()]
    values += [Stranger(), Stranger(name="y"), 2**70, "\ud800"]
    prints = [fingerprint(value) for value in values]
    assert None not in prints
    assert len(set(prints)) == len(values)
    assert fingerprint(task) == fingerprint(a2a_pb2.Task(context_id="c", id="t"))
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint(object()) is None
    assert fingerprint([object()]) is None
    assert fingerprint(lambda: 1) is None
