"""The faces of `agentstate.manager`, blocking."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from agentstate import manager as asynchronous
from agentstate.manager import lock
from agentstate.manager.face import Operations as _Operations
from agentstate.manager.outbox import Outbox as _Outbox
from agentstate.state.turn import current
from agentstate.sync.blocking import Blocking, blocking, finish, loop_here
from agentstate.sync.contents import AgentScope, ConversationScope, GlobalScope, TeamScope, WorkflowScope
from agentstate.sync.scoped import ScopedState

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    from agentstate.manager.face import AnyScope
    from agentstate.scope import StateScope
    from agentstate.state.store import Store
    from agentstate.storage.protocol import Storage

__all__ = ["BoundState", "ScopedState", "StateManager", "Transaction"]

T = TypeVar("T")
Target = TypeVar("Target", bound=_Operations)


class Operations(Blocking[Target]):
    """Calls on the entries of any state; see `agentstate.manager`."""

    @overload
    def get(
        self, scope: AnyScope, key: str, default: Any = None, *, path: str | None = None, inherit: bool = False
    ) -> Any: ...
    @overload
    def get(
        self, scope: AnyScope, key: str, default: T, *, as_type: type[T], path: str | None = None, inherit: bool = False
    ) -> T: ...
    @overload
    def get(
        self, scope: AnyScope, key: str, *, as_type: type[T], path: str | None = None, inherit: bool = False
    ) -> T | None: ...
    def get(self, scope: AnyScope, key: str, default: Any = None, **how: Any) -> Any:
        """Return a value, or ``default`` when there is none."""
        return finish("get", self.loop, lambda: self.target.get(scope, key, default, **how))

    get_versioned = blocking(_Operations.get_versioned)
    set = blocking(_Operations.set)
    delete = blocking(_Operations.delete)
    exists = blocking(_Operations.exists)
    update = blocking(_Operations.update)
    get_many = blocking(_Operations.get_many)
    set_many = blocking(_Operations.set_many)
    delete_many = blocking(_Operations.delete_many)
    list = blocking(_Operations.list)
    list_keys = blocking(_Operations.list_keys)
    clear = blocking(_Operations.clear)
    set_ttl = blocking(_Operations.set_ttl)
    info = blocking(_Operations.info)
    increment = blocking(_Operations.increment)
    append = blocking(_Operations.append)
    add_to_set = blocking(_Operations.add_to_set)
    merge = blocking(_Operations.merge)
    patch = blocking(_Operations.patch)
    compare_and_swap = blocking(_Operations.compare_and_swap)
    put_if_absent = blocking(_Operations.put_if_absent)


class BoundState(Operations[asynchronous.BoundState]):
    """Calls on states of which the kinds are enough; see `agentstate.manager.BoundState`."""

    def bind(self, **ids: str | tuple[str, str]) -> BoundState:
        """Return a state bound to more ids."""
        return BoundState(self.target.bind(**ids), self.loop)


Accessible = TypeVar("Accessible", bound=asynchronous.Accessors)


class Accessors(Operations[Accessible]):
    """The states themselves, by kind and id."""

    def at(self, scope: AnyScope, *, parent: StateScope | ScopedState | None = None) -> ScopedState:
        """Return a state of any kind."""
        return ScopedState(self.target.at(scope, parent=_scope(parent)), self.loop)

    def conversation(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ConversationScope:  # noqa: A002
        """Return the state of a conversation."""
        return ConversationScope(self.target.conversation(id, parent=_scope(parent)), self.loop)

    def workflow(self, id: str, *, parent: StateScope | ScopedState | None = None) -> WorkflowScope:  # noqa: A002
        """Return the state of a workflow."""
        return WorkflowScope(self.target.workflow(id, parent=_scope(parent)), self.loop)

    def team(self, id: str, *, parent: StateScope | ScopedState | None = None) -> TeamScope:  # noqa: A002
        """Return the state of a team."""
        return TeamScope(self.target.team(id, parent=_scope(parent)), self.loop)

    def guild(self, id: str, *, parent: StateScope | ScopedState | None = None) -> TeamScope:  # noqa: A002
        """Return the state of a team, under its other name."""
        return self.team(id, parent=parent)

    def agent(self, id: str, *, parent: StateScope | ScopedState | None = None) -> AgentScope:  # noqa: A002
        """Return the state of an agent."""
        return AgentScope(self.target.agent(id, parent=_scope(parent)), self.loop)

    def session(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:  # noqa: A002
        """Return the state of a session."""
        return ScopedState(self.target.session(id, parent=_scope(parent)), self.loop)

    def user(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:  # noqa: A002
        """Return the state of a user."""
        return ScopedState(self.target.user(id, parent=_scope(parent)), self.loop)

    def step(self, workflow_id: str, step_name: str) -> ScopedState:
        """Return the state of a step; its workflow is its parent."""
        return ScopedState(self.target.step(workflow_id, step_name), self.loop)

    def custom(self, namespace: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:
        """Return a state of your own kind."""
        return ScopedState(self.target.custom(namespace, parent=_scope(parent)), self.loop)

    @property
    def global_state(self) -> GlobalScope:
        """The state that all share."""
        return GlobalScope(self.target.global_state, self.loop)


def _scope(parent: StateScope | ScopedState | None) -> StateScope | None:
    return parent.scope if isinstance(parent, ScopedState) else parent


class Outbox(Blocking[_Outbox]):
    """Blind changes of a state outside a transaction's commit; see `agentstate.manager.Transaction.outbox`."""

    set = blocking(_Outbox.set)
    delete = blocking(_Outbox.delete)
    increment = blocking(_Outbox.increment)
    add_message = blocking(_Outbox.add_message)


