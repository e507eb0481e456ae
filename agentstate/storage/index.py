"""A directory of scopes in memory, for backends whose engine has none.

Sorted views are built when a listing needs them, so that paging is a bisection and a commit
costs two assignments. What has changed since is moved to its new place by the next listing,
unless so much has that sorting anew is quicker.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Any

from agentstate.errors import StorageError
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentstate.scope import StateScope

SortKey = tuple[Any, str]

# Moving a scope in a sorted view costs about as much as sorting this many.
MOVED_SHARE = 64


class ScopeIndex:
    """Answers `ScopeQuery`. Not thread-safe: the owner's lock guards it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._infos: dict[StateScope, ScopeInfo] = {}
        self._sorted: dict[str, list[tuple[SortKey, StateScope]]] = {}
        self._before: dict[StateScope, ScopeInfo | None] = {}

    def __len__(self) -> int:
        return len(self._infos)

    def put(self, info: ScopeInfo) -> None:
        """Note a scope as it is now."""
        if self._sorted:
            self._before.setdefault(info.scope, self._infos.get(info.scope))
        self._infos[info.scope] = info

    def discard(self, scope: StateScope) -> None:
        """Forget a scope."""
        old = self._infos.pop(scope, None)
        if old is not None and self._sorted:
            self._before.setdefault(scope, old)

    def infos(self) -> Iterable[ScopeInfo]:
        """Return all, in no order."""
        return self._infos.values()

    def page(self, query: ScopeQuery, now: float) -> ScopePage:
        """Return one page; expired scopes are absent."""
        found: list[ScopeInfo] = []
        for scope in self._walk(query):
            info = self._infos[scope]
            if not _matches(info, query, now):
                continue
            if len(found) == query.limit:
                return ScopePage(tuple(found), encode_cursor(_key(found[-1], query.order)))
            found.append(info)
        return ScopePage(tuple(found), None)

    def _walk(self, query: ScopeQuery) -> Iterator[StateScope]:
        view = self._view(query.order)
        low, high = 0, len(view)
        if query.cursor is not None:
            at = decode_cursor(query.cursor)
            if query.reverse:
                high = bisect_left(view, at, key=_first)
            else:
                low = bisect_right(view, at, key=_first)
        if query.order == "updated":
            if query.updated_before is not None:
                high = min(high, bisect_left(view, (query.updated_before, ""), key=_first))
            if query.updated_after is not None:
                low = max(low, bisect_right(view, (query.updated_after, "\U0010ffff"), key=_first))
        elif query.kind is not None and query.prefix and not query.reverse:
            low = max(low, bisect_left(view, (query.kind, query.prefix), key=_first))
        numbers = range(high - 1, low - 1, -1) if query.reverse else range(low, high)
        return (view[number][1] for number in numbers)

    def _view(self, order: str) -> list[tuple[SortKey, StateScope]]:
        """Return all scopes in an order."""
        if len(self._before) > len(self._infos) // MOVED_SHARE + 16:
            self._sorted.clear()
        for name, view in self._sorted.items():
            for scope, old in self._before.items():
                if old is not None:
                    del view[bisect_left(view, (_key(old, name), scope))]
                if scope in self._infos:
                    insort(view, (_key(self._infos[scope], name), scope))
        self._before.clear()
        if order not in self._sorted:
            self._sorted[order] = sorted((_key(info, order), info.scope) for info in self._infos.values())
        return self._sorted[order]


def _first(pair: tuple[SortKey, StateScope]) -> SortKey:
    return pair[0]


def _key(info: ScopeInfo, order: str) -> SortKey:
    scope = info.scope
    if order == "updated":
        return (info.updated_at, scope.text)
    return (scope.kind, f"{scope.id}\0{scope.tenant}")


def _matches(info: ScopeInfo, query: ScopeQuery, now: float) -> bool:
    scope = info.scope
    return (
        scope.tenant == query.tenant
        and (query.kind is None or scope.kind == query.kind)
        and (not query.prefix or scope.id.startswith(query.prefix))
        and (query.owner is None or info.owner == query.owner)
        and (query.label is None or info.labels.get(query.label[0]) == query.label[1])
        and (query.updated_before is None or info.updated_at < query.updated_before)
        and (query.updated_after is None or info.updated_at > query.updated_after)
        and (info.expires_at is None or info.expires_at > now)
    )


def encode_cursor(key: SortKey) -> str:
    """Return a cursor as URL-safe text."""
    first = repr(key[0]) if isinstance(key[0], float) else f"'{key[0]}"
    return urlsafe_b64encode(f"{first}\n{key[1]}".encode()).decode()


def decode_cursor(cursor: str) -> SortKey:
    """Return the key a cursor stands for.

    Raises:
        StorageError: it is no cursor of ours.
    """
    try:
        first, _, second = urlsafe_b64decode(cursor.encode()).decode().partition("\n")
        return (first[1:] if first.startswith("'") else float(first), second)
    except ValueError:
        raise StorageError(f"{cursor!r} is no page cursor.", remedy="Pass the cursor of the page before.") from None
