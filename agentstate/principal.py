"""Who asks: the host's principal, never what a message says about itself.

``None`` means that the host doesn't know callers: ids are then trusted as they come.
`ANONYMOUS` means that it knows them, and this one has not signed in.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ANONYMOUS = ""

principal: ContextVar[str | None] = ContextVar("agentstate_principal", default=None)
"""Set by middleware that knows the caller."""


def of_user(user: Any) -> str | None:
    """Return the principal of an ASGI or A2A user object; ``None`` when there is no such object."""
    if user is None:
        return None
    if getattr(user, "is_authenticated", True) is False:
        return ANONYMOUS
    for name in ("user_name", "identity", "username", "id"):
        try:
            value = getattr(user, name, None)
        except NotImplementedError:  # Starlette's base user has no identity
            continue
        if isinstance(value, str) and value:
            return value
    return ANONYMOUS


def of_call(values: Iterable[Any]) -> str | None:
    """Return who calls: the middleware's principal, else the user of an A2A call context among the arguments."""
    known = principal.get()
    if known is not None:
        return known
    for value in values:
        call = getattr(value, "call_context", None)
        user = getattr(call, "user", None) if call is not None else None
        if user is not None:
            return of_user(user)
    return None
