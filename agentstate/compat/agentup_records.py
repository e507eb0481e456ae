"""What AgentUp itself wrote: one JSON document for each context, all of it rewritten at each change.

A file ``<storage_dir>/<context id>.json``, or on Valkey a string ``<key_prefix><context id>``. Records
are only read here. Which of them were imported is noted beside what they became, so that a
state that was cleared afterwards isn't taken for one that was forgotten.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

import aiofiles

from agentstate import codec
from agentstate.errors import DamagedStateError, StateError, UnsupportedError
from agentstate.exchange.importing import Whole
from agentstate.exchange.lines import Entry, Head, Item
from agentstate.models import Message
from agentstate.scope import StateScope, check_id
from agentstate.state.history import LOG
from agentstate.storage.file import FileStorage
from agentstate.storage.protocol import Wants
from agentstate.storage.valkey import ValkeyStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.state.store import Store
    from agentstate.storage.protocol import Storage

IMPORTED: Final = StateScope.custom("agentup-imported")
"""Which records were imported, and as which state: variables named by AgentUp's ids."""

CHECKED: Final = 10_000
NAME_BYTES: Final = 255
FIELDS: Final = frozenset({"context_id", "created_at", "updated_at", "history"})
NOTHING: Final = Wants((), (), (), 0)

_checked: WeakKeyDictionary[Storage, OrderedDict[StateScope, None]] = WeakKeyDictionary()


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


def is_record(data: bytes) -> bool:
    """Whether this looks like what AgentUp wrote."""
    try:
        fields = json.loads(data)
    except ValueError:
        return False
    return isinstance(fields, dict) and cast("dict[str, Any]", fields).keys() >= FIELDS


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
    located = type(error)(f"{where}: {str(error).rstrip('.')}.")
    located.remedy = error.remedy
    return located


async def refuse_record(store: Store, scope: StateScope, *, new: bool | None = None) -> None:
    """Raise if a state isn't there because AgentUp's record of it was not imported.

    Args:
        store: where the state is looked for.
        scope: of the state.
        new: whether the state is absent, where that is known.

    Raises:
        UnsupportedError: such a record lies at the state's address; names how to import it.
    """
    storage = store.storage
    known = _checked.setdefault(storage, OrderedDict())
    if scope in known:
        return
    # Plain handlers' ids were taken as they were; their siblings' began with what is a scope's kind here.
    for context_id in () if new is False else (scope.id, scope.text):
        if await _has_record(storage, context_id) and await _is_missed(store, scope, context_id):
            raise _refusal(storage, scope, context_id)
    known[scope] = None
    if len(known) > CHECKED:
        known.popitem(last=False)


async def _has_record(storage: Storage, context_id: str) -> bool:
    data: bytes | None = None
    if isinstance(storage, ValkeyStorage):
        data = await storage.legacy_record(context_id)
    elif isinstance(storage, FileStorage):
        data = await _file(Path(storage.location), context_id)
    return data is not None and is_record(data)


async def _file(directory: Path, context_id: str) -> bytes | None:
    name = f"{context_id}.json"
    if "/" in name or len(name.encode()) > NAME_BYTES:
        return None  # AgentUp couldn't have written it there
    try:
        async with aiofiles.open(directory / name, "rb") as file:
            return await file.read()
    except OSError:
        return None


async def _is_missed(store: Store, scope: StateScope, context_id: str) -> bool:
    there = await store.read(scope, NOTHING)
    return not there.birth and await imported_as(store, context_id) != scope.text


async def imported_as(store: Store, context_id: str) -> str | None:
    """Return the scope, as text, that a record was imported as."""
    at = ("variables", context_id)
    noted = (await store.read(IMPORTED, Wants((), (at,), (), 0))).entries.get(at)
    return None if noted is None else str(codec.decode(cast("bytes", noted.value)))


def _refusal(storage: Storage, scope: StateScope, context_id: str) -> UnsupportedError:
    siblings = ", siblings=True" if context_id != scope.id else ""
    return UnsupportedError(
        f"AgentUp's own record of {context_id!r} lies at {storage.location} and was not imported.",
        scope=scope,
        remedy=f"Import what lies there, once: await import_agentup(context.storage, context{siblings}), "
        "from agentstate.compat.agentup.",
    )
