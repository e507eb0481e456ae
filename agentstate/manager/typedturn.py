"""``@stateful(state=Profile)``: a handler's variables as an object of its own type.

The object is made of the turn's variables before the handler runs, one per field, and validated. After it has
succeeded, the fields that it changed are set, and nothing else; they are stored with the turn, or undone with
it. What a field holds is plain JSON in the state, as `as_type` has it.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from agentstate import sync
from agentstate.annotations import evaluated
from agentstate.errors import HandlerSignatureError
from agentstate.manager import entries
from agentstate.manager.bound import BoundState
from agentstate.manager.turnstate import TurnStates
from agentstate.manager.typed import dumped, typed
from agentstate.state.operations import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["with_typed_state"]


class _Loaded:
    """An object of the handler's type, and what its fields were."""

    def __init__(self, states: TurnStates, wanted: type[Any], found: dict[str, Any]) -> None:
        self._states = states
        self._wanted = wanted
        self.value = typed(found, wanted, states.own, "the variables", "")
        self._before: dict[str, Any] = dumped(self.value, wanted)

    @classmethod
    async def load(cls, states: TurnStates, wanted: type[Any], fields: tuple[str, ...]) -> _Loaded:
        return cls(states, wanted, await states.run(states.own, entries.get_many, VARIABLES, fields))

    async def save(self) -> None:
        now: dict[str, Any] = dumped(self.value, self._wanted)
        changed = {name: new for name, new in now.items() if name not in self._before or new != self._before[name]}
        if changed:
            await self._states.run(self._states.own, entries.put_many, VARIABLES, changed)


def with_typed_state(func: Callable[..., Any], wanted: type[Any]) -> Callable[..., Any]:
    """Return a handler that takes `BoundState` where ``func`` takes an object of the type.

    Raises:
        HandlerSignatureError: no parameter is for it, not all of its fields have defaults, or it is a stream.
    """
    fields = _fields(func, wanted)
    signature = inspect.signature(func)
    name = _parameter(func, signature, wanted)
    if inspect.isasyncgenfunction(func) or inspect.isgeneratorfunction(func):
        raise _refused(func, "a stream can't take state=", "Take a Conversation, and set its variables.")
    face, wrap = (BoundState, _awaiting) if inspect.iscoroutinefunction(func) else (sync.BoundState, _blocking)
    made: Any = functools.wraps(func)(wrap(func, signature, name, wanted, fields))
    shown = [
        one.replace(annotation=face if one.name == name else evaluated(func, one.annotation))
        for one in signature.parameters.values()
    ]
    made.__signature__ = signature.replace(parameters=shown)
    return made  # type: ignore[no-any-return]


def _awaiting(
    func: Callable[..., Any], signature: inspect.Signature, name: str, wanted: type[Any], fields: tuple[str, ...]
) -> Callable[..., Any]:
    async def handler(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        loaded = await _Loaded.load(_states(bound.arguments[name]), wanted, fields)
        bound.arguments[name] = loaded.value
        result = await func(*bound.args, **bound.kwargs)
        await loaded.save()
        return result

    return handler


def _blocking(
    func: Callable[..., Any], signature: inspect.Signature, name: str, wanted: type[Any], fields: tuple[str, ...]
) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        state: sync.BoundState = bound.arguments[name]
        states = _states(state.target)
        loaded = sync.finish("state", state.loop, lambda: _Loaded.load(states, wanted, fields))
        bound.arguments[name] = loaded.value
        result = func(*bound.args, **bound.kwargs)
        sync.finish("state", state.loop, loaded.save)
        return result

    return handler


def _states(state: BoundState) -> TurnStates:
    assert isinstance(state.operations, TurnStates)
    return state.operations


def _fields(func: Callable[..., Any], wanted: type[Any]) -> tuple[str, ...]:
    from pydantic import ValidationError

    try:
        return tuple(dumped(wanted(), wanted))
    except (ValidationError, TypeError) as error:
        raise _refused(
            func, f"{wanted!r} can't be made without variables ({error})", "Give each of its fields a default."
        ) from None


def _parameter(func: Callable[..., Any], signature: inspect.Signature, wanted: type[Any]) -> str:
    parameters = signature.parameters.values()
    named = [one.name for one in parameters if evaluated(func, one.annotation) is wanted]
    named += [one.name for one in parameters if one.name == "state" and one.annotation is one.empty]
    if not named:
        raise _refused(func, f"no parameter takes the {wanted.__name__}", f"Add one: state: {wanted.__name__}.")
    return named[0]


def _refused(func: Callable[..., Any], why: str, remedy: str) -> HandlerSignatureError:
    return HandlerSignatureError(f"{getattr(func, '__qualname__', func)}: {why}.", remedy=remedy)
