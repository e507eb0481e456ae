"""Values as users' types: validated on their way out, plain JSON on their way in."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentstate.errors import UnsupportedValueError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from agentstate.scope import StateScope

T = TypeVar("T")


@lru_cache(maxsize=256)
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(wanted)


def typed(value: object, wanted: type[T], scope: StateScope, key: str, path: str) -> T:
    """Return a value as ``wanted``.

    Raises:
        UnsupportedValueError: it doesn't validate; ``path`` leads to the first fault.
    """
    from pydantic import ValidationError

    try:
        return cast("T", _adapter(cast("Any", wanted)).validate_python(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = path + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in first["loc"])
        raise UnsupportedValueError(
            f"{key!r} of {scope} is no {getattr(wanted, '__name__', wanted)}: {where or 'the value'}: {first['msg']}.",
            path=where or "$",
            remedy=f"{error.error_count()} fault(s) in all; store what the type takes, or change the type.",
        ) from error


def dumped(value: object, wanted: type[Any]) -> Any:
    """Return a value of a type as plain JSON."""
    return _adapter(cast("Any", wanted)).dump_python(value, mode="json")
