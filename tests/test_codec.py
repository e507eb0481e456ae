from __future__ import annotations

import contextlib
import dataclasses
import enum
import random
import struct
import subprocess
import sys
import timeit
import uuid
import zlib
from collections import OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from zoneinfo import ZoneInfo

import orjson
import pydantic
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstate.codec import (
    changed,
    decode,
    encode,
    register_type,
)
from agentstate.errors import (
    DamagedStateError,
    NewerFormatError,
    StateError,
    UnsupportedValueError,
)

quick = settings(max_examples=150, deadline=None)


def shape(value):
    """Return text that differs whenever two values differ, types of all parts included."""
    kind = type(value)
    match value:
        case dict():
            inner = ", ".join(f"{shape(k)}: {shape(v)}" for k, v in value.items())
        case list() | tuple():
            inner = ", ".join(map(shape, value))
        case set() | frozenset():
            inner = ", ".join(sorted(map(shape, value)))
        case float():
            inner = struct.pack(">d", value).hex()
        case complex():
            inner = struct.pack(">dd", value.real, value.imag).hex()
        case Point():
            inner = shape(vars(value))
        case datetime() | time():
            inner = f"{value.isoformat()} {value.fold} {value.tzinfo!r}"
        case _:
            inner = repr(value)
    return f"{kind.__module__}.{kind.__qualname__}({inner})"


def framed(text: bytes, flags: int = 1, version: int = 1) -> bytes:
    return struct.pack(">BBBI", 1, version, flags, zlib.crc32(text, flags)) + text


class Colour(enum.Enum):
    RED = "red"
    SCARLET = "red"  # noqa: PIE796 - an alias
    BLUE = (1, 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: object
    right: object


@dataclasses.dataclass
class Point:
    x: int
    tags: set
    norm: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self):
        self.norm = float(self.x)


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


class Stranger(pydantic.BaseModel):
    name: str = "x"


for registered in (Colour, Access, Number, Point, Profile):
    register_type(registered, f"test.{registered.__name__}")
register_type(Pair, "test.Pair", dump=tuple, load=Pair._make)

AMSTERDAM = ZoneInfo("Europe/Amsterdam")

