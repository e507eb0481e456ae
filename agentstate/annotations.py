"""What the annotations of a handler mean, also where only type checkers could evaluate them."""

from __future__ import annotations

import ast
import functools
import inspect
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final, ForwardRef, Union

from agentstate.context import ConversationContext
from agentstate.conversation import Conversation
from agentstate.synchronous import SyncConversation, SyncConversationContext

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OURS", "STATE", "class_name", "evaluated", "innermost"]

OURS: Final = (ConversationContext, Conversation, SyncConversationContext, SyncConversation)
STATE: Final = "BoundState"
"""The class of what is injected as ``state``; it is imported by those only who use it."""
NAMES: Final = {*(one.__name__ for one in OURS), STATE}


def class_name(annotation: Any) -> str | None:
    """Return which of our classes an annotation means, if any.

    A text that can't be evaluated here, because only type checkers import its names, is judged
    by the name of the class.
    """
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return _written(annotation)
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return class_name(typing.get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        rest = [one for one in typing.get_args(annotation) if one is not types.NoneType]
        return class_name(rest[0]) if len(rest) == 1 else None
    if (
        isinstance(annotation, type)
        and annotation.__name__ == STATE
        and annotation.__module__.startswith("agentstate.")
    ):
        return STATE
    return next((one.__name__ for one in OURS if one is annotation), None)


def _written(annotation: str) -> str | None:
    try:
        node = ast.parse(annotation.strip(), mode="eval").body
    except SyntaxError:
        return None
    name = _head(node)
    return name if name in NAMES else None


def _head(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Constant(value=str(text)):
            return _written(text)
        case ast.BinOp(left=one, right=ast.Constant(value=None)) | ast.BinOp(left=ast.Constant(value=None), right=one):
            return _head(one)
        case ast.Subscript(value=outer, slice=inner) if _head(outer) in ("Annotated", "Optional"):
            return _head(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
        case _:
            return None


def evaluated(func: Callable[..., Any], annotation: Any) -> Any:
    """Return what an annotation means that was written as text; a name that isn't there leaves it text."""
    if not isinstance(annotation, str):
        return annotation
    inner = innermost(func)
    known = {
        **getattr(inner, "__globals__", {}),
        **{one.__name__: one for one in getattr(inner, "__type_params__", ())},
    }
    try:
        holder = type("_", (), {"__annotations__": {"it": annotation}})
        found = typing.get_type_hints(holder, known, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - an annotation may hold anything, and is not ours to judge
        return annotation
    return None if found is types.NoneType else found


def innermost(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that partials and decorators are wrapped around."""
    while isinstance(func, functools.partial):
        func = func.func
    inner: Callable[..., Any] = inspect.unwrap(func)
    return inner
