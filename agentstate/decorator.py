"""`stateful`: gives a handler its state.

The wrapper looks like the handler without its injected parameters, to people, type checkers
and frameworks that read signatures. It keeps nothing between calls but its settings, so it
may run any number of times at once.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, cast

import wrapt

from agentstate.annotations import innermost
from agentstate.binding import Binding
from agentstate.call import Call, Plan
from agentstate.errors import HandlerSignatureError
from agentstate.ids import CONTEXT_NAMES, CONVERSATION_NAMES, SESSION_NAMES, context_id_of
from agentstate.injection import plan
from agentstate.streaming import StatefulStream
from agentstate.synchronous import run_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from agentstate.binding import Bound
    from agentstate.injection import Injection
    from agentstate.shapes import Stateful

__all__ = [
    "BoundHandler",
    "StatefulHandler",
    "apply_state",
    "stateful",
    "stateful_conversation",
    "stateful_session",
    "stateful_user",
    "with_state",
]

if TYPE_CHECKING:  # only type checkers know wrapt's classes as generic
    _Base = wrapt.FunctionWrapper[..., Any]
    _BoundBase = wrapt.BoundFunctionWrapper[..., Any]
else:
    _Base, _BoundBase = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper


class _Face:
    """What both kinds of handler have in common."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def binding(self) -> Binding: ...

    @property
    def bound(self) -> Bound:
        """The settings and the store it runs on."""
        return self.binding.resolve()

    # A copy is the handler itself, and a pickle its name, as with functions.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self


class BoundHandler(_Face, _BoundBase):
    """A stateful method, bound to its object."""

    @property
    def binding(self) -> Binding:
        """Where the settings of this handler come from."""
        binding: Binding = self._self_parent.binding
        return binding

    @property
    def __func__(self) -> Any:
        return self._self_parent

    @property
    def __signature__(self) -> inspect.Signature:
        return _shown(self.__wrapped__, self._self_parent.__signature__)

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        annotations: dict[str, Any] = self._self_parent.__annotations__
        return annotations

    def __reduce_ex__(self, _: SupportsIndex) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__name__)


