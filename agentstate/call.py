"""One call of a stateful handler: which state it is for, who asks, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentstate import codec
from agentstate.context import ConversationContext
from agentstate.errors import ContextIdError
from agentstate.handling import Request, in_turn
from agentstate.ids import CONTEXT_NAMES, context_id_of, plain_id
from agentstate.principal import ANONYMOUS, of_call
from agentstate.scope import StateScope, check_id
from agentstate.storage.records import new
from agentstate.text import message_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agentstate.binding import Bound
    from agentstate.injection import Injection, Role
    from agentstate.state.turn import Frame


@dataclass(slots=True)
class Plan:
    """What was fixed at decoration.

    Attributes:
        kind: of the scope: ``conversation``, ``session`` or ``user``.
        names: under which the id is looked for, in this order.
        own_id: the task's own id counts, when there is no other.
    """

    injection: Injection
    handler: str
    kind: str = "conversation"
    key: Callable[..., str] | str | None = None
    owner: Callable[..., str | None] | str | None = None
    once: Callable[..., str | None] | None = None
    names: tuple[str, ...] = CONTEXT_NAMES
    own_id: bool = True


class Call:
    """One call."""

    __slots__ = ("args", "bound", "instance", "kwargs", "plan", "wrapped")

    def __init__(
        self,
        bound: Bound,
        plan: Plan,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Keep the arguments."""
        self.bound = bound
        self.plan = plan
        self.wrapped = wrapped
        self.instance = instance
        self.args = args
        self.kwargs = kwargs

    def request(self) -> Request:
        """Return what the turn needs to know of this call.

        Raises:
            ContextIdError: no id was found, or it can't be used.
        """
        plan = self.plan
        owner = plan.owner
        if owner is None:
            principal = of_call((*self.args, *self.kwargs.values()) if self.kwargs else self.args)
        else:
            principal = (owner(*self.args, **self.kwargs) if callable(owner) else owner) or ANONYMOUS
            if principal:
                principal = check_id(principal, "owner")
        once = plan.once(*self.args, **self.kwargs) if plan.once is not None else None
        _, settings, run_without = self.bound
        fingerprint = self._fingerprint() if once is not None else ""
        scope = self._scope(principal)
        return new(Request, (scope, plan.handler, settings, principal, once, fingerprint, run_without, ""))

    def _scope(self, principal: str | None) -> StateScope:
        plan = self.plan
        if plan.kind == "user":
            if not principal:
                raise ContextIdError(
                    f"{plan.handler} keeps state per user, and this caller has not signed in.",
                    remedy="Put authentication before it, or say who it is with owner=.",
                )
            return StateScope.user(principal)
        given = self.kwargs.get("context_id")
        if given is None and plan.key is not None:
            given = plan.key(*self.args, **self.kwargs) if callable(plan.key) else plan.key
        if given is None:
            given = self._found()
        if type(given) is not str:
            given = plain_id(given)
            if "context_id" in self.kwargs and "context_id" in plan.injection.roles:
                self.kwargs["context_id"] = given  # what the handler gets names its state
        given = check_id(given, plan.kind)
        return StateScope(plan.kind, (given,))

    def _found(self) -> str:
        looked: list[str] = []
        for value in (*self.args, *self.kwargs.values()):
            found, tried = context_id_of(value, self.plan.names, own_id=self.plan.own_id)
            if found:
                return found
            looked += tried
        names = ", ".join(dict.fromkeys(looked)) or "no argument that could hold one"
        raise ContextIdError(
            f"No id for {self.plan.handler}: looked at {names}.",
            remedy="Send a context_id with the task, pass context_id=, or say where it is with @stateful(key=...).",
        )

    def _fingerprint(self) -> str:
        text = "\n".join(message_text(value) for value in self.args)
        return codec.fingerprint(text or [list(self.args), self.kwargs]) or ""

    def arguments(self, context: ConversationContext, context_id: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what to call the handler with."""
        injection = self.plan.injection
        given: dict[Role, Any] = {"context": context, "context_id": context_id}
        if "conversation" in injection.roles.values():
            given["conversation"] = context.conversation(context_id)
        if "state" in injection.roles.values():
            given["state"] = _states(context)
        # The wrapped function of a bound call is bound already: its first parameter isn't the caller's.
        bound = self.instance is not None and hasattr(self.wrapped, "__self__")
        return injection.arguments(self.args, self.kwargs.copy(), given, bound=bound)

    def run(self) -> Coroutine[Any, Any, Any]:
        """Run the handler in its turn, once this is awaited."""
        return in_turn(self.bound.store, self.request, self._begin)

    def _begin(self, frame: Frame) -> Awaitable[Any]:
        args, kwargs = self.arguments(ConversationContext.in_frame(frame), frame.turn.context_id)
        running: Awaitable[Any] = self.wrapped(*args, **kwargs)
        return running


def _states(context: Any) -> Any:
    """Return the states of all kinds in a handler's turn: for a synchronous context, those that block."""
    from agentstate.manager.turnstate import state_in

    assert context.frame is not None
    state = state_in(context.frame)
    if isinstance(context, ConversationContext):
        return state
    from agentstate.sync import BoundState

    return BoundState(state, context.frame.turn.loop)
