"""What failed turns leave: one record each, with the error and the messages they had added.

Nothing of a failed turn is in the state, but what was said to it is on somebody's screen. So the
storage keeps a record of the last failures, and `with_failed` shows their messages where they were said.
A turn fails when its handler raises, is cancelled, or when its commit is refused. An unreachable
storage isn't asked to keep a record, too.

Records are written when the turn is given back, in the same trip, by whoever ends the turn.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from agentstate import codec
from agentstate.errors import ConflictError, StateError, StorageError
from agentstate.models import FailedMessage
from agentstate.observability import warning
from agentstate.state import history
from agentstate.state.record import decode_record, encode_failure
from agentstate.state.settle import settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.models import Message
    from agentstate.scope import StateScope
    from agentstate.state.record import Origin
    from agentstate.state.store import Store
    from agentstate.state.turn import Frame, Turn

BEYOND = "\uffff"
"""Comes after every time."""


async def fail(store: Store, turn: Turn, error: BaseException) -> None:
    """End a turn whose handler failed, with a record of it."""
    await abandon_quietly(store, turn, _failure(store, turn, error, added(turn.frame)))


async def refused(store: Store, turn: Turn, error: BaseException) -> None:
    """End a turn that can't be committed, with a record of it where the storage still answers."""
    told = isinstance(error, StateError) and not isinstance(error, StorageError)
    if told and turn.origin.operation == "turn" and not _may_be_second(turn, error):
        await fail(store, turn, error)
    else:
        await abandon_quietly(store, turn)


async def note(store: Store, turn: Turn, error: BaseException, messages: list[dict[str, Any]]) -> None:
    """Keep a record of a turn that has ended already."""
    try:
        await settle(store.storage.leave(turn.scope, 0, failure=_failure(store, turn, error, messages)))
    except Exception:  # noqa: BLE001 - the turn's own error is raised; this one is in the log
        warning("a failed turn couldn't be recorded", **who(turn.origin, turn.scope), exc_info=True)


async def abandon_quietly(store: Store, turn: Turn, failure: bytes | None = None) -> None:
    """End a turn for an error that the caller must see, whatever the storage says to this."""
    try:
        await store.abandon(turn, failure)
    except Exception:  # noqa: BLE001 - the first error is raised; this one is in the log
        warning("a turn couldn't be given back", **who(turn.origin, turn.scope), exc_info=True)


def _may_be_second(turn: Turn, error: BaseException) -> bool:
    """Whether another delivery of the same idempotency key may have been first, which is no failure."""
    return turn.once is not None and isinstance(error, ConflictError)


def _failure(store: Store, turn: Turn, error: BaseException, messages: list[dict[str, Any]]) -> bytes:
    return encode_failure(turn.origin, store.clock(), error, turn.once_key, messages)


def added(frame: Frame) -> list[dict[str, Any]]:
    """Return the messages that a frame's own state would have got."""
    buffer = frame.buffers.get(frame.turn.scope)
    found = buffer.logs.get(history.LOG) if buffer is not None else None
    return [codec.decode(one.value) for one in found.pending] if found is not None else []


def who(origin: Origin, scope: StateScope) -> dict[str, str]:
    """Return what a log event says of a turn."""
    return {
        "handler": origin.handler,
        "scope": str(scope),
        "turn": origin.turn,
        "correlation_id": origin.correlation or origin.turn,
    }


async def failed_turns(store: Store, scope: StateScope, principal: str | None) -> list[dict[str, Any]]:
    """Return the records that failed turns left, oldest first; of others' turns none."""
    records = [decode_record(one) for one in await store.storage.failures(scope)]
    return [one for one in records if principal is None or one.get("actor", "") in ("", principal)]


async def with_failed(
    frame: Frame, scope: StateScope, limit: int | None, before: int | Message | None, after: int | Message | None
) -> list[Message]:
    """Return messages as `history.read` does, those of failed turns among them."""
    stored = await history.read(frame, scope, limit, before, after)
    since = "" if after is None else await _time(frame, scope, after)
    until = BEYOND if before is None else await _time(frame, scope, before)
    records = await failed_turns(frame.turn.store, scope, frame.turn.principal)
    shown = _merged(stored, records, since, until)
    if limit is None:
        return shown
    return shown[:limit] if after is not None and before is None else shown[max(len(shown) - limit, 0) :]


async def _time(frame: Frame, scope: StateScope, place: int | Message) -> str:
    position = history.position_of(place)
    if position >= await frame.next_position(scope, history.LOG):
        return BEYOND
    items = await frame.items(scope, history.LOG, position, position + 1)
    return history.decode(items[0]).timestamp if items and items[0].value else ""


def _merged(stored: Sequence[Message], records: list[dict[str, Any]], since: str, until: str) -> list[Message]:
    """Return stored messages, in their order, and those of failed turns in between, by their times.

    A message that was stored after all, by a retry, is shown only where it is stored.
    """
    known = {one.id for one in stored}
    told = [
        FailedMessage(fields, str(record["error"]))
        for record in records
        for fields in record["messages"]
        if since <= fields["timestamp"] <= until
    ]
    times = list(accumulate((one.timestamp for one in stored), max))
    shown: list[Message] = list(stored)
    last = {one.id: one for one in told if one.id not in known}  # of several tries the last
    for one in sorted(last.values(), key=lambda one: one.timestamp, reverse=True):
        shown.insert(bisect_right(times, one.timestamp), one)
    return shown
