"""State for handlers in a dispatch table or a chain of handlers, without any framework."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from agentstate.decorator import StatefulHandler, with_state

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StateMiddleware"]


class StateMiddleware(StatefulHandler):
    """Wraps a handler, so that each call of it runs in a turn.

    ::

        table = {name: StateMiddleware(handler, name=name) for name, handler in handlers.items()}
        reply = await table["chat"](request)

    The handler is a function, a method or an object that can be called, the next link of a chain
    for example. It takes ``context`` and ``context_id`` or a `Conversation`, or nothing: then
    `agentstate.current` is its state. Which conversation a call is for is found as `stateful` does.

    Args:
        handler: what is called in the turn.
        settings: those of `stateful`: ``name``, ``storage``, ``url``, ``key``, ``turns``, …
    """

    def __init__(self, handler: Callable[..., Any], /, **settings: Any) -> None:
        """Wrap a handler; nothing is opened.

        Raises:
            HandlerSignatureError: it has state already, or can't get it.
        """
        made = cast("StatefulHandler", with_state(settings)(_link(handler)))
        super().__init__(made.__wrapped__, made.binding, made.injection, made._self_wrapper)  # noqa: SLF001 - its own


def _link(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler, or for an object whose call hands an awaitable on, the coroutine function it amounts to."""
    call = getattr(type(handler), "__call__", None)  # noqa: B004 - its kind is asked, not whether it has one
    if inspect.isroutine(handler) or not inspect.isfunction(call) or inspect.iscoroutinefunction(call):
        return handler
    if inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call):
        return handler

    async def link(*args: Any, **kwargs: Any) -> Any:
        result = handler(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    function: Any = link
    function.__name__ = function.__qualname__ = type(handler).__name__
    function.__signature__ = inspect.signature(handler)
    function.__annotations__ = dict(inspect.get_annotations(call))
    return function  # type: ignore[no-any-return]
