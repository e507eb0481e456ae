"""The lines of an export: what each says, as bytes and back.

Values are taken over as they are stored, so that neither end needs the application's own types.
Nothing here reads or writes files.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from agentstate import codec
from agentstate.codec.envelope import MARK, MAX_VALUE_BYTES, PLAIN, RAW, TAGGED, pack, unpack
from agentstate.errors import DamagedStateError, NewerFormatError, StateError, UnsupportedValueError
from agentstate.models import Message
from agentstate.scope import check_id
from agentstate.state.history import LOG as HISTORY

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
COUNTER: Final = range(-(2**63), 2**63)

Line = dict[str, Any]


class Head(NamedTuple):
    """The beginning of one conversation. Times are seconds since the epoch."""

    id: str
    owner: str | None
    labels: Mapping[str, str]
    created_at: float
    updated_at: float
    expires_at: float | None


class Entry(NamedTuple):
    """One entry: bytes as they are stored, or the number of a counter."""

    section: str
    key: str
    value: bytes | int
    expires_at: float | None = None


class Item(NamedTuple):
    """One item of a log, as it is stored."""

    log: str
    id: str
    value: bytes
    expires_at: float | None = None


class Count(NamedTuple):
    """How much a file holds; its last line."""

    conversations: int = 0
    entries: int = 0
    items: int = 0


Record = Head | Entry | Item | Count


@cache
def _json() -> Any:
    import orjson

    return orjson


def first_line(now: float) -> bytes:
    """Return the line that says what the file is."""
    return _line({"agentstate": "export", "version": VERSION, "at": _iso(now)})


def write(record: Record) -> bytes:
    """Return the line of a record.

    Raises:
        DamagedStateError: a stored value is not what was written.
    """
    if isinstance(record, Head):
        times = {key: _iso(getattr(record, key)) for key in ("created_at", "updated_at", "expires_at")}
        return _line({"conversation": record.id, "owner": record.owner, "labels": dict(record.labels), **times})
    if isinstance(record, Count):
        return _line({"end": True, **record._asdict()})
    line: Line = _shown(record.value)
    if isinstance(record, Entry):
        line = {"section": record.section, "key": record.key, **line}
    else:
        line = {"log": record.log, "id": record.id, **line}
    if record.expires_at is not None:
        line["expires_at"] = _iso(record.expires_at)
    return _line(line)


def _shown(value: bytes | int) -> Line:
    if isinstance(value, int):
        return {"counter": value}
    kind, payload = unpack(value, MAX_VALUE_BYTES) if value[:1] == MARK else (PLAIN, value)
    if kind == RAW:
        return {"bytes": b64encode(payload).decode()}
    try:
        return {"tagged" if kind == TAGGED else "json": _json().loads(payload)}
    except ValueError:
        raise DamagedStateError("A stored value is no JSON.", remedy="Restore it from a backup.") from None


def check_first(line: bytes) -> None:
    """Raise unless this line begins an export that this release can read.

    Raises:
        DamagedStateError: it begins something else.
        NewerFormatError: a newer release wrote it.
    """
    head = _object(line)
    version = head.get("version")
    if head.get("agentstate") != "export" or type(version) is not int:
        raise DamagedStateError("is not an export of agentstate", remedy="Pass a file that export() wrote.")
    if version > VERSION:
        raise NewerFormatError(f"has format {version}; this release knows {VERSION}", remedy="Upgrade agentstate.")


def read(line: bytes) -> Record:
    """Return the record of a line.

    Raises:
        DamagedStateError: it is none.
        StateError: a value or an id in it can't be stored.
    """
    one = _object(line)
    try:
        if "conversation" in one:
            return _head(one)
        if "section" in one:
            return Entry(_text(one["section"]), _text(one["key"]), _value(one), _seconds(one.get("expires_at")))
        if "log" in one:
            return _item(one)
        if one.get("end") is True:
            return Count(*(_number(one[name]) for name in Count._fields))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StateError):
            raise
        raise DamagedStateError(f"lacks something, or has it wrong: {error}") from None
    raise DamagedStateError("is no line of an export")


def _head(one: Line) -> Head:
    check_id(one["conversation"], "conversation")
    labels = one["labels"]
    if type(labels) is not dict:
        raise TypeError("labels")
    created, updated, expires = (_seconds(one[key]) for key in ("created_at", "updated_at", "expires_at"))
    owner = None if one["owner"] is None else _text(one["owner"])
    checked = {_text(key): _text(value) for key, value in cast("Line", labels).items()}
    return Head(one["conversation"], owner, checked, created or 0.0, updated or 0.0, expires)


def _item(one: Line) -> Item:
    log, item_id, value = _text(one["log"]), _text(one["id"]), _value(one)
    if not isinstance(value, bytes):
        raise TypeError("a counter is no item")
    if log == HISTORY:
        _check_message(item_id, value)
    return Item(log, item_id, value, _seconds(one.get("expires_at")))


def _check_message(item_id: str, value: bytes) -> None:
    """Raise unless a line that was perhaps written by hand is a message."""
    data = codec.decode(value)
    message = Message.from_json(data if type(data) is dict else {})  # pyright: ignore[reportUnknownArgumentType]
    if message.id != item_id or not all(type(message[key]) is str for key in ("role", "timestamp")):
        raise TypeError("its id, role or timestamp")
    if type(message["content"]) not in (str, list) or type(message["metadata"]) is not dict:
        raise TypeError("its content or metadata")


def _value(one: Line) -> bytes | int:
    if "json" in one:
        return codec.encode(one["json"])
    if "counter" in one:
        return _number(one["counter"])
    if "bytes" in one:
        return pack(RAW, b64decode(_text(one["bytes"]), validate=True), MAX_VALUE_BYTES)
    data = pack(TAGGED, _json().dumps(one["tagged"]), MAX_VALUE_BYTES)
    with suppress(UnsupportedValueError):  # a type that only the application knows
        codec.decode(data)
    return data


def _number(value: object) -> int:
    if type(value) is not int or value not in COUNTER:
        raise TypeError(f"{value!r} is no number of 64 bits")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is no text")
    return value


def _object(line: bytes) -> Line:
    try:
        found = _json().loads(line)
    except ValueError as error:
        raise DamagedStateError(f"is no JSON: {str(error).partition(':')[0]}") from None
    if type(found) is not dict:
        raise DamagedStateError("is no line of an export")
    return cast("Line", found)


def _line(one: Line) -> bytes:
    return cast("bytes", _json().dumps(one)) + b"\n"


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def _seconds(text: object) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(_text(text))
    if moment.utcoffset() is None:
        raise ValueError(f"{text} has no offset from UTC")
    return moment.timestamp()
