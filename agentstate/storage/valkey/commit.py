"""Sending a commit, and what its replies mean.

A commit whose reply was lost may have been done. It is sent again, on a new connection, until
it is answered: the script does a commit id only once, and answers for it again, for at least
30 seconds. What isn't decided by the deadline, well before that, is a `CommitUnknownError`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agentstate.errors import (
    CommitUnknownError,
    ConflictError,
    LeaseLostError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnsupportedValueError,
    ValueTooLargeError,
)
from agentstate.storage.valkey.decode import committed_of, lacking, plain_name, stamp_of
from agentstate.storage.valkey.faults import LostError, unreachable
from agentstate.storage.valkey.scripts import script

if TYPE_CHECKING:
    from agentstate.storage.protocol import Committed, Part
    from agentstate.storage.valkey.connections import LoopConnections
    from agentstate.storage.valkey.encode import CommitCall

__all__ = ["commit_part"]

DECIDED_WITHIN = 10.0
FIRST_PAUSE = 0.02
LAST_PAUSE = 0.5
RESENT = 1


async def commit_part(here: LoopConnections, key: bytes, part: Part, commit_id: int, call: CommitCall) -> Committed:
    """Commit one part and return what became of it.

    Raises:
        StateError: see `Storage.commit`.
    """
    try:
        reply = await here.run(script("commit"), key, *call.arguments)
    except (LostError, StorageError) as error:
        reply = await _decide(here, key, part, commit_id, call, error)
    if type(reply) is bytes:
        return committed_of(part.scope, reply, commit_id, call.logs, call.counters)
    raise _refusal(part, reply, call)


async def _decide(
    here: LoopConnections, key: bytes, part: Part, commit_id: int, call: CommitCall, error: Exception
) -> Any:
    """Send a commit that failed again, until it is answered or the time is over."""
    deadline = here.loop.time() + DECIDED_WITHIN
    pause, sent = FIRST_PAUSE, False
    while True:
        if isinstance(error, LostError):
            sent = sent or error.sent
            error = unreachable(here.location, error)
        elif isinstance(error, StorageUnavailableError):
            deadline = deadline if sent else 0.0
        elif isinstance(error, StorageFullError) or not sent:
            raise error  # The script was asked, didn't know this commit, and couldn't make it.
        else:
            raise _unknown(here, part, commit_id, error) from error
        if here.loop.time() + pause > deadline:
            raise _unknown(here, part, commit_id, error) if sent else error
        call.arguments[RESENT] = "1"
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)
        try:
            return await here.run(script("commit"), key, *call.arguments)
        except (LostError, StorageError) as again:
            error = again


def _unknown(here: LoopConnections, part: Part, commit_id: int, error: Exception) -> CommitUnknownError:
    return CommitUnknownError(
        f"Valkey at {here.location} was lost while {part.scope} was committed ({error}).",
        commit_id=commit_id,
        scope=part.scope,
        remedy="Ask storage.outcome(scope, commit_id) when the server is back.",
    )


def _refusal(part: Part, reply: list[Any], call: CommitCall) -> Exception:
    scope = part.scope
    what, *said = (one.decode() for one in reply)
    if what == "lost":
        return LeaseLostError(
            f"Another holder took the turn of {scope}; nothing was stored.",
            scope=scope,
            remedy="Run the handler again, and keep it shorter than its lease can be renewed.",
        )
    if what == "damaged":
        return lacking(scope, reply[1])
    if what == "edited":
        log, position, found = _name(reply[1]), int(said[1]), said[2]
        expected = next(one.seq for one in part.edits if (one.log, one.position) == (log, position))
        return ConflictError(
            f"Item {position} of {log} in {scope} is not the one that was read.",
            scope=scope,
            expected=expected,
            found=None if found == "-" else int(found),
            what=log,
        )
    if what == "no counter":
        entry = _entry(call, said[0])
        return UnsupportedValueError(
            f"{entry} of {scope} is no counter.",
            path=entry,
            remedy="Set it anew with increment only, or use update(key, fn).",
        )
    if what == "overflow":
        return ValueTooLargeError(f"The counter {_entry(call, said[0])} of {scope} would leave 64 bits.", scope=scope)
    return _conflict(part, said, reply, call)


def _name(field: bytes) -> str:
    return plain_name(field.partition(b":")[2])


def _entry(call: CommitCall, number: str) -> str:
    section, _, key = list(call.fields)[int(number) - 1][1:].partition(b"/")
    return f"{plain_name(section)}/{key.decode()}"


def _conflict(part: Part, said: list[str], reply: list[Any], call: CommitCall) -> ConflictError:
    scope, kind = part.scope, said[0]
    if kind == "once":
        return ConflictError(f"The idempotency key is done already in {scope}.", scope=scope, what="once")
    if kind == "birth":
        return ConflictError(
            f"{scope} was dropped, expired or made anew since it was read.",
            scope=scope,
            expected=part.birth,
            found=0 if said[1] == "-" else int(said[1], 16),
            what="birth",
        )
    found = None if said[1] == "-" else stamp_of(reply[2])
    if kind == "base":
        what, expected = "the state", part.base
    else:
        what = _entry(call, said[2]) if kind == "entry" else _name(reply[3])
        expected = next(
            (one.stamp for one in part.checks if _name_of(one) == what and one.stamp != found),
            None,
        )
    return ConflictError(
        f"{what} of {scope} was {expected or 'absent'} when it was read and is {found or 'absent'} now.",
        scope=scope,
        expected=expected,
        found=found,
        what=what,
    )


def _name_of(check: Any) -> str:
    return f"{check.name}/{check.key}" if check.kind == "entry" else check.name
