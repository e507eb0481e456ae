"""Values, parts and records as JSON, and exactly back.

A value that is plain JSON stands in the file as it is (``{"json": …}``), when reading it back
gives the same bytes; other text as ``{"text": "…"}``; anything else as ``{"b64": "…"}``. Stamps are
written as ``version-commit``, commit ids as 16 hexadecimal digits.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

import orjson

from agentstate.errors import UnsupportedValueError
from agentstate.storage.protocol import (
    KEEP,
    Append,
    CutTail,
    EditItem,
    Entry,
    Increment,
    JournalRecord,
    Kept,
    LogItem,
    OnceRecord,
    Part,
    Put,
    ScopeInfo,
    Stamp,
    TrimHead,
)
from agentstate.storage.records import new

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.storage.file.lines import Json
    from agentstate.storage.image import Image

PLAIN: Final = frozenset(b'{["-0123456789tfn')
READABLE_BYTES: Final = 64 * 1024


def dump(value: object, what: str, scope: StateScope) -> bytes:
    """Return JSON.

    Raises:
        UnsupportedValueError: a key or id holds what UTF-8 can't express.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise UnsupportedValueError(
            f"{what} of {scope} can't be written: {error}.", remedy="Keys and ids are text that UTF-8 can express."
        ) from error


# -- values ----------------------------------------------------------------------------------


def encode_value(value: bytes) -> Json:
    """Return a value as JSON."""
    if value and value[0] in PLAIN:
        if len(value) <= READABLE_BYTES:
            try:
                if orjson.dumps(orjson.loads(value)) == value:
                    return {"json": orjson.Fragment(value)}
            except (orjson.JSONDecodeError, orjson.JSONEncodeError):
                pass  # it only begins like JSON
        try:
            return {"text": value.decode()}
        except UnicodeDecodeError:
            pass
    return {"b64": b64encode(value).decode()}


def decode_value(data: Json) -> bytes:
    """Return the value that `encode_value` was given."""
    if "json" in data:
        return orjson.dumps(data["json"])
    if "text" in data:
        return str(data["text"]).encode()
    return b64decode(data["b64"], validate=True)


def encode_stamp(stamp: Stamp | None) -> str | None:
    """Return a stamp as text."""
    return None if stamp is None else str(stamp)


def decode_stamp(text: str | None) -> Stamp | None:
    """Return the stamp that `encode_stamp` was given."""
    return None if text is None else some_stamp(text)


def some_stamp(text: str) -> Stamp:
    """Return a stamp that is there."""
    version, _, commit_id = text.partition("-")
    return Stamp(int(version), int(commit_id, 16))


# -- parts -----------------------------------------------------------------------------------


def encode_part(part: Part) -> Json:
    """Return what a part changes; its conditions were checked and are not kept."""
    data: Json = {"clear": True} if part.clear else {}
    if part.cuts or part.trims or part.deletes or part.increments or part.edits:
        data.update(_encode_rarer(part))
    if part.puts:
        data["puts"] = [[section, key, encode_value(value), ttl] for section, key, value, ttl in part.puts]
    if part.appends:
        data["appends"] = [
            [log, item, encode_value(value), ttl, unique] for log, item, value, ttl, unique in part.appends
        ]
    if not (part.owner is part.parent is part.labels is part.ttl is KEEP):
        for name in ("owner", "parent", "labels", "ttl"):
            value = getattr(part, name)
            if value is not KEEP:
                data[name] = dict(value) if name == "labels" else value
    if not part.sliding:
        data["sliding"] = False
    if part.kept is not None:
        data["kept"] = [*part.kept[:3], dict(part.kept.firsts)]
    return data


def _encode_rarer(part: Part) -> Json:
    data: Json = {}
    for name in ("cuts", "trims", "deletes", "increments"):
        if changes := getattr(part, name):
            data[name] = [list(change) for change in changes]
    if part.edits:
        data["edits"] = [[one.log, one.position, one.seq, encode_value(one.value)] for one in part.edits]
    return data


