"""`stateful`: gives a handler its state.

The wrapper looks like the handler without its injected parameters, to people, type checkers
and frameworks that read signatures. It keeps nothing between calls but its settings, so it
may run any number of times at once.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import wrapt

from agentstate.binding import Binding
from agentstate.call import Call, Plan
from agentstate.errors import HandlerSignatureError
from agentstate.ids import CONTEXT_NAMES, CONVERSATION_NAMES, SESSION_NAMES
from agentstate.injection import plan
from agentstate.streaming import StatefulStream
from agentstate.synchronous import run_sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

    from agentstate.binding import Bound
    from agentstate.injection import Injection

__all__ = [
    "StatefulHandler",
    "apply_state",
    "stateful",
    "stateful_conversation",
    "stateful_session",
    "stateful_user",
    "with_state",
]

F = TypeVar("F", bound="Callable[..., Any]")

if TYPE_CHECKING:  # only type checkers know wrapt's classes as generic
    _Base = wrapt.FunctionWrapper[..., Any]
    _BoundBase = wrapt.BoundFunctionWrapper[..., Any]
else:
    _Base, _BoundBase = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper


class _BoundHandler(_BoundBase):
    """A stateful method, bound to its object."""

    @property
    def __signature__(self) -> inspect.Signature:
        whole: inspect.Signature = self._self_parent.__signature__
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        annotations: dict[str, Any] = self._self_parent.__annotations__
        return annotations

    @property
    def __func__(self) -> Any:
        return self._self_parent


class StatefulHandler(_Base):
    """A handler with state. Call it as if it had no injected parameters."""

    __bound_function_wrapper__ = _BoundHandler

    def __init__(self, wrapped: Callable[..., Any], binding: Binding, injection: Injection, run: Any) -> None:
        """Wrap a function."""
        super().__init__(wrapped, run)
        self._self_own = (binding, injection)

    @property
    def binding(self) -> Binding:
        """Where the settings of this handler come from."""
        return self._self_own[0]

    @property
    def bound(self) -> Bound:
        """The settings and the store it runs on."""
        return self.binding.resolve()

    @property
    def __signature__(self) -> inspect.Signature:
        return self._self_own[1].signature

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self._self_own[1].annotations


@overload
def stateful(func: F, /) -> F: ...
@overload
def stateful(
    *,
    storage: Any = None,
    url: str | None = None,
    key_prefix: str | None = None,
    ttl: float | None = None,
    storage_dir: str | None = None,
    name: str | None = None,
    key: Callable[..., str] | str | None = None,
    owner: Callable[..., str | None] | str | None = None,
    once: Callable[..., str | None] | None = None,
    inject: bool | Mapping[str, str] = True,
    reads: Iterable[str] = (),
    **options: Any,
) -> Callable[[F], F]: ...
def stateful(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Run a handler in a turn on the state of the conversation it is called for.

    The handler takes ``context`` and ``context_id``, or a parameter annotated `Conversation`.
    It may be a function or a method, ``async def``, an async generator, or ``def``.

    Args:
        func: the handler, when used without parentheses.
        arguments: settings that are stronger than the configuration file.

    Keyword Args:
        storage: a backend's name (``sqlite``, ``file``, ``memory``, ``valkey``, …), or a storage.
        url: of the storage; alone it names the backend too.
        key_prefix: before every key (Valkey).
        ttl: lifetime of a state, in seconds.
        storage_dir: directory (file).
        name: the handler's name in the configuration file; default: the function's.
        key: the state's id: a function of the handler's arguments, or text.
        owner: whose state it is: a function of the handler's arguments, or text.
        once: the idempotency key: a function of the handler's arguments. A second delivery with
            the same key gets the first one's result and changes nothing.
        inject: ``False``: inject nothing (use `agentstate.current`); a mapping renames, as in
            ``{"context": "state", "context_id": "sid"}``.
        reads: variables that come with the first read even of a large state.
        turns, wait, max_waiting, turn_timeout, history, commit, on_error, on_unavailable, …:
            see ``docs/configuration.md``; so are the backends' own options.

    Raises:
        HandlerSignatureError: the handler takes none of the injected parameters.
    """
    return _sibling(func, arguments, kind="conversation", names=CONTEXT_NAMES)