class StatefulHandler(_Face, _Base):
    """A handler with state. Call it as if it had no injected parameters.

    Frameworks may set its signature and annotations, as they do with functions; the function
    inside stays as it is.
    """

    __bound_function_wrapper__ = BoundHandler

    def __init__(self, wrapped: Callable[..., Any], binding: Binding, injection: Injection, run: Any) -> None:
        """Wrap a function or a bound method."""
        super().__init__(wrapped, run)
        self._self_own = (binding, injection)
        self._self_signature = _shown(wrapped, injection.signature)
        self._self_annotations = injection.annotations
        if inspect.ismethod(wrapped):
            self._self_function = StatefulHandler(wrapped.__func__, binding, injection, run)

    @property
    def binding(self) -> Binding:
        """Where the settings of this handler come from."""
        return self._self_own[0]

    @property
    def injection(self) -> Injection:
        """Which of its parameters are injected."""
        return self._self_own[1]

    @property
    def __func__(self) -> Any:
        # Of a bound method: frameworks read the signature there, and set it.
        return self._self_function

    @property
    def __signature__(self) -> inspect.Signature:
        return self._self_signature

    @__signature__.setter
    def __signature__(self, signature: inspect.Signature) -> None:
        self._self_signature = signature

    @property
    def __annotations__(self) -> dict[str, Any]:
        return self._self_annotations

    @__annotations__.setter
    def __annotations__(self, annotations: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._self_annotations = annotations

    def __reduce_ex__(self, _: SupportsIndex) -> str:
        name: str = self.__qualname__
        return name


def _shown(wrapped: Any, signature: inspect.Signature) -> inspect.Signature:
    if not inspect.ismethod(wrapped):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _typed(decorator: Callable[..., Any]) -> Stateful:
    return cast("Stateful", decorator)


@_typed
def stateful(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Run a handler in a turn on the state of the conversation it is called for.

    The handler takes ``context`` and ``context_id``, or a parameter annotated `Conversation`.
    It may be a function or a method, ``async def``, an async generator, or ``def``; callers,
    type checkers and frameworks see it without these parameters. Whoever passes them himself
    is not overruled.

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
        state: a pydantic model or dataclass, whose fields are variables: the parameter that is annotated
            with it gets one, and the fields that the handler changed are set when it has succeeded.
        reads: variables that come with the first read even of a large state.
        turns, wait, max_waiting, turn_timeout, history, commit, on_error, on_unavailable, …:
            see ``docs/configuration.md``; so are the backends' own options.

    Functions of the handler's arguments get those that they name: ``key=lambda task: task.room``.

    Raises:
        HandlerSignatureError: the handler takes none of the injected parameters, or can't get them.
    """
    return _sibling(func, arguments, kind="conversation", names=CONTEXT_NAMES)


def _decorate(
    func: Any,
    arguments: Mapping[str, Any],
    kind: str = "conversation",
    names: tuple[str, ...] = CONTEXT_NAMES,
    *,
    required: bool = True,
) -> Any:
    if isinstance(func, (staticmethod, classmethod)):
        made: Any = _decorate(cast("Any", func).__func__, arguments, kind, names, required=required)
        return staticmethod(made) if isinstance(func, staticmethod) else classmethod(made)
    func, called = _as_function(func)
    given = dict(arguments)
    plain: Callable[..., Any] = getattr(func, "__func__", func)
    func = _typed_state(func, given.pop("state", None))
    target: Callable[..., Any] = getattr(func, "__func__", func)
    injection = plan(target, given.pop("inject", True), required=required)
    reads = tuple(given.pop("reads", ()))
    registered = getattr(target, "__agentstate_name__", None)
    calls = Plan(
        injection=injection,
        handler=given.pop("name", None) or registered or called,
        kind=kind,
        key=_key(injection, given.pop("key", None), names),
        owner=_asking(injection, given.pop("owner", None)),
        once=_asking(injection, given.pop("once", None)),
        names=names,
        own_id=kind == "conversation",
    )
    binding = Binding([*dict.fromkeys((registered or calls.handler, calls.handler, called))], given, reads)
    handler = StatefulHandler(func, binding, injection, _runner(target, binding, calls))
    from agentstate.dispatching import wrapped

    wrapped(plain, handler)
    return handler


def _typed_state(func: Any, wanted: type[Any] | None) -> Any:
    if wanted is None:
        return func
    from agentstate.manager.typedturn import with_typed_state

    return with_typed_state(func, wanted)


def _is_stateful(func: Any) -> bool:
    return isinstance(getattr(func, "__func__", func), StatefulHandler)


def _as_function(func: Any) -> tuple[Any, str]:
    """Return a handler as a function or method, and its name; an object that is called is its method."""
    if _is_stateful(func):
        raise HandlerSignatureError(f"{func.__qualname__} has state already.", remedy="Decorate it once.")
    if not callable(func) or isinstance(func, type):
        raise HandlerSignatureError(f"{func!r} is no function.", remedy="Put @stateful on a function or method.")
    handler: Any = func
    if not (inspect.isroutine(func) or isinstance(func, functools.partial)):
        return handler.__call__, type(handler).__name__
    return handler, innermost(handler).__name__


def _asking(injection: Injection, ask: Any) -> Any:
    return injection.asking(ask) if callable(ask) else ask


def _key(injection: Injection, key: Any, names: tuple[str, ...]) -> Any:
    """Return how the id is found; one that the handler takes as an argument of its own is found first."""
    key = _asking(injection, key)
    names = names if key is None else ("context_id",)
    name = next((one for one in names if one in injection.signature.parameters), None)
    if name is None:
        return key

    def own(*args: Any, **kwargs: Any) -> Any:
        found, _ = context_id_of({name: injection.named(args, kwargs).get(name)}, (name,), own_id=False)
        return found or (key(*args, **kwargs) if callable(key) else key)

    return own


def _runner(target: Callable[..., Any], binding: Binding, calls: Plan) -> Callable[..., Any]:
    injection = calls.injection
    takes_self = injection.visible[:1] in (["self"], ["cls"])
    start = _start(target)

    def run(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if instance is None and takes_self and args:  # what is called is the bare function, as by classmethod
            instance, args = args[0], args[1:]
        if instance is not None:
            injection.method = True
            if not inspect.ismethod(wrapped):
                wrapped = target.__get__(instance)
        return start(Call(binding.resolve(), calls, wrapped, instance, args, kwargs))

    return run


def _start(target: Callable[..., Any]) -> Callable[[Call], Any]:
    if inspect.isasyncgenfunction(target):
        return StatefulStream
    if inspect.iscoroutinefunction(target):
        return Call.run
    if inspect.isgeneratorfunction(target):
        raise HandlerSignatureError(
            f"{target.__qualname__} is a synchronous generator.", remedy="Make it 'async def' to stream from a turn."
        )
    return run_sync


@_typed
def stateful_conversation(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Like `stateful`, with the id from metadata ``conversation_id``, else ``context_id``, else the task's id."""
    return _sibling(func, arguments, kind="conversation", names=CONVERSATION_NAMES)


@_typed
def stateful_session(func: Callable[..., Any] | None = None, /, **arguments: Any) -> Any:
    """Like `stateful`, with one state per session: the id is the ``session_id``."""
    return _sibling(func, arguments, kind="session", names=SESSION_NAMES)


@_typed
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


def with_state(config: Mapping[str, Any] | None = None, /, **arguments: Any) -> Stateful:
    """Return a decorator for handlers that can't be edited.

    A handler that takes neither ``context`` nor ``context_id`` runs in a turn all the same; its
    state is `agentstate.current`.

    Args:
        config: settings as in a configuration block, such as ``{"backend": "file", "ttl": 3600}``.
        arguments: those of `stateful`.
    """

    def decorate(func: Callable[..., Any]) -> Any:
        return _decorate(func, {**(config or {}), **arguments}, required=False)

    return _typed(decorate)


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
        if name not in named or _is_stateful(handler):
            continue
        wrapped = _decorate(handler, {**arguments, "name": name}, required=False)
        if wrapped.binding.effective().settings.enabled:
            registry[name] = wrapped
            applied.append(name)
    return applied
