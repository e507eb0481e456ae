"""One state, bound to its scope: what the accessors of a manager give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from agentstate.state.buffer import MISSING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from agentstate.manager.face import Operations
    from agentstate.manager.results import Listing, StateInfo, Versioned
    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Stamp

__all__ = ["ScopedState"]

T = TypeVar("T")
R = TypeVar("R")


class ScopedState:
    """A state, and the calls on it: those of `StateManager`, without the scope.

    ``async with manager.workflow("w") as workflow:`` ends the state at the end of the block, by the policy of
    its kind; see `StateManager.end`.
    """

    def __init__(
        self, operations: Operations, scope: StateScope, parent: StateScope | ScopedState | None = None
    ) -> None:
        """Bind a manager, transaction or lock to a scope."""
        self.scope = scope
        self._operations = operations
        self._parent: StateScope | None = parent.scope if isinstance(parent, ScopedState) else parent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.scope}>"

    @property
    def id(self) -> str:
        """The id."""
        return self.scope.id

    async def _ready(self) -> Operations:
        """Return what runs the calls; a parent that was named is stored first."""
        if self._parent is not None:
            from agentstate.manager.lifetime import set_parent

            await set_parent(self._operations, self.scope, self._parent)
            self._parent = None
        return self._operations

    async def _do(self, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        operations = await self._ready()
        return await operations.run(self.scope, operation, *args, **kwargs)

    async def __aenter__(self) -> Self:
        """Return this state."""
        await self._ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """End this state, by the policy of its kind; see `StateManager.end`."""
        from agentstate.manager.lifetime import end

        operations = await self._ready()
        await end(operations.routes, self.scope)

    # -- entries -------------------------------------------------------------------------------

    @overload
    async def get(self, key: str, default: Any = None, *, path: str | None = None, inherit: bool = False) -> Any: ...
    @overload
    async def get(
        self, key: str, default: T, *, as_type: type[T], path: str | None = None, inherit: bool = False
    ) -> T: ...
    @overload
    async def get(self, key: str, *, as_type: type[T], path: str | None = None, inherit: bool = False) -> T | None: ...
    async def get(
        self,
        key: str,
        default: Any = None,
        *,
        as_type: type[Any] | None = None,
        path: str | None = None,
        inherit: bool = False,
    ) -> Any:
        """Return a value, or ``default``; with ``inherit`` the parents' when it has none."""
        operations = await self._ready()
        if as_type is None:
            return await operations.get(self.scope, key, default, path=path, inherit=inherit)
        return await operations.get(self.scope, key, default, as_type=as_type, path=path, inherit=inherit)

    async def get_versioned(self, key: str) -> Versioned:
        """Return a value with its version."""
        return await (await self._ready()).get_versioned(self.scope, key)

    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        as_type: type[Any] | None = None,
        path: str | None = None,
    ) -> None:
        """Set a value."""
        await (await self._ready()).set(self.scope, key, value, ttl=ttl, as_type=as_type, path=path)

    async def set_expecting(self, key: str, value: Any, expected: Stamp | None) -> None:
        """Set a value if it has this version still (``None``: if it is absent), else raise `ConflictError`."""
        await (await self._ready()).set(self.scope, key, value, expected=expected)

    async def delete(self, key: str) -> bool:
        """Delete a value; return whether it was there."""
        return await (await self._ready()).delete(self.scope, key)

    async def exists(self, key: str | None = None) -> bool:
        """Whether there is such a value; without a key, whether there is this state."""
        return await (await self._ready()).exists(self.scope, key)

    @overload
    async def update(self, values: Mapping[str, Any], /) -> None: ...
    @overload
    async def update(self, key: str, fn: Callable[[Any], R], /, default: Any = None) -> R: ...
    async def update(
        self, key: str | Mapping[str, Any], fn: Callable[[Any], Any] | None = None, /, default: Any = None
    ) -> Any:
        """Set several values as one change, or replace one by ``fn(value)`` and return that."""
        operations = await self._ready()
        if isinstance(key, str):
            if fn is None:
                raise TypeError("update takes a mapping of values, or a key and a function")
            return await operations.update(self.scope, key, fn, default)
        return await operations.set_many(self.scope, key)

    async def to_dict(self) -> dict[str, Any]:
        """Return all values by their keys."""
        return dict(await (await self._ready()).list(self.scope))

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return several values in one round trip; absent ones are left out."""
        return await (await self._ready()).get_many(self.scope, keys)

    async def set_many(self, values: Mapping[str, Any]) -> None:
        """Set several values as one change."""
        await (await self._ready()).set_many(self.scope, values)

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Delete several values as one change; return how many were there."""
        return await (await self._ready()).delete_many(self.scope, keys)

    async def list(
        self,
        prefix: str | None = None,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        reverse: bool = False,
    ) -> Listing:
        """Return entries in the order of their keys."""
        operations = await self._ready()
        return await operations.list(self.scope, prefix, limit=limit, cursor=cursor, reverse=reverse)

    async def increment(self, key: str, by: int = 1, *, path: str | None = None) -> int:
        """Add to a number, which starts at 0, and return it."""
        return await (await self._ready()).increment(self.scope, key, by, path=path)

    async def append(self, key: str, *items: Any, cap: int | None = None) -> int:
        """Append to a list, which starts empty; return its new length."""
        return await (await self._ready()).append(self.scope, key, *items, cap=cap)

    async def add_to_set(self, key: str, *items: Any) -> int:
        """Add to a set, which starts empty; return how many items were new."""
        return await (await self._ready()).add_to_set(self.scope, key, *items)

    async def merge(self, key: str, patch: Any) -> Any:
        """Apply a JSON Merge Patch to a value; return the new one."""
        return await (await self._ready()).merge(self.scope, key, patch)

    async def patch(self, key: str, operations: Iterable[Mapping[str, Any]]) -> Any:
        """Apply a JSON Patch to a value; return the new one."""
        return await (await self._ready()).patch(self.scope, key, operations)

    async def compare_and_swap(self, key: str, old: Any, new: Any) -> bool:
        """Replace a value if it equals ``old``; return whether it did."""
        return await (await self._ready()).compare_and_swap(self.scope, key, old, new)

    async def put_if_absent(self, key: str, value: Any, *, ttl: float | None = None) -> bool:
        """Set a value if there is none; return whether it did."""
        return await (await self._ready()).put_if_absent(self.scope, key, value, ttl=ttl)

    async def clear(self) -> None:
        """Delete everything of this state."""
        await (await self._ready()).clear(self.scope)

    async def set_ttl(self, ttl: float | None) -> None:
        """Let this state live ``ttl`` seconds from now, or for ever."""
        await (await self._ready()).set_ttl(self.scope, ttl)

    async def info(self) -> StateInfo | None:
        """Return what is known of this state beside its entries."""
        return await (await self._ready()).info(self.scope)

    # -- the sections of typed contents ----------------------------------------------------------

    async def _value(self, section: str, key: str, default: Any = None) -> Any:
        from agentstate.manager import entries

        value = await self._do(entries.get, (section, _key(key)))
        return default if value is MISSING else value

    async def _put(self, section: str, key: str, value: Any, ttl: float | None = None) -> None:
        from agentstate.manager import entries

        operations = await self._ready()
        operations.check_size(self.scope, key, value)
        await operations.run(self.scope, entries.put, (section, _key(key)), value, ttl)

    async def _section(self, section: str) -> dict[str, Any]:
        from agentstate.manager import entries

        return (await self._do(entries.page, section, "", None, None, reverse=False))[0]


def _key(key: str) -> str:
    from agentstate.scope import check_key

    return check_key(key)
