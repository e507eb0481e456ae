"""Blind changes of states that can't be in a transaction's commit: sent with it, applied after it, exactly once.

A letter lies in one of the transaction's own states, in the same commit as its other changes. It is delivered
right after that commit, and what a crash left undelivered is delivered by the next sweep. Each letter has an
id, which the addressed state remembers as an idempotency key (`ONCE_SECONDS`, a day): so it takes effect once,
however many deliver it. Letters of one state are delivered in the order of their commits.

What can never be applied (a number added to a text, a state of somebody else) is set aside under
``undelivered`` in the sending state, with the reason, and logged.

Several may deliver at once. Cancelled half-way, the rest is left for the next sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agentstate import codec
from agentstate.errors import ConflictError, ContextNotFoundError, StateError, UnsupportedValueError, ValueTooLargeError
from agentstate.manager import calls, entries
from agentstate.manager.unit import NOTHING, Unit
from agentstate.models import Message
from agentstate.observability import warning
from agentstate.scope import StateScope
from agentstate.state import history
from agentstate.state.operations import variable
from agentstate.state.record import Origin
from agentstate.state.turn import new_id
from agentstate.storage.protocol import OnceRecord, ScopeQuery

if TYPE_CHECKING:
    from agentstate.manager.routes import Routes
    from agentstate.manager.unit import UnitFrame
    from agentstate.state.turn import Frame

__all__ = ["Outbox"]

SECTION: Final = "outbox"
ASIDE: Final = "undelivered"
LABEL: Final = "agentstate-outbox"
YES: Final = "yes"
TRIES: Final = 20


class Outbox:
    """Blind changes of one state, from a transaction on others; see `Transaction.outbox`."""

    def __init__(self, frame: UnitFrame, routes: Routes, scope: StateScope) -> None:
        """Address a state."""
        self._frame = frame
        self._routes = routes
        self._scope = scope

    async def set(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Set a value."""
        codec.encode(value)
        await self._send(["set", variable(key)[1], value, ttl])

    async def delete(self, key: str) -> None:
        """Delete a value."""
        await self._send(["delete", variable(key)[1]])

    async def increment(self, key: str, by: int = 1) -> None:
        """Add to a number, which starts at 0."""
        if type(by) is not int:
            raise UnsupportedValueError(f"{key!r} can't be incremented by {by!r}: counters are whole numbers.")
        await self._send(["increment", variable(key)[1], by])

    async def add_message(self, role: str, content: Any, *, name: str | None = None) -> None:
        """Add a message to the state's history."""
        now = self._routes.of(self._scope.kind).store.clock()
        await self._send(["message", dict(Message.new(role, content, name=name, now=now))])

    async def _send(self, change: list[Any]) -> None:
        frame = self._frame
        frame.check_open()
        if frame.turn.takes(self._scope):
            await apply(frame, self._scope, [change])
            return
        own = frame.turn.own_scope()
        buffer = await frame.known(own)
        version = buffer.snapshot.stamp.version if buffer.snapshot.stamp is not None else 0
        frame.turn.sent += 1
        letter = {
            "id": f"{new_id():016x}",
            "to": self._scope.text,
            "by": self._routes.principal,
            "changes": [change],
        }
        buffer.put((SECTION, f"{version:016d}-{frame.turn.sent:06d}-{letter['id']}"), letter)
        buffer.labels = {**buffer.snapshot.labels, LABEL: YES}


async def apply(frame: Frame, scope: StateScope, changes: list[list[Any]]) -> None:
    """Make the changes of a letter."""
    for name, *given in changes:
        if name == "message":
            message = Message.from_json(given[0])
            await history.add(frame, scope, message, ttl=None, unique=True)
            continue
        at = variable(given[0])
        if name == "set":
            await frame.set(scope, at, given[1], given[2])
        elif name == "delete":
            await frame.delete(scope, at)
        else:
            await entries.increment(frame, scope, at, given[1])


async def deliver_now(routes: Routes, sender: StateScope) -> None:
    """Deliver the letters of a transaction that is committed: whatever comes of them, it is."""
    try:
        await deliver(routes, sender)
    except StateError as error:
        warning("letters are left for the next sweep", sender=str(sender), error=str(error))


async def deliver(routes: Routes, sender: StateScope) -> bool:
    """Deliver the letters of a state; return whether none is left.

    A letter whose addressee can't be reached now stays, with those after it.
    """
    found, _ = await calls.run(routes, sender, entries.page, SECTION, "", None, None, reverse=False)
    done: list[str] = []
    refused: dict[str, Any] = {}
    reached = True
    for key, letter in found.items():
        try:
            await _deliver_one(routes, letter)
        except (UnsupportedValueError, ValueTooLargeError, ContextNotFoundError) as error:
            warning("a letter can't be delivered", sender=str(sender), to=letter["to"], error=str(error))
            refused[key] = {**letter, "error": str(error)}
        except StateError as error:
            warning("a letter couldn't be delivered yet", sender=str(sender), to=letter["to"], error=str(error))
            reached = False
            break
        done.append(key)
    if done:
        await calls.run(routes, sender, _remove, done, refused)
    return reached


async def _deliver_one(routes: Routes, letter: dict[str, Any]) -> None:
    target, once = StateScope.parse(letter["to"]), f"outbox-{letter['id']}"
    acting = routes if letter["by"] == routes.principal else routes.acting_for(letter["by"])
    store = routes.of(target.kind).store
    for tried in range(TRIES):
        unit = Unit(acting, Origin("outbox", turn=letter["id"], actor=letter["by"] or ""), autosave=True)
        try:
            await apply(unit.root, target, letter["changes"])
            await unit.commit(once=OnceRecord(once, "", 0, None))
        except ConflictError:
            if (await store.storage.read(target, NOTHING, once=once)).once is not None:
                return  # somebody else delivered it
            if tried == TRIES - 1:
                raise
            await calls.pause(tried)
        else:
            return
        finally:
            unit.close()


async def _remove(frame: Frame, scope: StateScope, done: list[str], refused: dict[str, Any]) -> None:
    buffer = await entries.known(frame, scope)
    for key in done:
        buffer.delete((SECTION, key))
    for key, letter in refused.items():
        buffer.put((ASIDE, key), letter)
    if not await frame.keys(scope, SECTION):
        buffer.labels = {name: value for name, value in buffer.snapshot.labels.items() if name != LABEL}


async def deliver_all(routes: Routes) -> int:
    """Deliver what crashes left undelivered; return of how many states all letters are gone now."""
    emptied = 0
    for store in routes.stores():
        query = ScopeQuery(label=(LABEL, YES), tenant=routes.tenant)
        while True:
            page = await store.storage.scopes(query)
            for info in page.items:
                emptied += await deliver(routes, info.scope)
            if page.cursor is None:
                break
            query = query._replace(cursor=page.cursor)
    return emptied
