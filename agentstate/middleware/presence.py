"""Makes the context of each request, and lets the code that runs for the request find it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agentstate.binding import Binding
from agentstate.errors import ConfigError
from agentstate.middleware.request import RequestContext
from agentstate.principal import of_user
from agentstate.principal import principal as known_principal
from agentstate.running import offered
from agentstate.state.turn import current

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from agentstate.binding import Bound
    from agentstate.middleware.request import Chooser, Chosen

    Scope = Mapping[str, Any]


class Requests:
    """What the requests of one middleware or dependency have in common."""

    def __init__(
        self,
        choosing: Callable[[Scope], Chooser],
        owner: Callable[[Scope], str | None] | None,
        name: str,
        settings: Mapping[str, Any],
    ) -> None:
        """Keep the settings; they are looked up at the first request."""
        given = {key: value for key, value in settings.items() if value is not None}
        self._choosing = choosing
        self._owner = owner
        self._name = name
        self.binding = Binding([name], given, tuple(given.pop("reads", ())))

    @contextmanager
    def present(self, scope: Scope) -> Generator[RequestContext]:
        """Let the code of a request find its conversation and its principal, for the time of a block."""
        context = self._context(scope)
        tokens = known_principal.set(context.principal), offered.set(context.here), current.set(context.late.gate)
        try:
            yield context
        finally:
            current.reset(tokens[2])
            offered.reset(tokens[1])
            known_principal.reset(tokens[0])

    def _context(self, scope: Scope) -> RequestContext:
        choose = self._choosing(scope)
        if self._owner is not None:
            principal = self._owner(scope)
        elif "user" in scope:
            principal = of_user(scope["user"])
        else:
            principal = known_principal.get()
            choose = _unless_authenticated(scope, choose)
        return RequestContext(self.binding.resolve(), self._name, principal, choose)


def _unless_authenticated(scope: Scope, choose: Chooser) -> Chooser:
    async def chosen(bound: Bound, principal: str | None) -> Chosen:
        if "user" in scope:
            raise ConfigError(
                "This request was authenticated inside ASGIStateMiddleware, which therefore doesn't know its user.",
                remedy="Put authentication around it: in Starlette and FastAPI, add it after ASGIStateMiddleware.",
            )
        return await choose(bound, principal)

    return chosen
