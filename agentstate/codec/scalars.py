"""How each built-in type that JSON lacks, and that holds no others, is written as text and numbers."""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCALARS", "Refused", "Scalar"]

Node = Any


class Refused(Exception):  # noqa: N818 - caught inside the codec, which knows the place and raises the typed error
    """A value of a known type would come back different. The arguments: what is wrong, and the remedy."""


class Scalar:
    """One type: its tag, and how it is written and read.

    ``dump`` returns what follows the tag in the JSON array; ``load`` takes it as arguments.
    """

    __slots__ = ("dump", "load", "tag")

    def __init__(self, tag: str, dump: Callable[[Any], list[Node]], load: Callable[..., Any]) -> None:
        self.tag = tag
        self.dump = dump
        self.load = load


def _read_int(text: str) -> int:
    return int(text, 16)


def _dump_float(value: float) -> list[Node]:
    return [pack(">d", value).hex()]


def _read_float(bits: str) -> float:
    number: float = unpack(">d", bytes.fromhex(bits))[0]
    return number


def _dump_complex(value: complex) -> list[Node]:
    return [pack(">dd", value.real, value.imag).hex()]


def _read_complex(bits: str) -> complex:
    return complex(*unpack(">dd", bytes.fromhex(bits)))


def _dump_text(value: str) -> list[Node]:
    return [value.encode("utf-8", "surrogatepass").hex()]


def _read_text(octets: str) -> str:
    return bytes.fromhex(octets).decode("utf-8", "surrogatepass")


def _dump_bytes(value: bytes | bytearray) -> list[Node]:
    return [b2a_base64(value, newline=False).decode()]


def _read_bytes(text: str) -> bytes:
    return a2b_base64(text, strict_mode=True)


def _read_bytearray(text: str) -> bytearray:
    return bytearray(_read_bytes(text))


def _dump_str(value: Decimal | UUID) -> list[Node]:
    return [str(value)]


def _dump_date(value: date) -> list[Node]:
    return [value.isoformat()]


def _dump_timedelta(value: timedelta) -> list[Node]:
    return [value.days, value.seconds, value.microseconds]


def _read_timedelta(days: int, seconds: int, microseconds: int) -> timedelta:
    return timedelta(days, seconds, microseconds)


def _dump_moment(value: datetime | time) -> list[Node]:
    return [value.replace(tzinfo=None).isoformat(), value.fold, *_dump_zone(value.tzinfo)]


def _read_datetime(text: str, fold: int, *zone: Node) -> datetime:
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(*zone))


def _read_time(text: str, fold: int, *zone: Node) -> time:
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(*zone))


def _dump_zone(zone: tzinfo | None) -> list[Node]:
    if zone is None:
        return []
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        plain = zone.tzname(None) == timezone(offset).tzname(None)
        return [*_dump_timedelta(offset), *([] if plain else [zone.tzname(None)])]
    if type(zone) is ZoneInfo and zone.key:
        return [zone.key]
    kind = type(zone).__qualname__
    raise Refused(f"has a time zone of type {kind}", "Use datetime.timezone or zoneinfo.ZoneInfo.")


_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+)*")


def _read_zone(*zone: Node) -> tzinfo | None:
    match zone:
        case ():
            return None
        case (str(key),) if _ZONE_KEY.fullmatch(key):
            return ZoneInfo(key)
        case (int(), int(), int()):
            return timezone(_read_timedelta(*zone))
        case (int(days), int(seconds), int(microseconds), str(name)):
            return timezone(_read_timedelta(days, seconds, microseconds), name)
        case _:
            raise ValueError("no time zone")


_PATHS: Final[dict[str, type[PurePath]]] = {
    cls.__name__: cls for cls in (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)
}


def _dump_path(value: PurePath) -> list[Node]:
    text = str(value)
    if type(value)(text) != value:
        raise Refused("has no text form of its own", "Store str(value).")
    try:
        text.encode()
    except UnicodeEncodeError:
        return [type(value).__name__, *_dump_text(text), "hex"]
    return [type(value).__name__, text]


def _read_path(kind: str, text: str, form: str = "text") -> PurePath:
    return _PATHS[kind](_read_text(text) if form == "hex" else text)


SCALARS: Final[dict[type[Any], Scalar]] = {
    int: Scalar("int", lambda value: [f"{value:x}"], _read_int),
    float: Scalar("float", _dump_float, _read_float),
    str: Scalar("str", _dump_text, _read_text),
    complex: Scalar("complex", _dump_complex, _read_complex),
    bytes: Scalar("bytes", _dump_bytes, _read_bytes),
    bytearray: Scalar("bytearray", _dump_bytes, _read_bytearray),
    datetime: Scalar("datetime", _dump_moment, _read_datetime),
    date: Scalar("date", _dump_date, date.fromisoformat),
    time: Scalar("time", _dump_moment, _read_time),
    timedelta: Scalar("timedelta", _dump_timedelta, _read_timedelta),
    Decimal: Scalar("decimal", _dump_str, Decimal),
    UUID: Scalar("uuid", _dump_str, UUID),
    **dict.fromkeys(_PATHS.values(), Scalar("path", _dump_path, _read_path)),
}
"""By exact type. Integers, floats and text come here only when JSON can't carry them."""
