"""Single settings on their way from a file, a variable or an argument, with where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from agentstate.config.document import Node, Origin, Unreadable
from agentstate.config.interpolation import expand
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Raw", "Value", "filled_in", "kind_of", "plain", "text_of"]

MAX_DEPTH: Final = 20


class Raw(NamedTuple):
    """A value as it was written."""

    value: object
    origin: Origin


class Value(NamedTuple):
    """A value, and where it comes from.

    Attributes:
        bound: it belongs to the layer's URL: it came in its query, or with the service.
        fault: why the value can't be used; it is raised if the value is what counts.
    """

    value: object
    origin: Origin
    bound: bool = False
    fault: ConfigError | None = None


def text_of(value: Value) -> str:
    """Return a value that must be text."""
    if not isinstance(value.value, str):
        raise ConfigError(f"{value.origin.where}: must be text, not {kind_of(value.value)}.")
    return value.value


def filled_in(raw: Raw, environ: Mapping[str, str] | None) -> Value:
    """Fill in the variables; without ``environ`` there are none."""
    if environ is None:
        return Value(raw.value, raw.origin)
    try:
        return Value(_expanded(raw.value, environ, raw.origin.where), raw.origin)
    except ConfigError as error:
        return Value(raw.value, raw.origin, fault=error)


def _expanded(value: object, environ: Mapping[str, str], where: str) -> object:
    if isinstance(value, str):
        return expand(value, environ, where)
    if isinstance(value, list):
        return [_expanded(one, environ, where) for one in cast("list[object]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {key: _expanded(one, environ, where) for key, one in items}
    return value


def plain(value: object, depth: int = 0) -> object:
    """Return a node's value without its lines.

    Raises:
        ValueError: the value can't be read; the message says why.
    """
    if depth > MAX_DEPTH:
        raise ValueError("is nested too deeply")
    if isinstance(value, Node):
        return plain(value.value, depth)
    if isinstance(value, Unreadable):
        raise ValueError(f"can't be read: {value.problem}")  # noqa: TRY004 - a value, not a type, is wrong
    if isinstance(value, dict):
        return {key: plain(one, depth + 1) for key, one in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [plain(one, depth + 1) for one in cast("list[object]", value)]
    return value


def kind_of(value: object) -> str:
    """Return what a value is, in words."""
    if isinstance(value, bool):
        return "yes or no"
    kinds = {"str": "text", "int": "a number", "float": "a number", "list": "a list", "dict": "a mapping"}
    return kinds.get(type(value).__name__, type(value).__name__)
