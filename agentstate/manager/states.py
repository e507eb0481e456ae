"""`StateManager`: every state of every kind of scope, over any storages."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from agentstate.config.spelling import nearest
from agentstate.errors import ContextIdError
from agentstate.manager import calls, lifetime, lock, outbox
from agentstate.manager.accessors import Accessors
from agentstate.manager.bound import BoundState, scopes_of
from agentstate.manager.parents import parent_of
from agentstate.manager.results import StateInfo
from agentstate.manager.routes import Routes
from agentstate.manager.scoped import ScopedState
from agentstate.manager.transaction import Transaction
from agentstate.scope import KINDS, ScopeKind, StateScope
from agentstate.state.turn import not_found
from agentstate.storage.protocol import ScopeQuery
from agentstate.stores import close_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from agentstate.manager.face import AnyScope
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Storage

__all__ = ["StateManager", "StatePage", "Swept"]

R = TypeVar("R")


def in_tenant(scope: object, tenant: str) -> StateScope:
    """Return the scope as a tenant's.

    Raises:
        ContextIdError: it is a kind without an id.
        ContextNotFoundError: it is another tenant's.
    """
    if isinstance(scope, ScopeKind):
        raise ContextIdError(
            f"Which {scope} is meant isn't said.", remedy=f"Use StateScope.{scope}(ID), or bind({scope}=ID)."
        )
    if not isinstance(scope, StateScope):
        raise ContextIdError(f"{scope!r} is no scope.", remedy="Use StateScope.agent(ID), or StateScope.parse(TEXT).")
    if scope.tenant == tenant:
        return scope
    if scope.tenant:
        raise not_found(scope)
    return StateScope(scope.kind, scope.ids, tenant)


class StatePage(list[StateInfo]):
    """A page of states.

    Attributes:
        cursor: pass it for the next page; ``None`` on the last.
    """

    def __init__(self, items: Iterable[StateInfo], cursor: str | None) -> None:
        """Hold the items of a page."""
        super().__init__(items)
        self.cursor = cursor


class Swept(NamedTuple):
    """What a sweep did.

    Attributes:
        ended: states whose end was left unfinished, and is done now.
        sent: states whose letters were left undelivered, and are delivered now.
        expired: states removed because their time was over.
    """

    ended: int
    sent: int
    expired: int


class StateManager(Accessors):
    """Reads and changes the states of all kinds of scopes.

    ::

        manager = StateManager("sqlite:///state.db")
        await manager.set(StateScope.agent("writer"), "model", "small")
        async with manager.transaction() as tx:
            await tx.increment(StateScope.team("red"), "tasks")
            await tx.set(StateScope.agent("writer"), "busy", True)

    It opens what it needs at first use, and may be used from any number of tasks, threads and event loops. Inside
    a handler's turn, calls on the turn's own state are a part of the turn; others are commits of their own.

    Args:
        storage: where the states lie: a storage, a URL, the name of a backend, or (``None``) what the
            configuration says.
        storages: the same per kind of scope, ``'*'`` for all the rest.
        tenant: whose data it is; nothing of another tenant can be reached.
        principal: who asks. States of conversations, sessions, users, workflows, steps and custom scopes
            become its own at their first use, and those of others aren't there. Teams, agents and the
            global state are shared.
        max_value_bytes: the most bytes a value may have.
    """

    def __init__(
        self,
        storage: Storage | Store | str | None = None,
        *,
        storages: Mapping[str, Storage | Store | str] | None = None,
        tenant: str = "",
        principal: str | None = None,
        max_value_bytes: int | None = None,
    ) -> None:
        """See the class."""
        self.routes = Routes(storage, storages, tenant=tenant, principal=principal, max_value_bytes=max_value_bytes)

    def resolve(self, scope: AnyScope) -> StateScope:
        """Return the address that is meant."""
        return in_tenant(scope, self.routes.tenant)

    async def run(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Run an operation on a frame."""
        return await calls.run(self.routes, scope, operation, *args, **kwargs)

    # -- several at once -----------------------------------------------------------------------

    def transaction(self, *, reason: str = "") -> Transaction:
        """Return a transaction for an ``async with`` block: committed at its end, rolled back when it raises.

        ``reason`` goes into the journal.
        """
        return Transaction(self, reason=reason)

    def lock(
        self, scope: AnyScope, *, wait: float | None = None, limit: float = 600.0, name: str = "lock"
    ) -> AbstractAsyncContextManager[ScopedState]:
        """Hold a state's turn for an ``async with`` block; each call in it is committed at once.

        Args:
            scope: of the state.
            wait: how many seconds to wait for it.
            limit: how many seconds it may be held.
            name: who holds it, for those who wait.

        Raises:
            TurnTimeoutError: it wasn't free in time.
            LeaseLostError: from a call in the block, when another holder took it over.
        """
        return self._hold(self.resolve(scope), wait, limit, name)

    @asynccontextmanager
    async def _hold(
        self, scope: StateScope, wait: float | None, limit: float, name: str
    ) -> AsyncGenerator[ScopedState]:
        async with lock.hold(self.routes, scope, wait=wait, limit=limit, name=name):
            yield ScopedState(self, scope)

    def bind(self, **ids: str | tuple[str, str]) -> BoundState:
        """Return a face to which kinds are enough: ``bind(agent="a", team="t").get(StateScope.AGENT, key)``.

        Each argument is the id of a kind; ``step`` takes a pair.
        """
        return BoundState(self, scopes_of(ids))

    # -- lifetimes and listings ------------------------------------------------------------------

    async def end(self, scope: AnyScope) -> bool:
        """End a state and all below it, by the policy of its kind (``state.scopes.KIND.on_end``).

        ``keep`` does nothing, ``delete`` drops, ``expire:SECONDS`` lets them live that long; workflows, steps,
        sessions and teams expire after a week, everything else is kept. Returns whether nothing is left for
        `sweep`: a state whose turn is held ends later.
        """
        return await lifetime.end(self.routes, self.resolve(scope))

    async def set_parent(self, scope: AnyScope, parent: AnyScope) -> None:
        """Store which state is above another one: ``get(..., inherit=True)`` looks there, and it ends with that."""
        await lifetime.set_parent(self, self.resolve(scope), self.resolve(parent))

    async def sweep(self, limit: int = 100) -> Swept:
        """Finish what crashes left unfinished, and remove at most ``limit`` expired states per store."""
        ended = await lifetime.finish_all(self.routes)
        sent = await outbox.deliver_all(self.routes)
        expired = 0
        for store in self.routes.stores():
            expired += len((await store.storage.sweep(limit)).scopes)
        return Swept(ended, sent, expired)

    async def list_scopes(
        self,
        kind: str,
        *,
        prefix: str = "",
        order: Literal["id", "updated"] = "id",
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> StatePage:
        """Return states of a kind, a page at a time.

        Args:
            kind: as in ``"agent"`` or ``StateScope.AGENT``.
            prefix: of the id.
            order: ``id`` or ``updated``.
            reverse: turns the order round.
            limit: how many at most.
            cursor: of the page before.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; a page holds at least 1")
        kind = "team" if kind == "guild" else str(kind)
        if kind not in KINDS:
            raise ContextIdError(f"There is no kind of scope {kind!r}.", remedy=nearest(kind, KINDS))
        query = ScopeQuery(
            kind=kind,
            prefix=prefix,
            owner=self.routes.owner_of(kind),
            order=order,
            reverse=reverse,
            cursor=cursor,
            limit=limit,
            tenant=self.routes.tenant,
        )
        page = await self.routes.of(kind).store.storage.scopes(query)
        return StatePage(
            (
                StateInfo(
                    one.scope,
                    one.stamp.version,
                    one.owner,
                    parent_of(one.scope, None),
                    one.created_at,
                    one.updated_at,
                    one.expires_at,
                    one.labels,
                )
                for one in page.items
            ),
            page.cursor,
        )

    # -- opening and closing ---------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the storages, for whoever shares them, too; the next use of a URL opens them anew."""
        for store in self.routes.used():
            await close_store(store)

    async def __aenter__(self) -> Self:
        """Return this manager; leaving it closes the storages."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
