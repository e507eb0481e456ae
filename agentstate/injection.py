"""Which parameters of a handler are injected, and how it looks without them.

A parameter is injected

* by its annotation: `ConversationContext`, `Conversation` or their synchronous twins, also
  optional, in ``Annotated``, as text, or as a name that only type checkers import;
* by its annotation `BoundState`, or by the name ``state`` without one, unless it is the first parameter:
  the states of all kinds of scopes (`agentstate.manager.turnstate`);
* by its name: ``context`` when it has no annotation; ``context_id`` when it has none, or is
  text and no conversation stands beside it, which knows its id (it then is the caller's way
  to name the state).

A default other than ``None`` says that somebody else fills the parameter: it stays as it is, and
so does what the caller passes himself, unless it is ``None``. The plan is made once, at decoration.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from agentstate.annotations import OURS, STATE, class_name, evaluated, innermost
from agentstate.errors import HandlerSignatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Injection", "Role", "plan"]

R = TypeVar("R")
Role = Literal["context", "context_id", "conversation", "state"]

POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
NOTHING: Final = inspect.Parameter.empty


@dataclass(slots=True)
class Injection:
    """The plan for one handler.

    Attributes:
        whole: the handler's own signature.
        signature: without the injected parameters; of a method with ``self``.
        roles: injected parameter → what it gets.
        positional: parameters that can be passed by position, a method's ``self`` too.
        visible: those of them that the caller fills.
        first: the place of the first injected parameter among the positional ones.
        shifted: an injected parameter stands where the caller's arguments would land.
        variadic: any number of positional arguments is taken.
        takes_id: a ``context_id`` can be passed on to the handler.
        method: calls come without ``self``, which is filled already.
    """

    whole: inspect.Signature
    signature: inspect.Signature
    roles: dict[str, Role]
    positional: list[str]
    visible: list[str]
    first: int
    shifted: bool
    variadic: bool
    takes_id: bool
    method: bool = False

    @property
    def annotations(self) -> dict[str, Any]:
        """Annotations without the injected parameters, resolved where they can be."""
        shown = {one.name: one.annotation for one in self.signature.parameters.values()}
        shown["return"] = self.signature.return_annotation
        return {name: hint for name, hint in shown.items() if hint is not NOTHING}

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Mapping[Role, Any], *, bound: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments to call the handler with.

        Args:
            args: what the caller passed by position, without a bound method's ``self``.
            kwargs: what the caller passed by name; changed in place.
            given: what each role gets.
            bound: ``self`` is filled already.
        """
        skipped = 1 if bound else 0
        if not (kwargs or self.shifted or len(args) > self.first - skipped):
            return args, {name: given[role] for name, role in self.roles.items()}
        filled: Sequence[str] = ()
        own = len(args) > self.first - skipped and self._fills_injected(args, skipped)
        if own:
            filled = self.positional[skipped : skipped + len(args)]
        for name, role in self.roles.items():
            if kwargs.get(name) is None and name not in filled:
                kwargs[name] = given[role]
        if not self.takes_id:
            kwargs.pop("context_id", None)  # it named the state, and has done so
        return (args, kwargs) if own or not self.shifted else self._woven(args, kwargs, skipped)

    def _fills_injected(self, args: tuple[Any, ...], skipped: int) -> bool:
        """Return whether the caller passes injected parameters by position himself."""
        if len(args) > len(self.visible) - skipped and not self.variadic:
            return True
        return any(
            isinstance(value, OURS) and name in self.roles
            for name, value in zip(self.positional[skipped:], args, strict=False)
        )

    def _woven(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], skipped: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments in the handler's own order, by position as far as they go."""
        visible = self.visible[skipped:]
        for name, value in zip(visible, args, strict=False):
            if name in kwargs:
                raise TypeError(f"multiple values for argument {name!r}")
            kwargs[name] = value
        placed: list[Any] = []
        for name in self.positional[skipped:]:
            value = kwargs.pop(name, self.whole.parameters[name].default)
            if value is NOTHING:
                break
            placed.append(value)
        return (*placed, *args[len(visible) :]), kwargs

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the caller fills, by name, in the handler's order, defaults included."""
        skipped = int(self.method)
        by_place = dict(zip(self.visible[skipped:], args, strict=False))
        found: dict[str, Any] = {}
        for one in list(self.signature.parameters.values())[skipped:]:
            value = by_place.get(one.name, kwargs.get(one.name, one.default))
            if value is not NOTHING and one.kind not in VARIADIC:
                found[one.name] = value
        return found

    def asking(self, ask: Callable[..., R]) -> Callable[..., R]:
        """Return ``ask`` as a function of a call's arguments.

        It gets those that its parameters name, however the caller passed them. A parameter that
        names none of them gets the argument in its place, or keeps its default.
        """
        try:
            wanted = list(inspect.signature(ask).parameters.values())
        except ValueError:  # some built-in functions have none
            return ask
        if any(one.kind in VARIADIC for one in wanted):
            return ask

        def asked(*args: Any, **kwargs: Any) -> R:
            named = self.named(args, kwargs)
            in_place = dict(zip((one.name for one in wanted), named.values(), strict=False))
            got = {
                one.name: named.get(one.name, in_place.get(one.name))
                for one in wanted
                if one.name in named or (one.default is NOTHING and one.name in in_place)
            }
            by_place = [got.pop(one.name) for one in wanted if one.kind is one.POSITIONAL_ONLY and one.name in got]
            return ask(*by_place, **got)

        return asked