class Transaction(Accessors[asynchronous.Transaction]):
    """What ``with manager.transaction() as tx`` gives; see `agentstate.manager.Transaction`."""

    def __enter__(self) -> Self:
        """Begin; nothing is read or held yet."""
        self.loop = loop_here()
        finish("transaction", self.loop, self.target.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or roll back when the block raised."""
        finish("transaction", self.loop, lambda: self.target.__aexit__(kind, error, trace))

    def outbox(self, scope: AnyScope) -> Outbox:
        """Return blind changes of a state that can't be in this transaction's commit: sent with it, applied once."""
        return Outbox(self.target.outbox(scope), self.loop)

    @contextmanager
    def savepoint(self) -> Generator[Transaction]:
        """Open a part of this transaction that is kept when its block succeeds, and undone when it raises."""
        inner = self.target.savepoint()
        entered: asynchronous.Transaction = finish("savepoint", self.loop, lambda: _entered(inner))
        try:
            yield Transaction(entered, self.loop)
        except BaseException as raised:
            error = raised
            finish("savepoint", self.loop, lambda: _left(inner, error))
            raise
        finish("savepoint", self.loop, lambda: _left(inner, None))


async def _entered(manager: Any) -> Any:
    return await manager.__aenter__()


async def _left(manager: Any, error: BaseException | None) -> None:
    try:
        await manager.__aexit__(type(error) if error is not None else None, error, None)
    except BaseException as raised:
        if raised is not error:
            raise


class StateManager(Accessors[asynchronous.StateManager]):
    """Reads and changes the states of all kinds of scopes; its arguments are `agentstate.StateManager`'s."""

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
        super().__init__(
            asynchronous.StateManager(
                storage, storages=storages, tenant=tenant, principal=principal, max_value_bytes=max_value_bytes
            )
        )

    def transaction(self, *, reason: str = "") -> Transaction:
        """Return a transaction for a ``with`` block: committed at its end, rolled back when it raises."""
        return Transaction(self.target.transaction(reason=reason))

    @contextmanager
    def lock(
        self, scope: AnyScope, *, wait: float | None = None, limit: float = 600.0, name: str = "lock"
    ) -> Generator[ScopedState]:
        """Hold a state's turn for a ``with`` block; each call in it is committed at once."""
        where, routes, loop = self.target.resolve(scope), self.target.routes, loop_here()
        turn = finish("lock", loop, lambda: lock.acquire(routes, where, wait=wait, limit=limit, name=name))
        token = current.set(turn.frame)
        try:
            yield ScopedState(self.target.at(where), loop)
        finally:
            current.reset(token)
            finish("lock", loop, lambda: turn.store.abandon(turn))

    def bind(self, **ids: str | tuple[str, str]) -> BoundState:
        """Return a face to which kinds are enough: ``bind(agent="a").get(StateScope.AGENT, key)``."""
        return BoundState(self.target.bind(**ids))

    end = blocking(asynchronous.StateManager.end)
    set_parent = blocking(asynchronous.StateManager.set_parent)
    sweep = blocking(asynchronous.StateManager.sweep)
    list_scopes = blocking(asynchronous.StateManager.list_scopes)
    close = blocking(asynchronous.StateManager.aclose)

    def __enter__(self) -> Self:
        """Return this manager; leaving it closes the storages."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
