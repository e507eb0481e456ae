"""The calls on states that a manager, a transaction and a bound state have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agentstate import codec
from agentstate.errors import ConflictError, UnsupportedValueError, ValueTooLargeError
from agentstate.manager import entries, patches
from agentstate.manager.parents import parent_of
from agentstate.manager.results import ANY_VERSION, AnyVersion, Listing, StateInfo, Versioned, info_of
from agentstate.manager.typed import dumped, typed
from agentstate.scope import ScopeKind, StateScope
from agentstate.state.buffer import MISSING
from agentstate.state.operations import VARIABLES, variable
from agentstate.state.turn import Frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from agentstate.manager.routes import Routes
    from agentstate.storage.protocol import Stamp

__all__ = ["AnyScope", "Operations"]

T = TypeVar("T")
R = TypeVar("R")
AnyScope = StateScope | ScopeKind
Keys = list[str]


class Operations(ABC):
    """Calls on the entries of any state; each takes the scope first.

    Outside of transactions each call is atomic by itself. One that reads before it writes is tried
    again when another change came between, so a function that is passed in must be pure.
    """

    routes: Routes

    @abstractmethod
    def resolve(self, scope: AnyScope) -> StateScope:
        """Return the address that is meant."""

    @abstractmethod
    async def run(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Run an operation on a frame."""

    # -- single entries ------------------------------------------------------------------------

    @overload
    async def get(
        self, scope: AnyScope, key: str, default: Any = None, *, path: str | None = None, inherit: bool = False
    ) -> Any: ...
    @overload
    async def get(
        self, scope: AnyScope, key: str, default: T, *, as_type: type[T], path: str | None = None, inherit: bool = False
    ) -> T: ...
    @overload
    async def get(
        self, scope: AnyScope, key: str, *, as_type: type[T], path: str | None = None, inherit: bool = False
    ) -> T | None: ...
    async def get(
        self,
        scope: AnyScope,
        key: str,
        default: Any = None,
        *,
        as_type: type[Any] | None = None,
        path: str | None = None,
        inherit: bool = False,
    ) -> Any:
        """Return a value, or ``default`` when there is none.

        Args:
            scope: of the state.
            key: of the entry.
            default: returned as it is.
            as_type: a pydantic model or any type pydantic knows: the value is validated as it.
            path: a JSON Pointer to the part that is wanted, as in ``/address/city``.
            inherit: look in the state's parents, too, the nearest first.

        Raises:
            UnsupportedValueError: the value is no ``as_type``; the error says where in it.
        """
        where, at = self.resolve(scope), variable(key)
        value = await (self._inherited(where, at) if inherit else self.run(where, entries.get, at))
        if path and value is not MISSING:
            value = patches.resolve(value, path)
        if value is MISSING:
            return default
        return value if as_type is None else typed(value, as_type, where, key, path or "")

    async def _inherited(self, scope: StateScope, at: tuple[str, str]) -> Any:
        seen: set[StateScope] = set()
        above: StateScope | None = scope
        while above is not None and above not in seen:
            found = await self.run(above, entries.inherit, at)
            if found.value is not MISSING:
                return found.value
            seen.add(above)
            above = parent_of(above, found.parent)
        return MISSING

    async def get_versioned(self, scope: AnyScope, key: str) -> Versioned:
        """Return a value (``None`` when there is none) with its version."""
        found = await self.run(self.resolve(scope), entries.look, variable(key))
        return Versioned(None if found.value is MISSING else found.value, found.version)

    async def set(
        self,
        scope: AnyScope,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        expected: Stamp | AnyVersion | None = ANY_VERSION,
        as_type: type[Any] | None = None,
        path: str | None = None,
    ) -> None:
        """Set a value.

        Args:
            scope: of the state.
            key: of the entry.
            value: anything that comes back the same; see `agentstate.codec`.
            ttl: the entry's own lifetime in seconds.
            expected: the version it must have, from `get_versioned`; ``None``: it must be absent.
            as_type: the value is one of these, and is stored as plain JSON for ``get(..., as_type=)``.
            path: a JSON Pointer to the part that is set, in the value that is there; without ``ttl``
                and ``expected``, which are about whole entries.

        Raises:
            ValueError: ``path`` stands beside one of these.
            ConflictError: the entry has another version than expected; nothing was stored.
            UnsupportedValueError: the value would not come back the same.
            ValueTooLargeError: it has more than ``max_value_bytes``.
        """
        where, at = self.resolve(scope), variable(key)
        _check_ttl(ttl)
        value = value if as_type is None else dumped(value, as_type)
        if path is not None:
            if ttl is not None or not isinstance(expected, AnyVersion):
                raise ValueError("path= sets a part of an entry; ttl= and expected= are about the whole entry")
            await self._change(where, key, lambda old: patches.put(old, path, value))
            return
        self.check_size(where, key, value)
        if isinstance(expected, AnyVersion):
            await self.run(where, entries.put, at, value, ttl)
            return
        refused = await self.run(where, entries.put_expecting, at, value, ttl, expected)
        if refused is not None:
            raise ConflictError(
                f"{key!r} of {where} was expected {f'at {expected}' if expected else 'to be absent'}, and is"
                f" {f'at {refused.found}' if refused.found else 'changed or absent'} now.",
                scope=where,
                expected=expected,
                found=refused.found,
                what=key,
                remedy="Read it again, and decide anew.",
            )

    async def delete(self, scope: AnyScope, key: str) -> bool:
        """Delete a value; return whether it was there."""
        return await self.run(self.resolve(scope), Frame.delete, variable(key))

    async def exists(self, scope: AnyScope, key: str | None = None) -> bool:
        """Whether there is such a value; without a key, whether there is such a state."""
        where = self.resolve(scope)
        if key is not None:
            return await self.run(where, entries.has, variable(key))
        return (await self.run(where, entries.state))[0]

    async def update(self, scope: AnyScope, key: str, fn: Callable[[Any], R], default: Any = None) -> R:
        """Replace a value by ``fn(value)`` and return that.

        ``fn`` must be a pure function: it is called again when another change came between, at
        most 20 times.
        """
        return await self._change(self.resolve(scope), key, lambda old: fn(default if old is MISSING else old))

    # -- several entries -----------------------------------------------------------------------

    async def get_many(self, scope: AnyScope, keys: Iterable[str]) -> dict[str, Any]:
        """Return several values in one round trip; absent ones are left out."""
        wanted = [variable(key)[1] for key in keys]
        return await self.run(self.resolve(scope), entries.get_many, VARIABLES, wanted)

    async def set_many(self, scope: AnyScope, values: Mapping[str, Any]) -> None:
        """Set several values as one change, in one round trip."""
        where = self.resolve(scope)
        for key, value in values.items():
            variable(key)
            codec.encode(value)  # all or nothing: refuse before the first is set
            self.check_size(where, key, value)
        await self.run(where, entries.put_many, VARIABLES, dict(values))

    async def delete_many(self, scope: AnyScope, keys: Iterable[str]) -> int:
        """Delete several values as one change; return how many were there."""
        wanted = [variable(key)[1] for key in keys]
        return await self.run(self.resolve(scope), entries.delete_many, VARIABLES, wanted)

    async def list(
        self,
        scope: AnyScope,
        prefix: str | None = None,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        reverse: bool = False,
    ) -> Listing:
        """Return entries in the order of their keys, all of them without a limit.

        Args:
            scope: of the state.
            prefix: of the keys.
            limit: how many at most.
            cursor: of the page before.
            reverse: begin with the last key.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; a page holds at least 1")
        found, more = await self.run(
            self.resolve(scope), entries.page, VARIABLES, prefix or "", limit, cursor, reverse=reverse
        )
        return Listing(found, more)

    async def list_keys(self, scope: AnyScope, prefix: str | None = None) -> Keys:
        """Return the keys of a state, in order."""
        return [*await self.list(scope, prefix)]

    async def clear(self, scope: AnyScope) -> None:
        """Delete everything of a state."""
        await self.run(self.resolve(scope), entries.clear)

    async def set_ttl(self, scope: AnyScope, ttl: float | None) -> None:
        """Let a state live ``ttl`` seconds from now, or for ever."""
        _check_ttl(ttl)
        await self.run(self.resolve(scope), entries.set_ttl, ttl)

    async def info(self, scope: AnyScope) -> StateInfo | None:
        """Return what is known of a state beside its entries, ``None`` when it is absent."""
        where = self.resolve(scope)
        there, found = await self.run(where, entries.state)
        return info_of(where, found) if there and found.stamp is not None else None

    # -- without reading first ------------------------------------------------------------------

    async def increment(self, scope: AnyScope, key: str, by: int = 1, *, path: str | None = None) -> int:
        """Add to a number, which starts at 0, and return it.

        Args:
            scope: of the state.
            key: of the entry. Without a path it never conflicts with others' increments.
            by: a whole number.
            path: a JSON Pointer to a number inside the value.
        """
        where, at = self.resolve(scope), variable(key)
        if type(by) is not int:
            raise UnsupportedValueError(f"{key!r} can't be incremented by {by!r}: counters are whole numbers.")
        if path is None:
            return await self.run(where, entries.increment, at, by)
        changed = await self._change(where, key, lambda old: patches.add(old, path, by))
        number: int = patches.resolve(changed, path)
        return number

    async def append(self, scope: AnyScope, key: str, *items: Any, cap: int | None = None) -> int:
        """Append to a list, which starts empty; return its new length.

        Args:
            scope: of the state.
            key: of the entry.
            items: what is appended.
            cap: the most items it may have: older ones go.
        """

        def appended(old: Any) -> Keys:
            found = [*_as(list, old, key), *items]
            return found if cap is None else found[max(len(found) - cap, 0) :]

        return len(await self._change(self.resolve(scope), key, appended))

    async def add_to_set(self, scope: AnyScope, key: str, *items: Any) -> int:
        """Add to a set, which starts empty; return how many items were new.

        A list that is there is kept free of doubles instead.
        """
        count = 0

        def added(old: Any) -> Any:
            nonlocal count
            if isinstance(old, list):
                new = [one for n, one in enumerate(items) if one not in old and one not in items[:n]]
                count = len(new)
                return [*old, *new] if new else MISSING
            before = _as(set, old, key)
            after = before | set(items)
            count = len(after) - len(before)
            return after if count else MISSING

        await self._change(self.resolve(scope), key, added)
        return count

    async def merge(self, scope: AnyScope, key: str, patch: Any) -> Any:
        """Apply a JSON Merge Patch (RFC 7396) to a value; return the new one. ``None`` removes what it stands for."""
        return await self._change(
            self.resolve(scope), key, lambda old: patches.merge(None if old is MISSING else old, patch)
        )

    async def patch(self, scope: AnyScope, key: str, operations: Iterable[Mapping[str, Any]]) -> Any:
        """Apply a JSON Patch (RFC 6902) to a value, all of it or nothing; return the new value.

        Raises:
            ConflictError: a ``test`` in it failed.
            UnsupportedValueError: it can't be applied to this value.
        """
        steps = [dict(one) for one in operations]
        return await self._change(
            self.resolve(scope), key, lambda old: patches.patch(None if old is MISSING else old, steps)
        )

    async def compare_and_swap(self, scope: AnyScope, key: str, old: Any, new: Any) -> bool:
        """Replace a value if it equals ``old`` (``None``: also if it is absent); return whether it did."""
        swapped = False

        def swap(now: Any) -> Any:
            nonlocal swapped
            now = None if now is MISSING else now
            swapped = type(now) is type(old) and now == old
            return new if swapped else MISSING

        await self._change(self.resolve(scope), key, swap)
        return swapped

    async def put_if_absent(self, scope: AnyScope, key: str, value: Any, *, ttl: float | None = None) -> bool:
        """Set a value if there is none; return whether it did."""
        where = self.resolve(scope)
        _check_ttl(ttl)
        self.check_size(where, key, value)
        return await self.run(where, entries.put_expecting, variable(key), value, ttl, None) is None

    async def _change(self, scope: StateScope, key: str, fn: Callable[[Any], R]) -> R:
        def checked(old: Any) -> R:
            new = fn(old)
            if new is not MISSING:
                self.check_size(scope, key, new)
            return new

        changed: R = await self.run(scope, entries.change, variable(key), checked)
        return changed

    def check_size(self, scope: StateScope, key: str, value: Any) -> None:
        """Raise `ValueTooLargeError` when a value is larger than this manager allows."""
        limit = self.routes.max_value_bytes
        if limit is None:
            return
        try:
            codec.encode(value, limit=limit)
        except ValueTooLargeError as error:
            raise ValueTooLargeError(
                f"{key!r} of {scope}: {error}", scope=scope, remedy="Or raise max_value_bytes=."
            ) from None


def _check_ttl(ttl: float | None) -> None:
    if ttl is not None and not ttl > 0:
        raise ValueError(f"ttl is {ttl!r}; a lifetime is more than 0 seconds")


def _as(wanted: type[Any], old: Any, key: str) -> Any:
    if old is MISSING:
        return wanted()
    if not isinstance(old, wanted):
        raise UnsupportedValueError(f"{key!r} holds {type(old).__name__}, no {wanted.__name__}.", path=key)
    return old
