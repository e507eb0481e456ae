"""Deciding on a view and making it so, again if somebody was quicker.

A decision is made on the view kept from before, without asking the server, if there is one: the
insert finds out whether it was still good. What a kept view forbids is decided once more on a
fresh one before anybody hears of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from agentstate.errors import StateError, StorageUnavailableError
from agentstate.storage.mongodb.chain import MovedError, append, fresh, known, pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.connections import Document, LoopConnections
    from agentstate.storage.mongodb.view import View

__all__ = ["change", "look"]

T = TypeVar("T")
BELIEVED_AFTER: Final = 4
MOST_TRIES: Final = 200


async def change(
    here: LoopConnections,
    scope: StateScope,
    decide: Callable[[View], Awaitable[tuple[T, Document | None]]],
    *,
    commit_id: int | None = None,
    load: Callable[[View], Awaitable[None]] | None = None,
    looks: bool = False,
) -> T:
    """Let ``decide`` change a view, and insert the document that it returns; without one nothing changes.

    What ``load`` loads into the view before is kept when somebody else was quicker.
    With ``looks`` a fresh view is taken at once, which is one round trip more where nobody else
    has changed the state, and one less where somebody has.

    Raises:
        StateError: what ``decide`` raised on a fresh view, and what `append` raises.
    """
    async with here.lock(scope):
        for tries in range(MOST_TRIES):
            kept = known(here, scope) if tries == 0 and not looks else None
            sure = kept is None
            try:
                kept = kept or await fresh(here, scope)
                if load is not None:
                    await load(kept)
                view = kept.fork()
                decided, document = await _decided(decide, view, sure=sure)
                if document is not None:
                    await append(here, view, document, commit_id=commit_id)
                    return decided
                if sure:
                    here.keep(view)
                    return decided
                # A kept view isn't the last word.
            except MovedError as moved:
                await _again(here, scope, moved, tries, sure=sure)
            except BaseException:
                here.views.pop(scope, None)
                raise
    raise _too_busy(here, scope)


async def _again(here: LoopConnections, scope: StateScope, moved: MovedError, tries: int, *, sure: bool) -> None:
    """Get ready for another try, or raise what stands in the way of it."""
    if moved.why is not None:
        here.views.pop(scope, None)
        if tries >= BELIEVED_AFTER:
            raise moved.why from None
    if sure:
        await pause(tries)


async def _decided(
    decide: Callable[[View], Awaitable[tuple[T, Document | None]]], view: View, *, sure: bool
) -> tuple[T, Document | None]:
    try:
        return await decide(view)
    except StateError:
        if sure:
            raise
        raise MovedError from None


async def look(here: LoopConnections, scope: StateScope, see: Callable[[View], Awaitable[T]]) -> T:
    """Return what ``see`` sees in a fresh view.

    Raises:
        StateError: what ``see`` raised.
    """
    async with here.lock(scope):
        for tries in range(MOST_TRIES):
            try:
                view = await fresh(here, scope)
                seen = await see(view)
                view.prune()
            except MovedError as moved:
                here.views.pop(scope, None)
                if moved.why is not None and tries >= BELIEVED_AFTER:
                    raise moved.why from None
                await pause(tries)
            else:
                return seen
    raise _too_busy(here, scope)


def _too_busy(here: LoopConnections, scope: StateScope) -> StorageUnavailableError:
    return StorageUnavailableError(
        f"{scope} at {here.location} is changed by others quicker than this process can follow.",
        scope=scope,
        remedy="Take its turn before changing it, or spread what changes so often over several scopes.",
    )
