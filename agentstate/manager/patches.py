"""Changing a part of a value: JSON Pointer (RFC 6901), Merge Patch (RFC 7396), JSON Patch (RFC 6902).

All are pure: they return a new value and leave the old one alone. ``jsonpatch`` and ``jsonpointer`` are
imported when first needed. What can't be done raises `UnsupportedValueError` with the pointer as its path.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConflictError, UnsupportedValueError
from agentstate.state.buffer import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jsonpointer import JsonPointer


@lru_cache(maxsize=256)
def _pointer(path: str) -> JsonPointer:
    from jsonpointer import JsonPointer, JsonPointerException

    try:
        return JsonPointer(path)
    except JsonPointerException as error:
        raise UnsupportedValueError(
            f"{path!r} is no JSON Pointer: {error}.", path=path, remedy="Write it as in '/items/0/name'."
        ) from None


def resolve(value: Any, path: str) -> Any:
    """Return what a pointer leads to, `MISSING` when that isn't there."""
    from jsonpointer import JsonPointerException

    try:
        return _pointer(path).resolve(value, MISSING)
    except JsonPointerException:  # it leads through a text or a number
        return MISSING


def put(value: Any, path: str, part: Any) -> Any:
    """Return a value with a part of it replaced or added; containers on the way must be there."""
    from jsonpointer import JsonPointerException

    if not path:
        return part
    try:
        return _pointer(path).set({} if value is MISSING else value, part, inplace=False)
    except JsonPointerException as error:
        raise UnsupportedValueError(f"Nothing can be put at {path!r}: {error}.", path=path) from None


def add(value: Any, path: str, by: int) -> Any:
    """Return a value with a number in it increased; it starts at 0."""
    now = MISSING if value is MISSING else resolve(value, path)
    number: Any = 0 if now is MISSING else now
    if type(number) is not int:
        raise UnsupportedValueError(f"{path!r} holds {type(number).__name__}, no whole number.", path=path)
    return put(value, path, number + by)


def merge(value: Any, patch: Any) -> Any:
    """Return a value with a merge patch applied (RFC 7396): ``None`` removes a key, mappings merge."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    changes: dict[Any, Any] = {**patch}
    old: dict[Any, Any] = {**value} if isinstance(value, dict) else {}
    kept = {key: one for key, one in old.items() if changes.get(key, MISSING) is not None}
    return kept | {key: merge(old.get(key), one) for key, one in changes.items() if one is not None}


def patch(value: Any, operations: Iterable[Mapping[str, Any]]) -> Any:
    """Return a value with a JSON patch applied (RFC 6902), all of it.

    Raises:
        ConflictError: a ``test`` of it failed.
        UnsupportedValueError: it can't be applied.
    """
    from jsonpatch import JsonPatchException, JsonPatchTestFailed, apply_patch
    from jsonpointer import JsonPointerException

    steps = [dict(one) for one in operations]
    try:
        return apply_patch(value, steps)
    except JsonPatchTestFailed as error:
        raise FailedTestError(f"A test of the patch failed: {error}.", what="test") from None
    except (JsonPatchException, JsonPointerException) as error:
        raise UnsupportedValueError(f"The patch can't be applied: {error}.", path=_culprit(steps)) from None


class FailedTestError(ConflictError):
    """A ``test`` operation of a patch doesn't hold: to try again would change nothing."""


def _culprit(steps: list[dict[str, Any]]) -> str:
    return str(steps[0].get("path", "")) if len(steps) == 1 else "$"