GOLDEN = {
    "text": ("dark", b'"dark"'),
    "null": (None, b"null"),
    "dict": ({"b": [1, 2.5, True, None], "a": {}}, b'{"b":[1,2.5,true,null],"a":{}}'),
    "negative zero": (-0.0, b"-0.0"),
    "unsigned": (2**63, b"9223372036854775808"),
    "big int": (-(2**70), framed(b'["int","-400000000000000000"]')),
    "infinity": (float("inf"), framed(b'["float","7ff0000000000000"]')),
    "complex": (complex(1, -0.0), framed(b'["complex","3ff00000000000008000000000000000"]')),
    "surrogate": ("a\ud800", framed(b'["str","61eda080"]')),
    "tuple": ((1, "x"), framed(b'["tuple",1,"x"]')),
    "set": ({3, 1, 2}, framed(b'["set",1,2,3]')),
    "frozenset": (frozenset({"b", "a"}), framed(b'["frozenset","a","b"]')),
    "list": ([()], framed(b'["list",["tuple"]]')),
    "text keys": ({"a": ()}, framed(b'{"a":["tuple"]}')),
    "other keys": ({1: "x", "a": 2}, framed(b'["dict",1,"x","a",2]')),
    "bytes": (b"\x00\xff", framed(b"\x00\xff", flags=2)),
    "bytes inside": ([b"\x00\xff"], framed(b'["list",["bytes","AP8="]]')),
    "bytearray": (bytearray(b"hi"), framed(b'["bytearray","aGk="]')),
    "date": (date(2026, 1, 31), framed(b'["date","2026-01-31"]')),
    "naive": (datetime(2026, 1, 31, 12, 0, 0, 5), framed(b'["datetime","2026-01-31T12:00:00.000005",0]')),  # noqa: DTZ001
    "utc": (datetime(2026, 1, 31, tzinfo=UTC), framed(b'["datetime","2026-01-31T00:00:00",0,0,0,0]')),
    "zone": (
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=AMSTERDAM),
        framed(b'["datetime","2026-10-25T02:30:00",1,"Europe/Amsterdam"]'),
    ),
    "named offset": (
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-5), "EST")),
        framed(b'["datetime","2026-01-01T00:00:00",0,-1,68400,0,"EST"]'),
    ),
    "time": (time(1, 2, 3, tzinfo=UTC, fold=1), framed(b'["time","01:02:03",1,0,0,0]')),
    "timedelta": (timedelta(-1, 5, 7), framed(b'["timedelta",-1,5,7]')),
    "uuid": (uuid.UUID(int=5), framed(b'["uuid","00000000-0000-0000-0000-000000000005"]')),
    "decimal": (Decimal("-1.50E+3"), framed(b'["decimal","-1.50E+3"]')),
    "signalling": (Decimal("sNaN12"), framed(b'["decimal","sNaN12"]')),
    "pure path": (PurePosixPath("/a/ü"), framed('["path","PurePosixPath","/a/ü"]'.encode())),
    "windows path": (PureWindowsPath("c:\\x"), framed(b'["path","PureWindowsPath","c:\\\\x"]')),
    "odd path": (PurePosixPath("/\udcff"), framed(b'["path","PurePosixPath","2fedb3bf","hex"]')),
    "enum": (Colour.SCARLET, framed(b'["as","test.Colour","RED"]')),
    "flag": (Access.READ | Access.RUN, framed(b'["as","test.Access",["list","READ","RUN"]]')),
    "int enum": ({"n": Number.ONE}, framed(b'{"n":["as","test.Number","ONE"]}')),
    "dataclass": (Point(3, {1}), framed(b'["as","test.Point",{"x":3,"tags":["set",1],"norm":3.0}]')),
    "model": (
        Profile(fullName="Ann", address=Address(street="s", since=date(2026, 1, 1)), scores=(1,)),
        framed(
            b'["as","test.Profile",{"name":"Ann","address":{"street":"s","since":["date","2026-01-01"]},'
            b'"scores":["tuple",1]}]'
        ),
    ),
    "namedtuple": (Pair(1, [2]), framed(b'["as","test.Pair",["tuple",1,["list",2]]]')),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_stored_form_is_fixed(name):
    """What this release writes, and what every later one must read, byte for byte."""
    value, data = GOLDEN[name]
    assert encode(value) == data
    assert shape(decode(data)) == shape(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 2**64, -(2**63) - 1, "\ud800"])
def test_what_json_damages_is_found_inside_json_containers(number):
    """What plain JSON would turn into null, a float or nothing comes back the same inside lists and dicts."""
    for value in ([number], {"a": number}, [[1, {"a": [number, 2.5]}]], {str(number): 1}):
        assert shape(decode(encode(value))) == shape(value)


def test_concrete_path_of_this_system():
    """A Path comes back as the same kind of Path."""
    assert shape(decode(encode(Path("/tmp/x")))) == shape(Path("/tmp/x"))


# -- properties ------------------------------------------------------------------------------

zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["Europe/Amsterdam", "Asia/Kathmandu", "UTC"]).map(ZoneInfo),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(max_size=5)),
)
texts = st.text(st.characters(exclude_categories=()), max_size=12)
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**62, 2**66),
    st.floats(),
    texts,
    st.binary(max_size=12),
    st.complex_numbers(),
    st.uuids(),
    st.decimals().filter(lambda number: not number.is_snan()),  # those have no hash
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=zones),
    st.builds(time.replace, st.times(timezones=zones), fold=st.integers(0, 1)),
    texts.map(lambda text: PurePosixPath(text.replace("\0", ""))),
    texts.map(lambda text: PureWindowsPath(text.replace("\0", ""))),
    st.sampled_from([*Colour, *Access, Access.READ | Access.WRITE, Number.ONE]),
)
keys = st.recursive(hashables, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
odd = st.sampled_from(
    [Word("x"), OrderedDict(a=1), defaultdict(list), deque([1]), Unregistered(), Stranger(), object()]
)


def containers(inner):
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(keys, max_size=3),
        st.builds(Point, st.integers(), st.sets(keys, max_size=2)),
        st.builds(Pair, inner, inner),
    )


