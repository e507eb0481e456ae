"""One state, bound to its scope, blocking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from agentstate.manager.scoped import ScopedState as _ScopedState
from agentstate.sync.blocking import Blocking, blocking, finish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentstate.scope import StateScope

__all__ = ["ScopedState"]

T = TypeVar("T")
R = TypeVar("R")


class ScopedState(Blocking[Any]):
    """A state, and the calls on it; see `agentstate.manager.ScopedState`."""

    @property
    def scope(self) -> StateScope:
        """Its address."""
        scope: StateScope = self.target.scope
        return scope

    @property
    def id(self) -> str:
        """The id."""
        return self.scope.id

    def __enter__(self) -> Self:
        """Return this state; the end of the block ends it, by the policy of its kind."""
        finish("with", self.loop, self.target.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @overload
    def get(self, key: str, default: Any = None, *, path: str | None = None, inherit: bool = False) -> Any: ...
    @overload
    def get(self, key: str, default: T, *, as_type: type[T], path: str | None = None, inherit: bool = False) -> T: ...
    @overload
    def get(self, key: str, *, as_type: type[T], path: str | None = None, inherit: bool = False) -> T | None: ...
    def get(self, key: str, default: Any = None, **how: Any) -> Any:
        """Return a value, or ``default``; with ``inherit`` the parents' when it has none."""
        return finish("get", self.loop, lambda: self.target.get(key, default, **how))

    @overload
    def update(self, values: Mapping[str, Any], /) -> None: ...
    @overload
    def update(self, key: str, fn: Callable[[Any], R], /, default: Any = None) -> R: ...
    def update(self, key: Any, fn: Any = None, /, default: Any = None) -> Any:
        """Set several values as one change, or replace one by ``fn(value)`` and return that."""
        return finish("update", self.loop, lambda: self.target.update(key, fn, default))

    get_versioned = blocking(_ScopedState.get_versioned)
    set = blocking(_ScopedState.set)
    set_expecting = blocking(_ScopedState.set_expecting)
    delete = blocking(_ScopedState.delete)
    exists = blocking(_ScopedState.exists)
    to_dict = blocking(_ScopedState.to_dict)
    get_many = blocking(_ScopedState.get_many)
    set_many = blocking(_ScopedState.set_many)
    delete_many = blocking(_ScopedState.delete_many)
    list = blocking(_ScopedState.list)
    increment = blocking(_ScopedState.increment)
    append = blocking(_ScopedState.append)
    add_to_set = blocking(_ScopedState.add_to_set)
    merge = blocking(_ScopedState.merge)
    patch = blocking(_ScopedState.patch)
    compare_and_swap = blocking(_ScopedState.compare_and_swap)
    put_if_absent = blocking(_ScopedState.put_if_absent)
    clear = blocking(_ScopedState.clear)
    set_ttl = blocking(_ScopedState.set_ttl)
    info = blocking(_ScopedState.info)
    end = blocking(_ScopedState.end)
