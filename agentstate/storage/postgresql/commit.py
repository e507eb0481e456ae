"""Sending a commit, and what its answers mean.

A commit whose reply was lost may have been done. It is sent again, on a new connection, until
it is answered: the function looks the commit id up, under the lock of the state's row, and sees
to it that what is left of an earlier sending isn't done after this one. What isn't decided by
10 seconds after the first loss is a `CommitUnknownError`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import (
    CommitUnknownError,
    ConflictError,
    LeaseLostError,
    StorageError,
    StorageUnavailableError,
)
from agentstate.storage.postgresql.encode import RESENT, CommitCall, no_counter, overflow
from agentstate.storage.postgresql.faults import LostError, unreachable
from agentstate.storage.protocol import CutTail, EditItem, Stamp, TrimHead

if TYPE_CHECKING:
    from agentstate.storage.postgresql.connections import LoopConnections

__all__ = ["send"]

DECIDED_WITHIN: Final = 10.0
FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5


async def send(here: LoopConnections, sql: str, call: CommitCall, commit_id: int) -> Any:
    """Make a commit and return the row that says what became of it.

    Raises:
        StateError: see `Storage.commit`.
    """
    while True:
        row = await _decide(here, sql, call, commit_id)
        status = row["status"]
        if status in ("ok", "again"):
            return row
        if status == "fenced":
            raise _unknown(here, call, commit_id, StorageError("this commit id was used before"))
        if status != "retry":
            raise _refusal(call, row)


async def _decide(here: LoopConnections, sql: str, call: CommitCall, commit_id: int) -> Any:
    deadline, pause, sent = 0.0, FIRST_PAUSE, False
    while True:
        try:
            (row,) = await here.run(sql, *call.arguments)
        except LostError as lost:
            sent = sent or lost.sent
            error: Exception = unreachable(here.location, lost)
        except StorageUnavailableError as unavailable:
            if not sent:
                raise
            error = unavailable
        except StorageError as other:
            if not sent:
                raise
            raise _unknown(here, call, commit_id, other) from other
        else:
            return row
        deadline = deadline or here.loop.time() + DECIDED_WITHIN
        if here.loop.time() + pause > deadline:
            raise _unknown(here, call, commit_id, error) if sent else error
        call.arguments[RESENT] = sent
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)


def _unknown(here: LoopConnections, call: CommitCall, commit_id: int, error: Exception) -> CommitUnknownError:
    scope = call.parts[0].scope
    return CommitUnknownError(
        f"PostgreSQL at {here.location} was lost while {scope} was committed ({error}).",
        commit_id=commit_id,
        scope=scope,
        remedy="Ask storage.outcome(scope, commit_id) when the server is back.",
    )


def _refusal(call: CommitCall, row: Any) -> Exception:
    part = call.parts[int(row["part"]) - 1]
    scope, what = part.scope, row["what"]
    if row["status"] == "lost":
        return LeaseLostError(
            f"Another holder took the turn of {scope}; nothing was stored.",
            scope=scope,
            remedy="Run the handler again, and keep it shorter than its lease can be renewed.",
        )
    if row["status"] == "refused":
        at = [one for counters in call.counters for one in counters][int(row["place"]) - 1]
        return no_counter(scope, *at) if what == "no counter" else overflow(scope, *at)
    return _conflict(call, row)


def _conflict(call: CommitCall, row: Any) -> ConflictError:
    part = call.parts[int(row["part"]) - 1]
    scope, what, version, commit_id = part.scope, row["what"], row["found_version"], row["found_commit"]
    if what == "once":
        return ConflictError(f"The idempotency key is done already in {scope}.", scope=scope, what="once")
    if what == "birth":
        return ConflictError(
            f"{scope} was dropped, expired or made anew since it was read.",
            scope=scope,
            expected=part.birth,
            found=commit_id,
            what="birth",
        )
    if what == "edit":
        shrinks: list[CutTail | TrimHead | EditItem] = []
        for one in call.parts:
            shrinks += (*one.cuts, *one.trims, *one.edits)
        edit = shrinks[int(row["place"]) - 1]
        return ConflictError(
            f"Item {edit.position} of {edit.log} in {scope} is not the one that was read.",
            scope=scope,
            expected=edit.seq if isinstance(edit, EditItem) else None,
            found=version,
            what=edit.log,
        )
    found = None if version is None else Stamp(version, commit_id)
    expected, name = part.base, "the state"
    if what == "check":
        check = [check for one in call.parts for check in one.checks][int(row["place"]) - 1]
        expected, name = check.stamp, f"{check.name}/{check.key}" if check.kind == "entry" else check.name
    return ConflictError(
        f"{name} of {scope} was {expected or 'absent'} when it was read and is {found or 'absent'} now.",
        scope=scope,
        expected=expected,
        found=found,
        what=name,
    )
