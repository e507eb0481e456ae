"""States by their kind alone, for whoever is bound to their ids: what handlers get as ``state``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.errors import ContextIdError
from agentstate.manager.face import Operations
from agentstate.scope import ScopeKind, StateScope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agentstate.manager.face import AnyScope

__all__ = ["BoundState", "scopes_of"]

R = TypeVar("R")


class BoundState(Operations):
    """Calls on states of which the kinds are enough: ``await state.get(StateScope.AGENT, "visits")``.

    A full scope works as well. Made by `StateManager.bind`.
    """

    def __init__(self, operations: Operations, scopes: Mapping[str, StateScope]) -> None:
        """Bind to a scope of each kind."""
        self.operations = operations
        self.routes = operations.routes
        self._scopes = dict(scopes)

    def bind(self, **ids: str | tuple[str, str]) -> BoundState:
        """Return a state bound to more ids; see `StateManager.bind`."""
        return BoundState(self.operations, {**self._scopes, **scopes_of(ids)})

    def resolve(self, scope: AnyScope) -> StateScope:
        """Return the address that is meant."""
        if isinstance(scope, ScopeKind):
            found = self._scopes.get(scope)
            if found is None:
                raise ContextIdError(
                    f"Which {scope} is meant isn't known here.", remedy=f"Bind it: state.bind({scope}=ID)."
                )
            scope = found
        return self.operations.resolve(scope)

    async def run(self, scope: StateScope, operation: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Run an operation on a frame."""
        return await self.operations.run(scope, operation, *args, **kwargs)


def scopes_of(ids: Mapping[str, str | tuple[str, str] | None]) -> dict[str, StateScope]:
    """Return scopes by kind, from the ids of the kinds; ``guild`` is ``team``, a step's id is a pair."""
    found: dict[str, StateScope] = {}
    for name, given in ids.items():
        if given is not None:
            kind = "team" if name == "guild" else name
            found[kind] = StateScope.make(kind, *((given,) if isinstance(given, str) else given))
    return found
