"""Which parameters of a handler are injected, and how it looks without them.

A parameter is injected by its annotation (`ConversationContext`, `Conversation`, or their
synchronous twins), or by its name: ``context`` when it has no annotation, ``context_id`` when
it has none or is text. What the caller passes himself is never replaced. Everything is found
out once, at decoration.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from agentstate.errors import HandlerSignatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Role = Literal["context", "context_id", "conversation"]
ROLES: dict[str, Role] = {
    "ConversationContext": "context",
    "SyncConversationContext": "context",
    "Conversation": "conversation",
    "SyncConversation": "conversation",
}
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(slots=True)
class Injection:
    """The plan for one handler.

    Attributes:
        roles: injected parameter → what it gets.
        visible: positional parameters that the caller fills, in order, a method's ``self`` too.
        leading: an injected parameter stands before one that the caller fills.
        signature: without the injected parameters.
        annotations: likewise, resolved where they can be.
    """

    roles: dict[str, Role]
    visible: list[str]
    leading: bool
    variadic: bool
    signature: inspect.Signature
    annotations: dict[str, Any] = field(default_factory=dict[str, Any])

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], make: Callable[[Role], Any], *, bound: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments to call the handler with.

        More positional arguments than the caller can see mean that he fills the injected
        parameters himself.
        """
        visible = self.visible[1:] if bound else self.visible
        if len(args) > len(visible) and not self.variadic:
            return args, kwargs
        for name, role in self.roles.items():
            if name not in kwargs:
                kwargs[name] = make(role)
        if self.leading:
            kwargs.update(zip(visible, args, strict=False))
            return args[len(visible) :], kwargs
        return args, kwargs


def plan(func: Callable[..., Any], inject: bool | Mapping[str, str]) -> Injection:
    """Return the injection plan of a handler.

    Args:
        func: the handler.
        inject: ``True`` for the rules above, ``False`` for none, or a mapping of ``context``,
            ``context_id`` and ``conversation`` to the parameters that get them.

    Raises:
        HandlerSignatureError: nothing would be injected, or a named parameter doesn't exist.
    """
    signature = inspect.signature(func)
    hints = _hints(func)
    parameters = list(signature.parameters.values())
    roles = {} if inject is False else _roles(func, signature, hints, inject)
    if not roles and inject is not False:
        raise _no_parameter(func, signature)
    positional = [one for one in parameters if one.kind in POSITIONAL]
    kept = [one for one in parameters if one.name not in roles]
    first_injected = next((n for n, one in enumerate(positional) if one.name in roles), len(positional))
    shown = {name: hint for name, hint in hints.items() if name not in roles}
    return Injection(
        roles=roles,
        visible=[one.name for one in positional if one.name not in roles],
        leading=any(one.name not in roles for one in positional[first_injected:]),
        variadic=any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters),
        signature=signature.replace(
            parameters=[one.replace(annotation=shown.get(one.name, one.annotation)) for one in kept],
            return_annotation=shown.get("return", signature.return_annotation),
        ),
        annotations=shown,
    )


def _roles(
    func: Callable[..., Any], signature: inspect.Signature, hints: dict[str, Any], inject: bool | Mapping[str, str]
) -> dict[str, Role]:
    if not isinstance(inject, bool):
        for wanted, name in inject.items():
            if wanted not in ("context", "context_id", "conversation") or name not in signature.parameters:
                raise HandlerSignatureError(
                    f"inject={{{wanted!r}: {name!r}}} names no parameter of {_name(func)}{signature}.",
                    remedy="Map 'context', 'context_id' or 'conversation' to one of its parameters.",
                )
        return {name: cast("Role", role) for role, name in inject.items()}
    roles: dict[str, Role] = {}
    for name, parameter in signature.parameters.items():
        role = _role_of(name, parameter, hints.get(name, parameter.annotation))
        if role is not None:
            roles[name] = role
    return roles


def _role_of(name: str, parameter: inspect.Parameter, annotation: Any) -> Role | None:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return None
    bare = annotation is inspect.Parameter.empty
    if bare:
        return cast("Role", name) if name in ("context", "context_id") else None
    if name == "context_id" and (annotation is str or annotation == "str"):
        return "context_id"
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if not isinstance(annotation, str) and not getattr(annotation, "__module__", "").startswith("agentstate"):
        return None
    return ROLES.get(written.rpartition(".")[2].strip("'\""))


def _hints(func: Callable[..., Any]) -> dict[str, Any]:
    """Return annotations, resolved one by one: a name that only type checkers know stays text."""
    raw = dict(inspect.get_annotations(func))
    scope = getattr(inspect.unwrap(func), "__globals__", {})
    found: dict[str, Any] = {}
    for name, hint in raw.items():
        try:
            holder = type("_", (), {"__annotations__": {name: hint}})
            found[name] = typing.get_type_hints(holder, scope, include_extras=True)[name]
        except Exception:  # noqa: BLE001 - an annotation may hold anything, and is not ours to judge
            found[name] = hint
    return found


def _no_parameter(func: Callable[..., Any], signature: inspect.Signature) -> HandlerSignatureError:
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    prefix = "async def" if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func) else "def"
    line = f"{prefix} {_name(func)}({', '.join([*names, 'context', 'context_id'])}):"
    return HandlerSignatureError(
        f"{_name(func)}{signature} takes neither a context nor a conversation.",
        remedy=f"Write: {line} — or use @stateful(inject=False) and agentstate.current().",
    )


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", repr(func)).rpartition("<locals>.")[2]
