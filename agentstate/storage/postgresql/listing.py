"""Listing states: which walks a page takes, and its cursor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentstate.errors import StateError, StorageError
from agentstate.scope import KINDS, StateScope
from agentstate.storage.index import decode_cursor, encode_cursor
from agentstate.storage.postgresql.decode import info_of
from agentstate.storage.postgresql.encode import label_digest
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["page_arguments", "page_of", "text_after"]

Position = tuple[float, str, str]


def page_arguments(query: ScopeQuery, now: float | None) -> list[Any]:
    """Return the arguments of the stored function; one more row than the page has is asked for.

    Raises:
        StorageError: the cursor is no cursor of this order.
    """
    at = _position(query)
    kinds = sorted(KINDS if query.kind is None else {query.kind} & set(KINDS), reverse=query.reverse)
    if at is not None and query.order == "id":
        kinds = [kind for kind in kinds if kind == at[1] or (kind < at[1]) == query.reverse]
    return [
        *(now, query.tenant, kinds),
        *((query.prefix, text_after(query.prefix)) if query.prefix else (None, None)),
        query.owner,
        None if query.label is None else label_digest(*query.label),
        *(query.updated_before, query.updated_after),
        *(query.order == "updated", query.reverse),
        *(at or (None, None, None)),
        query.limit + 1,
    ]


def page_of(query: ScopeQuery, rows: Sequence[Any]) -> ScopePage:
    """Return the page that rows make."""
    found = [info_of(query.tenant, row) for row in rows]
    if query.order == "updated":
        found.sort(key=_by_update, reverse=query.reverse)
    items = tuple(found[: query.limit])
    return ScopePage(items, _cursor(items[-1], query) if len(found) > query.limit and items else None)


def _by_update(info: ScopeInfo) -> tuple[float, str, str]:
    return (info.updated_at, info.scope.kind, info.scope.id)


def _cursor(last: ScopeInfo, query: ScopeQuery) -> str:
    scope = last.scope
    return encode_cursor((last.updated_at, scope.text) if query.order == "updated" else (scope.kind, scope.id))


def _position(query: ScopeQuery) -> Position | None:
    """Return where the page before ended: update time (0 when ordered by id), kind, id."""
    if query.cursor is None:
        return None
    first, second = decode_cursor(query.cursor)
    if query.order == "id" and isinstance(first, str):
        return (0.0, first, second)
    if query.order == "updated" and isinstance(first, float):
        try:
            scope = StateScope.parse(second)
        except StateError as error:
            raise _no_cursor(query) from error
        return (first, scope.kind, scope.id)
    raise _no_cursor(query)


def _no_cursor(query: ScopeQuery) -> StorageError:
    return StorageError(f"{query.cursor!r} is a cursor of another order.", remedy="Pass the cursor of the page before.")


def text_after(prefix: str) -> str | None:
    """Return the least text greater than every text with this prefix; ``None`` if there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return None
    # Surrogates are no characters: what follows U+D7FF is U+E000.
    following = "\ue000" if stem[-1] == "\ud7ff" else chr(ord(stem[-1]) + 1)
    return stem[:-1] + following
