"""What the journal says of a commit, as bytes.

A record is one JSON object: who and why (``at``, ``actor``, ``reason``, ``handler``, ``turn``,
``correlation``, ``parent``, ``operation``) and what changed (``set``, ``delete``, ``increment``,
``append``, ``cut``, ``trim``, ``edit``, ``clear``). A value that is plain JSON stands in it as it is;
any other as ``{"$bytes": base64}``. The engine adds what only it knows: the stamp, the ``seq``
of appended items, and the items that were removed.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate import codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.storage.protocol import Part

RARE = ("delete", "increment", "cut", "trim", "edit")
PLAIN_JSON = frozenset(b'{["-0123456789tfn')


class Origin(NamedTuple):
    """Who commits, and why."""

    operation: str
    handler: str = ""
    turn: str = ""
    actor: str = ""
    reason: str = ""
    correlation: str = ""
    parent: str = ""


@cache
def _orjson() -> Any:
    import orjson

    return orjson


def encode_record(part: Part, origin: Origin, at: float) -> bytes:
    """Return the journal record of a part."""
    orjson = _orjson()
    operation, handler, turn, actor, reason, correlation, parent = origin
    record: dict[str, Any] = {"at": at, "operation": operation}
    if turn:
        record |= {"handler": handler, "turn": turn, "correlation": correlation}
    if actor or reason or parent:
        record |= {name: text for name, text in (("actor", actor), ("reason", reason), ("parent", parent)) if text}
    if part.clear:
        record["clear"] = True
    if part.puts:
        values: dict[str, dict[str, Any]] = {}
        for section, key, value, _ in part.puts:
            values.setdefault(section, {})[key] = _shown(value, orjson.Fragment)
        record["set"] = values
    if part.appends:
        record["append"] = [one[:2] for one in part.appends]  # log and id
    if part.deletes or part.increments or part.cuts or part.trims or part.edits:
        for name in RARE:
            if changes := getattr(part, f"{name}s"):
                # orjson refuses named tuples; an edit's new value stands in the log
                record[name] = [change[:3] for change in changes]
    return codec.compact(orjson.dumps(record))


def _shown(value: bytes, fragment: Callable[[bytes], Any]) -> Any:
    if value and value[0] in PLAIN_JSON:
        return fragment(value)
    return {"$bytes": b64encode(value).decode()}


def encode_failure(
    origin: Origin, at: float, error: BaseException, once: str | None, messages: list[dict[str, Any]]
) -> bytes:
    """Return the record a failed turn leaves: what went wrong, and the messages it had added."""
    record = {
        "at": at,
        "operation": "failed",
        "handler": origin.handler,
        "turn": origin.turn,
        "actor": origin.actor,
        "correlation": origin.correlation,
        "error": f"{type(error).__module__}.{type(error).__qualname__}",
        "once": once,
        "messages": messages,
    }
    return codec.compact(_orjson().dumps(record, default=str))


def decode_record(data: bytes) -> dict[str, Any]:
    """Return a record as it was encoded."""
    record: dict[str, Any] = _orjson().loads(data)
    return record
