"""Log events: what happened to which state in whose turn, never what it holds.

Events are structlog's, rendered as ``event key=value …`` onto the standard library's loggers
``agentstate.*``, whatever the application does with structlog itself. At DEBUG there is one
line per read, wait and commit. Inside a handler the same four keys are bound as structlog's
context variables, so that the application's own events carry them.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token

__all__ = ["bind_context", "debug", "unbind_context", "warning"]


@functools.cache
def _bound(name: str) -> Any:
    import structlog

    return structlog.wrap_logger(
        logging.getLogger(f"agentstate.{name}"),
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event", "handler", "scope", "turn", "correlation_id"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )


_turn = logging.getLogger("agentstate.turn")


debugging = functools.partial(_turn.isEnabledFor, logging.DEBUG)
"""Whether anybody listens to the events of turns."""


def debug(event: str, **fields: Any) -> None:
    """Log an event of a turn; ask `debugging` first where speed matters."""
    _bound("turn").debug(event, **fields)


def warning(event: str, **fields: Any) -> None:
    """Log what somebody should look at."""
    _bound("turn").warning(event, **fields)


def bind_context(**fields: str) -> Mapping[str, Token[Any]] | None:
    """Bind keys for the application's own events, if it uses structlog at all."""
    structlog = sys.modules.get("structlog")
    return structlog.contextvars.bind_contextvars(**fields) if structlog is not None else None


def unbind_context(tokens: Mapping[str, Token[Any]] | None) -> None:
    """Take the keys away again."""
    if tokens is not None:
        sys.modules["structlog"].contextvars.reset_contextvars(**tokens)
