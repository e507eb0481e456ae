"""What to tell somebody whose value can't be stored: where it is, and the line that mends it."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from agentstate.codec.exact import kind_of
from agentstate.codec.scalars import SCALARS

__all__ = ["remedy", "step"]

_MAX_STEP: Final = 40
_BASES: Final = (bool, *SCALARS, list, tuple, set, frozenset, dict)


def step(key: Any) -> str:
    """Return one step of a path, as in ``.name`` or ``['a b']``; of other keys only their type."""
    if type(key) is int:
        return f"[{key}]" if abs(key) < 10**_MAX_STEP else "[…]"
    if type(key) is not str:
        return f"[<{type(key).__qualname__}>]"
    short = key if len(key) <= _MAX_STEP else f"{key[:_MAX_STEP]}…"
    return f".{short}" if key.isidentifier() else f"[{short!a}]"


def remedy(value: Any) -> str:
    """Return how a value that can't be stored becomes one that can."""
    kind = kind_of(value)
    name = kind.__qualname__
    for known, advice in (
        (isinstance(value, type), "Store its name as text."),
        (isinstance(value, Enum), f"Store value.value, or register it: register_type({name})."),
        (
            hasattr(kind, "model_dump"),
            f"Store value.model_dump() and read it with as_type={name}, or register it: register_type({name}).",
        ),
        (
            hasattr(kind, "__dataclass_fields__"),
            f"Store dataclasses.asdict(value) and read it with as_type={name}, or register it: register_type({name}).",
        ),
        (hasattr(kind, "_fields"), "Store value._asdict() or tuple(value)."),
        (hasattr(kind, "SerializeToString"), "Store MessageToDict(value), or value.SerializeToString()."),
        (hasattr(kind, "tolist"), "Store value.tolist()."),
    ):
        if known:
            return advice
    for base in kind.__mro__[1:]:
        if base in _BASES:
            return f"Store it as a plain {base.__name__}."
    return f"Store plain values made from it, or register it: register_type({name}, dump=..., load=...)."
