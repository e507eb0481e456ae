"""Handlers by name: `register_handler` and `dispatch`, in either order with ``@stateful``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["dispatch", "handlers", "register_handler"]

F = TypeVar("F", bound="Callable[..., Any]")

_handlers: dict[str, Callable[..., Any]] = {}


def handlers() -> dict[str, Callable[..., Any]]:
    """Return the registered handlers by name."""
    return dict(_handlers)


def register_handler(name: str) -> Callable[[F], F]:
    """Register a handler under a name, which is also its name in the configuration.

    Raises:
        ConfigError: another handler has that name.
    """

    def register(func: F) -> F:
        known = _handlers.get(name)
        if known is not None and _identity(known) != _identity(func):
            raise ConfigError(f"Two handlers are registered as {name!r}.", remedy="Give each its own name.")
        _handlers[name] = func
        binding = getattr(func, "binding", None)
        if binding is not None:
            binding.names.insert(0, name)
            binding.forget()
        else:
            func.__agentstate_name__ = name  # type: ignore[attr-defined]
        return func

    return register


def _identity(func: Callable[..., Any]) -> tuple[str, str]:
    return (getattr(func, "__module__", ""), getattr(func, "__qualname__", repr(func)))


def wrapped(func: Callable[..., Any], handler: Callable[..., Any]) -> None:
    """Let a handler that was registered before it was wrapped be found wrapped."""
    name = getattr(func, "__agentstate_name__", None)
    if name is not None and _handlers.get(name) is func:
        _handlers[name] = handler


async def dispatch(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a registered handler by its name and return what it returns.

    Raises:
        ConfigError: there is none of that name.
    """
    handler = _handlers.get(name)
    if handler is None:
        raise ConfigError(f"No handler is registered as {name!r}.", remedy=nearest(name, _handlers))
    result = handler(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result
