"""The history of a conversation: messages on a log, through a frame.

A message's place is its ``position``: 1 for the first, unless the head was trimmed. Its ``seq``
is never used for another message. Messages that have expired read as absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate import codec
from agentstate.errors import ContextNotFoundError
from agentstate.models import Message
from agentstate.storage.protocol import Append
from agentstate.storage.records import new

if TYPE_CHECKING:
    from agentstate.scope import StateScope
    from agentstate.state.buffer import Buffer
    from agentstate.state.turn import Frame
    from agentstate.storage.protocol import LogItem

LOG = "history"


def position_of(place: int | Message) -> int:
    """Return the position that a message, or a number, stands for.

    Raises:
        ValueError: the message isn't stored yet, or the number isn't a position.
    """
    position = place.position if isinstance(place, Message) else place
    if position < 1:
        raise ValueError(f"{position!r} is no position of a message; positions begin at 1")
    return position


async def add(frame: Frame, scope: StateScope, message: Message, *, ttl: float | None, unique: bool) -> Message:
    """Append a message; return it with its position as this turn sees it."""
    return append(await frame.writable(scope), message, ttl=ttl, unique=unique)


def append(buffer: Buffer, message: Message, *, ttl: float | None, unique: bool) -> Message:
    """Append a message to a buffer that is ready for it."""
    log = buffer.logs.get(LOG) or buffer.log(LOG)
    message_id, data = message.stored()
    return message.at(0, log.append(new(Append, (LOG, message_id, data, ttl, unique))))


async def read(
    frame: Frame, scope: StateScope, limit: int | None, before: int | Message | None, after: int | Message | None
) -> list[Message]:
    """Return messages, oldest first.

    ``before`` and ``after`` bound the range, both exclusive. Of more than ``limit`` messages in
    it the last are returned; with ``after`` alone the first.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit is {limit}; it can't be negative")
    start = position_of(after) + 1 if after is not None else None
    end = position_of(before) if before is not None else None
    if limit is None or limit == 0:
        items = await frame.items(scope, LOG, start, end, tail=limit)
        return [] if limit == 0 else _live(frame, items)
    if start is not None and end is None:
        return await _first(frame, scope, start, limit)
    return await _last(frame, scope, start or 1, end, limit)


def last(buffer: Buffer, limit: int, now: float) -> list[Message] | None:
    """Return the last messages if nothing must be loaded for them, else ``None``."""
    log = buffer.log(LOG)
    items = log.tail(limit)
    if items is None:
        return None
    found = decode_live(items, now)
    # where some have expired, older ones take their places
    return found if len(found) == limit or len(items) < limit else None


async def _last(frame: Frame, scope: StateScope, start: int, end: int | None, limit: int) -> list[Message]:
    if end is None:
        end = await frame.next_position(scope, LOG, tail=limit)
    want = limit
    while True:
        low = max(start, end - want)
        found = _live(frame, await frame.items(scope, LOG, low, end))
        if len(found) >= limit or low <= max(start, await frame.first_position(scope, LOG)):
            return found[-limit:]
        want *= 2


async def _first(frame: Frame, scope: StateScope, start: int, limit: int) -> list[Message]:
    end = await frame.next_position(scope, LOG)
    want = limit
    while True:
        found = _live(frame, await frame.items(scope, LOG, start, min(start + want, end)))
        if len(found) >= limit or start + want >= end:
            return found[:limit]
        want *= 2


def _live(frame: Frame, items: list[LogItem]) -> list[Message]:
    return decode_live(items, frame.turn.store.clock())


def decode_live(items: list[LogItem], now: float) -> list[Message]:
    """Return the messages in log items, without those that have expired."""
    if not items:
        return []
    seqs, positions, _, values, expiries = zip(*items, strict=True)
    if b"" in values or expiries.count(None) < len(items):
        live = [item for item in items if item.value and (item.expires_at is None or item.expires_at > now)]
        return [decode(item) for item in live]
    return Message.many_from_json(codec.decode_many(values), seqs, positions)


def decode(item: LogItem) -> Message:
    """Return the message in a log item."""
    return Message.from_json(codec.decode(item.value), item.seq, item.position)


async def edit(frame: Frame, scope: StateScope, place: int | Message, message: Message) -> Message:
    """Replace a message; what it was stays in the journal."""
    item = await _item(frame, scope, position_of(place))
    buffer = await frame.writable(scope)
    buffer.log(LOG).edit(item, message.stored()[1])
    return message.at(item.seq, item.position)


async def get(frame: Frame, scope: StateScope, place: int | Message) -> Message:
    """Return one message.

    Raises:
        ContextNotFoundError: there is none.
    """
    return decode(await _item(frame, scope, position_of(place)))


async def _item(frame: Frame, scope: StateScope, position: int) -> LogItem:
    items = await frame.items(scope, LOG, position, position + 1)
    if not items or not items[0].value:
        raise ContextNotFoundError(f"{scope} has no message {position}.", scope=scope)
    return items[0]


async def truncate(frame: Frame, scope: StateScope, place: int | Message) -> int:
    """Remove a message and all after it; return how many."""
    position = position_of(place)
    end = await frame.next_position(scope, LOG)
    first = await frame.first_position(scope, LOG)
    buffer = await frame.writable(scope)
    buffer.log(LOG).cut(position)
    return max(end - max(position, first), 0)


async def trim(frame: Frame, scope: StateScope, keep: int) -> int:
    """Remove the oldest messages beyond the last ``keep``; return how many."""
    end = await frame.next_position(scope, LOG)
    first = await frame.first_position(scope, LOG)
    buffer = await frame.writable(scope)
    gone = max(end - first - keep, 0)
    if gone:
        buffer.log(LOG).trim(first + gone)
    return gone