def plan(func: Callable[..., Any], inject: bool | Mapping[str, str] = True, *, required: bool = True) -> Injection:
    """Return the injection plan of a handler.

    Args:
        func: the handler; a method as the function that it is.
        inject: ``True`` for the rules above, ``False`` for none, or a mapping of ``context``,
            ``context_id`` and ``conversation`` to the parameters that get them.
        required: nothing to inject is an error.

    Raises:
        HandlerSignatureError: nothing would be injected, a named parameter doesn't exist, or a
            synchronous handler asks for an asynchronous state, or the other way round.
    """
    whole = inspect.signature(func)
    resolved = [one.replace(annotation=evaluated(func, one.annotation)) for one in whole.parameters.values()]
    roles = _roles(func, resolved) if inject is True else _renamed(func, whole, inject or {})
    if not roles and inject is not False and required:
        raise _takes_nothing(func, whole)
    positional = [one for one in resolved if one.kind in POSITIONAL]
    first = next((n for n, one in enumerate(positional) if one.name in roles), len(positional))
    behind = positional[first:]
    kinds = {one.kind for one in resolved}
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    return Injection(
        whole=whole,
        signature=whole.replace(
            parameters=[one for one in resolved if one.name not in roles],
            return_annotation=evaluated(func, whole.return_annotation),
        ),
        roles=roles,
        positional=[one.name for one in positional],
        visible=[one.name for one in positional if one.name not in roles],
        first=first,
        shifted=any(variadic or one.name not in roles or one.kind is one.POSITIONAL_ONLY for one in behind),
        variadic=variadic,
        takes_id="context_id" in whole.parameters or inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _renamed(func: Callable[..., Any], whole: inspect.Signature, inject: Mapping[str, str]) -> dict[str, Role]:
    for role, name in inject.items():
        if role not in typing.get_args(Role) or name not in whole.parameters:
            raise HandlerSignatureError(
                f"{_place(func)}: inject={{{role!r}: {name!r}}} names no parameter of {_name(func)}{whole}.",
                remedy="Map 'context', 'context_id', 'conversation' or 'state' to one of its parameters.",
            )
    return {name: cast("Role", role) for role, name in inject.items()}


def _roles(func: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    ids: list[str] = []
    for one in parameters:
        if one.kind in VARIADIC or not (one.default is NOTHING or one.default is None):
            continue
        name = class_name(one.annotation)
        if name == STATE:
            _check_state(func, one)
            roles[one.name] = "state"
        elif name is not None:
            _check_twin(func, one.name, name)
            roles[one.name] = "context" if name.endswith("Context") else "conversation"
        elif one.name in ("context", "context_id") and (one.annotation is NOTHING or one.annotation is Any):
            roles[one.name] = cast("Role", one.name)
        elif one.name == "state" and one.annotation is NOTHING and not _is_first(one, parameters):
            roles[one.name] = "state"  # as the first parameter it is what a caller passes
        elif one.name == "context_id" and one.annotation is str:
            ids.append(one.name)
    if "conversation" not in roles.values():
        roles |= dict.fromkeys(ids, "context_id")
    return {one.name: roles[one.name] for one in parameters if one.name in roles}


def _is_first(one: inspect.Parameter, parameters: list[inspect.Parameter]) -> bool:
    own = [other for other in parameters if other.name not in ("self", "cls")]
    return own[0] is one


def _check_state(func: Callable[..., Any], parameter: inspect.Parameter) -> None:
    """A ``def`` gets the state of `agentstate.sync`; an annotation that is the other one's is wrong."""
    module = str(getattr(parameter.annotation, "__module__", ""))
    blocks = module.startswith("agentstate.sync.")
    if module.startswith("agentstate.") and blocks == _is_async(func):
        raise HandlerSignatureError(
            f"{_place(func)}: {_name(func)} is {'async' if blocks else 'synchronous'}"
            f" and would not get the {STATE} that {parameter.name!r} asks for.",
            remedy=f"Import {STATE} from agentstate{'' if blocks else '.sync'}.",
        )


def _is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func)


def _check_twin(func: Callable[..., Any], parameter: str, name: str) -> None:
    """An ``async def`` gets what is awaited, a ``def`` what blocks; the annotation must say the same."""
    right = name.removeprefix("Sync") if _is_async(func) else f"Sync{name.removeprefix('Sync')}"
    if name != right:
        raise HandlerSignatureError(
            f"{_place(func)}: {_name(func)} is {'async' if _is_async(func) else 'synchronous'}"
            f" and would not get the {name} that {parameter!r} asks for.",
            remedy=f"Write {parameter}: {right}.",
        )


def _takes_nothing(func: Callable[..., Any], whole: inspect.Signature) -> HandlerSignatureError:
    bare = [one.replace(annotation=NOTHING) for one in whole.parameters.values()]
    place = next(
        (n for n, one in enumerate(bare) if one.kind not in POSITIONAL or one.default is not NOTHING), len(bare)
    )
    added = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("context", "context_id")
        if name not in whole.parameters
    ]
    line = inspect.Signature([*bare[:place], *added, *bare[place:]], __validate_parameters__=False)
    return HandlerSignatureError(
        f"{_place(func)}: {_name(func)} takes neither context nor context_id nor a Conversation.",
        remedy=f"Write: {'async def' if _is_async(func) else 'def'} {_name(func)}{line}: — or use"
        " @stateful(inject=False) and agentstate.current().",
    )


def _name(func: Callable[..., Any]) -> str:
    return getattr(innermost(func), "__name__", repr(func))


def _place(func: Callable[..., Any]) -> str:
    code = getattr(innermost(func), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(func)