storable = st.recursive(hashables | st.binary(max_size=8).map(bytearray), containers, max_leaves=12)
anything = st.recursive(hashables | odd, containers, max_leaves=8)


@quick
@given(storable)
def test_storable_values_come_back_the_same(value):
    """Any nesting of supported types comes back with equal parts of the same types."""
    data = encode(value)
    assert shape(decode(data)) == shape(value)
    assert encode(decode(data)) == data
    assert not changed(decode(data), data)


@quick
@given(anything)
def test_round_trip_or_refuse(value):
    """What is not refused comes back the same."""
    with contextlib.suppress(UnsupportedValueError):
        assert shape(decode(encode(value))) == shape(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # unpaired surrogates are no JSON
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@quick
@given(json_values)
def test_json_stays_plain(value):
    """Exact JSON is stored as plain JSON that any tool reads."""
    data = encode(value)
    assert shape(orjson.loads(data)) == shape(value)
    assert shape(decode(data)) == shape(value)


TAGS = ["list", "tuple", "set", "dict", "as", "date", "datetime", "int", "str", "bytes", "test.Point", "x"]


@quick
@given(st.recursive(st.sampled_from(TAGS), lambda inner: st.lists(inner, max_size=3), max_leaves=10))
def test_tags_cannot_be_forged(value):
    """Lists and dicts that look like tags come back as the lists and dicts they are, beside tagged values too."""
    for forged in (value, {"as": value, "dict": value}, [value, (value,)], {1: value}, {"": {"list": value}, "t": ()}):
        assert shape(decode(encode(forged))) == shape(forged)


def decode_or_typed_error(data: bytes) -> None:
    with contextlib.suppress(StateError):
        decode(data)


@quick
@given(storable, st.randoms(use_true_random=False))
def test_damaged_bytes_give_typed_errors_only(value, dice: random.Random):
    """Flipped, cut, doubled and inserted bytes raise typed errors, or are other valid JSON."""
    data = bytearray(encode(value))
    for _ in range(8):
        broken = bytearray(data)
        at = dice.randrange(len(broken) + 1)
        match dice.randrange(4):
            case 0 if at < len(broken):
                broken[at] ^= 1 << dice.randrange(8)
            case 1:
                del broken[at:]
            case 2:
                broken[at:at] = dice.randbytes(dice.randrange(1, 5))
            case _:
                broken += broken[at:]
        decode_or_typed_error(bytes(broken))


@quick
@given(storable, st.randoms(use_true_random=False))
def test_forged_frames_give_typed_errors_only(value, dice: random.Random):
    """Tagged JSON nobody wrote, under a right check sum, raises typed errors only."""
    text = encode([value, ()])[7:]
    words = [b'"', b"[", b"]", b"{", b"}", b",", b"1", b"-", b"null", b'"as"', b'"dict"', b'["set",1,1]', b'["tuple"]']
    for _ in range(8):
        at = dice.randrange(len(text))
        forged = text[:at] + dice.choice(words) + text[at + dice.randrange(3) :]
        decode_or_typed_error(framed(forged))


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"[1]",
        b"[null]",
        b'["date"]',
        b'["date","x"]',
        b'["date",1]',
        b'["datetime","2026-01-01T00:00:00",7]',
        b'["datetime","2026-01-01T00:00:00",0,"../../etc/passwd"]',
        b'["datetime","2026-01-01T00:00:00",0,[]]',
        b'["int",1]',
        b'["int","xyz"]',
        b'["float","00"]',
        b'["str","ff"]',
        b'["bytes","*"]',
        b'["uuid","1"]',
        b'["decimal","x"]',
        b'["timedelta",9999999999,0,0]',
        b'["path","Popen","x"]',
        b'["path"]',
        b'["set",["list"]]',
        b'["set",1,1]',
        b'["dict",1]',
        b'["dict",["list"],1]',
        b'["dict",1,2,1,3]',
        b'["as","test.Point"]',
        b'["as",1,2]',
        b"{",
        b"",
        b"\xff",
        b'{"a":' * 300 + b"1" + b"}" * 300,
    ],
)
def test_broken_tags_are_damage(text):
    """A tag with arguments that nobody writes is damage, never None and never a guess."""
    with pytest.raises(DamagedStateError):
        decode(framed(text))


