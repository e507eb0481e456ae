"""Values validated on their way out, as a user's type."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentstate.errors import UnsupportedValueError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@lru_cache(maxsize=256)
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(wanted)


def as_type_of(value: object, wanted: type[T], key: str) -> T:
    """Return a value as ``wanted``.

    Raises:
        UnsupportedValueError: it doesn't validate; the message is pydantic's.
    """
    from pydantic import ValidationError

    try:
        return cast("T", _adapter(cast("Any", wanted)).validate_python(value))
    except ValidationError as error:
        raise UnsupportedValueError(
            f"The value of {key!r} is no {getattr(wanted, '__name__', wanted)}: {error}", path=key
        ) from error
