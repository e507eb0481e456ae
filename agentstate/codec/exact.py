"""Which values JSON carries exactly, so that nothing else needs the slower tagged form."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import ValueTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAX_DEPTH", "is_exact", "kind_of", "spend"]

MAX_DEPTH: Final = 200
"""How many containers may stand inside each other."""

kind_of: Callable[[Any], type[Any]] = type
"""``type`` with one argument, as type checkers should see it."""

_SCALARS: Final = frozenset({str, int, bool, type(None)})


def is_exact(value: Any, budget: int) -> bool:
    """Return whether ``value`` is made of exact JSON types only; ``budget`` is how many parts it may have.

    Level by level, so that neither a cycle nor a structure that shares its parts a billion
    times can keep it busy. Keys, large integers and unpaired surrogates are left to the
    encoder, which refuses the ones it can't carry.

    Raises:
        ValueTooLargeError: it has more than ``budget`` parts.
    """
    kind = kind_of(value)
    if kind is not dict and kind is not list:
        return kind in _SCALARS or (kind is float and isfinite(value))
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for container in level:
            budget = spend(budget, len(container))
            items: Iterable[Any] = container.values() if kind_of(container) is dict else container
            for item in items:
                kind = kind_of(item)
                if kind in _SCALARS:
                    continue
                if kind is dict or kind is list:
                    deeper.append(item)
                elif kind is not float or not isfinite(item):
                    return False
        if not deeper:
            return True
        level = deeper
    return False


def spend(budget: int, parts: int) -> int:
    """Return what is left of ``budget`` after ``parts``.

    Raises:
        ValueTooLargeError: nothing.
    """
    if parts > budget:
        raise ValueTooLargeError("The value has too many parts.", remedy="Split it over several keys.")
    return budget - parts