# -- compression and the frame ---------------------------------------------------------------


def test_large_values_are_compressed_when_it_saves():
    """Above 8 KiB compressible values shrink, others stay as they are."""
    text = "the quick brown fox " * 1000
    assert len(encode(text)) < 1000
    assert decode(encode(text)) == text
    noise = random.Random(7).randbytes(20_000)
    assert len(encode(noise)) == 20_007
    assert decode(encode(noise)) == noise
    assert encode("x" * 8000) == b'"' + b"x" * 8000 + b'"'


def test_what_compresses_too_well_stays_readable_by_the_reader():
    """The writer never makes what the reader would take for a bomb."""
    value = "x" * 10_000_000
    assert decode(encode(value)) == value


def test_compression_bombs_are_refused():
    """A frame that claims to grow a lot is refused before memory is taken, and so is one that claims nothing."""
    bomb = zstandard.compress(b" " * 12_000_000)
    with pytest.raises(DamagedStateError, match="grows"):
        decode(framed(bomb, flags=0x10))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(b" " * 100)
    with pytest.raises(DamagedStateError, match="grows"):
        decode(framed(streamed, flags=0x10))
    with pytest.raises(DamagedStateError, match="decompressed"):
        decode(framed(b"no zstd", flags=0x10))
    half = zstandard.compress(random.Random(1).randbytes(2000))[:1000]
    with pytest.raises(DamagedStateError, match="decompressed"):
        decode(framed(half, flags=0x10))


def test_newer_formats_are_refused_as_such():
    """What a newer release wrote is called newer, not damaged: format, flags and tags."""
    for data in (framed(b"1", version=2), framed(b"1", flags=0x21), framed(b"1", flags=9), framed(b'["ipv6",1]')):
        with pytest.raises(NewerFormatError) as caught:
            decode(data)
        assert "Upgrade" in caught.value.remedy
    with pytest.raises(NewerFormatError, match="ipv6"):
        decode(framed(b'["ipv6",1]'))


def test_every_flipped_bit_of_a_frame_is_noticed():
    """The check sum covers the flags and the payload."""
    data = encode((1, "two"))
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedStateError, NewerFormatError)):
            decode(bytes(broken))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x01", b"\x01\x01\x00\x00\x00\x00", b"\x00", b"nul", b"{'a':1}"])
def test_no_value_at_all_is_damage(data):
    """Nothing undecodable becomes None."""
    with pytest.raises(DamagedStateError):
        decode(data)


# -- cost ------------------------------------------------------------------------------------


def test_importing_the_codec_loads_nothing_heavy():
    """Encoders, compressors, pydantic and the tagged form are loaded when first needed."""
    code = (
        "import sys, agentstate.codec as c; heavy = {'orjson', 'zstandard', 'pydantic', 'decimal', 'hashlib'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); c.decode(c.encode({'a': 1}));"
        "assert heavy & set(sys.modules) <= {'orjson'}, heavy & set(sys.modules);"
        "c.decode(c.encode((1,))); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_values_are_cheap():
    """A small value costs about a microsecond each way (the bound leaves room for slow machines)."""
    message = {"id": "a" * 24, "role": "user", "content": "hello " * 25, "metadata": {}}
    data = encode(message)
    both = min(timeit.repeat(lambda: decode(encode(message)), number=500, repeat=7)) / 500
    assert data[:1] == b"{"
    assert both < 15e-6
