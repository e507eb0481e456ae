"""What AgentUp itself wrote: one JSON document for each context, all of it rewritten at each change.

Where such records lie, and how they are noticed, is in `agentstate.state.legacy`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

from agentstate import codec
from agentstate.errors import DamagedStateError, StateError
from agentstate.exchange.importing import Whole
from agentstate.exchange.lines import Entry, Head, Item
from agentstate.models import Message
from agentstate.scope import check_id
from agentstate.state.history import LOG
from agentstate.state.legacy import is_record

if TYPE_CHECKING:
    from collections.abc import Mapping

REMEDY: Final = "Mend it or move it away, and start again: what was imported is skipped."


def whole_of(data: bytes, where: str) -> Whole:
    """Return the conversation that a record holds.

    Raises:
        DamagedStateError: it is no record of AgentUp's.
        StateError: it holds a value or an id that can't be stored.
    """
    try:
        if not is_record(data):
            raise DamagedStateError("is no record of AgentUp's")
        return _whole(json.loads(data))
    except StateError as error:
        raise _at(where, error) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _at(where, DamagedStateError(f"is no record of AgentUp's: {error!r}")) from None


def _whole(fields: dict[str, Any]) -> Whole:
    context_id = fields["context_id"]
    check_id(context_id, "conversation")
    created, updated = (moment_of(fields[key]).timestamp() for key in ("created_at", "updated_at"))
    entries = [
        Entry(section, key, codec.encode(value))
        for section in ("variables", "metadata")
        for key, value in cast("dict[str, Any]", fields.get(section) or {}).items()
    ]
    messages = [message_of(number, one) for number, one in enumerate(fields["history"])]
    items = [Item(LOG, one.id, codec.encode(one.to_json())) for one in messages]
    return Whole(Head(context_id, fields.get("user_id") or None, {}, created, updated, None), entries, items)


def message_of(number: int, fields: Mapping[str, Any]) -> Message:
    """Return a message as AgentUp kept it; the same one has the same id whenever it is read."""
    known = fields.get("id")
    if known is None:
        text = json.dumps([number, dict(fields)], sort_keys=True, default=str)
        known = blake2b(text.encode(), digest_size=12).hexdigest()
    told = fields.get("timestamp")
    return Message.new(
        fields["role"],
        _content(fields.get("content")),
        id=known,
        metadata=fields.get("metadata") or {},
        timestamp=moment_of(told) if isinstance(told, str) else told,
    )


def _content(told: Any) -> str | list[Any]:
    if told is None:
        return ""
    return told if isinstance(told, (str, list)) else [told]  # pyright: ignore[reportUnknownVariableType]


def moment_of(text: str | datetime) -> datetime:
    """Return a moment; early AgentUp wrote UTC without saying so."""
    moment = datetime.fromisoformat(text) if isinstance(text, str) else text
    return moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)


def _at(where: str, error: StateError) -> StateError:
    located = type(error)(f"{where}: {str(error).rstrip('.')}.", remedy="" if error.remedy else REMEDY)
    located.remedy = error.remedy or REMEDY
    return located