def _decorate(
    func: Callable[..., Any],
    arguments: dict[str, Any],
    kind: str = "conversation",
    names: tuple[str, ...] = CONTEXT_NAMES,
) -> Any:
    # a static or class method holds the function it is made of
    target: Callable[..., Any] = getattr(func, "__func__", func)
    if not callable(target):
        raise HandlerSignatureError(f"{func!r} is no function.", remedy="Put @stateful on a function or method.")
    given = {key: value for key, value in arguments.items() if value is not None}
    inject = given.pop("inject", True)
    injection = plan(target, inject)
    calls = Plan(
        injection=injection,
        handler=given.pop("name", None) or getattr(target, "__agentstate_name__", None) or target.__name__,
        kind=kind,
        key=given.pop("key", None),
        owner=given.pop("owner", None),
        once=given.pop("once", None),
        names=names,
        own_id=kind == "conversation",
    )
    known_as = list(
        dict.fromkeys((getattr(target, "__agentstate_name__", calls.handler), calls.handler, target.__name__))
    )
    binding = Binding(known_as, given, tuple(given.pop("reads", ())))
    handler = StatefulHandler(func, binding, injection, _runner(target, binding, calls))
    from agentstate.dispatching import wrapped

    wrapped(target, handler)
    return handler


def _runner(target: Callable[..., Any], binding: Binding, calls: Plan) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(target):

        def stream(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return StatefulStream(Call(binding.resolve(), calls, wrapped, instance, args, kwargs))

        return stream
    if inspect.iscoroutinefunction(target):

        def run(
            wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Awaitable[Any]:
            return Call(binding.resolve(), calls, wrapped, instance, args, kwargs).run()

        return run
    if inspect.isgeneratorfunction(target):
        raise HandlerSignatureError(
            f"{target.__qualname__} is a synchronous generator.", remedy="Make it 'async def' to stream from a turn."
        )

    def block(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run_sync(Call(binding.resolve(), calls, wrapped, instance, args, kwargs))

    return block


def stateful_conversation(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Like `stateful`, with the id from metadata ``conversation_id``, else ``context_id``, else the task's id."""
    return _sibling(func, arguments, kind="conversation", names=CONVERSATION_NAMES)


def stateful_session(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Like `stateful`, with one state per session: the id is the ``session_id``."""
    return _sibling(func, arguments, kind="session", names=SESSION_NAMES)


def stateful_user(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Like `stateful`, with one state per user, who is the caller's principal or ``owner=``.

    An anonymous caller gets a `ContextIdError`: users would otherwise share one state.
    """
    return _sibling(func, arguments, kind="user", names=CONTEXT_NAMES)


def _sibling(func: Callable[..., Any] | None, arguments: dict[str, Any], *, kind: str, names: tuple[str, ...]) -> Any:
    if func is not None:
        return _decorate(func, arguments, kind, names)

    def decorate(handler: Callable[..., Any]) -> Any:
        return _decorate(handler, arguments, kind, names)

    return decorate


def with_state(config: Mapping[str, Any] | None = None, /, **arguments: Any) -> Callable[[F], F]:
    """Return a decorator for handlers that can't be edited.

    A handler that takes neither ``context`` nor ``context_id`` runs in a turn all the same; its
    state is `agentstate.current`.

    Args:
        config: settings as in a configuration block, such as ``{"backend": "file", "ttl": 3600}``.
        arguments: those of `stateful`.
    """
    given = {**(config or {}), **arguments}
    if "backend" in given:
        given.setdefault("storage", given.pop("backend"))

    def decorate(func: F) -> F:
        try:
            return cast("F", _decorate(func, given))
        except HandlerSignatureError:
            return cast("F", _decorate(func, {**given, "inject": False}))

    return decorate


def apply_state(registry: MutableMapping[str, Callable[..., Any]], **arguments: Any) -> list[str]:
    """Give state to the handlers that the configuration file names, and return their names.

    ``registry`` maps names to handlers, and is changed in place. Handlers that are stateful
    already, and those whose block says ``enabled: false``, stay as they are.

    Raises:
        ConfigError: the file is wrong.
    """
    from agentstate import config

    named = {name for block in config.current().blocks() for name in block.names}
    applied: list[str] = []
    for name, handler in list(registry.items()):
        if name not in named or isinstance(handler, StatefulHandler):
            continue
        wrapped = with_state(name=name, **arguments)(handler)
        if cast("StatefulHandler", wrapped).binding.effective().settings.enabled:
            registry[name] = wrapped
            applied.append(name)
    return applied