def decode_part(scope: StateScope, data: Json) -> Part:
    """Return the part whose change this is, without conditions."""
    found: dict[str, Any] = {name: data.get(name, KEEP) for name in ("owner", "parent", "labels", "ttl")}
    return Part(
        scope=scope,
        clear=data.get("clear", False),
        cuts=[CutTail(*one) for one in data.get("cuts", ())],
        trims=[TrimHead(*one) for one in data.get("trims", ())],
        edits=[EditItem(log, at, seq, decode_value(value)) for log, at, seq, value in data.get("edits", ())],
        deletes=[(section, key) for section, key in data.get("deletes", ())],
        puts=[Put(section, key, decode_value(value), ttl) for section, key, value, ttl in data.get("puts", ())],
        increments=[Increment(*one) for one in data.get("increments", ())],
        appends=[
            Append(log, item, decode_value(value), ttl, unique)
            for log, item, value, ttl, unique in data.get("appends", ())
        ],
        sliding=data.get("sliding", True),
        kept=Kept(*data["kept"]) if "kept" in data else None,
        **found,
    )


# -- what a state consists of ----------------------------------------------------------------


def encode_entry(at: tuple[str, str], entry: Entry) -> list[Any]:
    """Return an entry with its section and key."""
    value = {"count": entry.value} if isinstance(entry.value, int) else encode_value(entry.value)
    return [*at, value, str(entry.stamp), entry.expires_at]


def decode_entry(data: list[Any]) -> tuple[tuple[str, str], Entry]:
    """Return the section and key, and the entry."""
    section, key, value, stamp, expires_at = data
    found = value["count"] if "count" in value else decode_value(value)
    return (section, key), Entry(found, some_stamp(stamp), expires_at)


def encode_item(item: LogItem, *, unique: bool = False) -> list[Any]:
    """Return a log item; ``unique`` says that its id is indexed."""
    return [item.seq, item.position, item.id, encode_value(item.value), item.expires_at, unique]


def decode_item(data: list[Any]) -> tuple[LogItem, bool]:
    """Return the item, and whether its id is indexed."""
    seq, position, item, value, expires_at, unique = data
    content = orjson.dumps(value["json"]) if "json" in value else decode_value(value)
    return new(LogItem, (seq, position, item, content, expires_at)), unique


def encode_once(once: OnceRecord) -> list[Any]:
    """Return what an idempotency key did."""
    result = None if once.result is None else encode_value(once.result)
    return [once.key, once.fingerprint, f"{once.commit_id:016x}", result, once.at]


def decode_once(data: list[Any]) -> OnceRecord:
    """Return the record that `encode_once` was given."""
    key, fingerprint, commit_id, result, at = data
    return OnceRecord(key, fingerprint, int(commit_id, 16), None if result is None else decode_value(result), at)


def encode_journal(record: JournalRecord) -> Json:
    """Return a journal record; its stamp and time stand in the commit around it."""
    data: Json = {"record": encode_value(record.record)}
    if record.ranges:
        data["ranges"] = {log: list(seqs) for log, seqs in record.ranges.items()}
    if record.removed:
        data["removed"] = {log: [encode_item(item) for item in items] for log, items in record.removed.items()}
    return data


def decode_journal(stamp: Stamp, at: float, data: Json) -> JournalRecord:
    """Return the journal record of a commit."""
    ranges = {log: (first, last) for log, (first, last) in data.get("ranges", {}).items()}
    removed = {log: tuple(decode_item(item)[0] for item in items) for log, items in data.get("removed", {}).items()}
    return JournalRecord(stamp, at, decode_value(data["record"]), ranges, removed)


def encode_info(info: ScopeInfo) -> Json:
    """Return what a listing says of a scope, but for its address."""
    return {
        "stamp": str(info.stamp),
        "owner": info.owner,
        "created_at": info.created_at,
        "updated_at": info.updated_at,
        "expires_at": info.expires_at,
        "labels": dict(info.labels),
        "entry_bytes": info.entry_bytes,
        "log_lengths": dict(info.log_lengths),
    }


def encode_image(image: Image) -> Json:
    """Return what a listing says of a state: `encode_info` of its `info`, in one step, since every commit needs it."""
    return {
        "stamp": str(image.stamp),
        "owner": image.owner,
        "created_at": image.created_at,
        "updated_at": image.updated_at,
        "expires_at": image.expires_at,
        "labels": image.labels,
        "entry_bytes": image.entry_bytes,
        "log_lengths": {name: len(log.items) for name, log in image.logs.items()},
    }


def decode_info(scope: StateScope, data: Json) -> ScopeInfo:
    """Return what `encode_info` was given."""
    fields: dict[str, Any] = {**data, "stamp": some_stamp(data["stamp"])}
    return ScopeInfo(scope, **fields)
