"""What a test changed in the states of a storage: a picture before, one after, and the difference.

Shown when a test fails, to the author of the test: values and all, which nothing else in
agentstate would print.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agentstate import codec
from agentstate.errors import StateError
from agentstate.storage.protocol import ScopeQuery
from agentstate.testing.turns import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Storage

__all__ = ["State", "States", "diff", "states_of"]

State = dict[str, Any]
States = dict[str, State]

ABSENT = "(absent)"
MOST_SCOPES = 100
MOST_ITEMS = 200
WIDEST = 200


async def states_of(storage: Storage) -> States:
    """Return the states of a storage: a line per entry, log item and other property.

    Of many states the most recently changed hundred, of long logs the last 200 items.
    """
    page = await storage.scopes(ScopeQuery(order="updated", reverse=True, limit=MOST_SCOPES))
    return {info.scope.text: await _state(storage, info.scope) for info in page.items}


async def _state(storage: Storage, scope: StateScope) -> State:
    found = await storage.read(scope, EVERYTHING)
    state: State = {"owner": found.owner, "labels": dict(found.labels) or None, "expires_at": found.expires_at}
    for (section, key), entry in sorted(found.entries.items()):
        state[f"{section}[{key!r}]"] = _readable(entry.value)
    for log in sorted(found.logs):
        for item in (await storage.read_log(scope, log, limit=MOST_ITEMS)).items:
            state[f"{log}[{item.seq}]"] = _readable(item.value)
    return {name: value for name, value in state.items() if value is not None}


def _readable(value: bytes | int) -> Any:
    if isinstance(value, int):
        return value
    with suppress(StateError, ValueError):
        return codec.decode(value)
    return value


def diff(before: States, after: States) -> str:
    """Return the lines that say what differs; empty when nothing does."""
    return "\n".join(line for scope in sorted({*before, *after}) for line in _changes(scope, before, after))


def _changes(scope: str, before: States, after: States) -> Iterator[str]:
    old, new = before.get(scope, {}), after.get(scope, {})
    if old == new and (scope in before) == (scope in after):
        return
    yield f"{scope}{' (new)' if scope not in before else ' (gone)' if scope not in after else ''}"
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name, ABSENT), new.get(name, ABSENT)
        if was == now:
            continue
        if name in old:
            yield f"  - {name}: {_short(was)}"
        if name in new:
            yield f"  + {name}: {_short(now)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}… ({len(text)} characters)"
