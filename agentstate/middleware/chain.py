"""State for handlers in a dispatch table or a chain of handlers, without any framework."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from agentstate.decorator import StatefulHandler, with_state

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

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
        """Wrap a handler; nothing is opened."""
        func = _function(handler)
        made = cast("StatefulHandler", with_state(settings)(func))
        super().__init__(func, made.binding, made._self_own[1], made._self_wrapper)  # noqa: SLF001 - its own class's


def _function(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler as a function: what looks at signatures takes a bound method apart again."""
    if inspect.isroutine(handler) and not inspect.ismethod(handler):
        return handler
    call: Any = handler if inspect.ismethod(handler) else type(handler).__call__

    async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with aclosing(handler(*args, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def link(*args: Any, **kwargs: Any) -> Any:
        result = handler(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    function: Any = stream if inspect.isasyncgenfunction(call) else link
    function.__name__ = function.__qualname__ = getattr(handler, "__name__", type(handler).__name__)
    function.__signature__ = inspect.signature(handler)
    function.__annotations__ = dict(inspect.get_annotations(getattr(call, "__func__", call)))
    return function  # type: ignore[no-any-return]
