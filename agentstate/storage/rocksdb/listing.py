"""Listing the states of a RocksDB store: every order and filter walks keys of its own.

A page in the order of updates without a kind merges one walk for each kind. Pages are made without
the lock: each walk is over the keys of one moment, and a state that is changed meanwhile keeps the
place that it had then.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

from agentstate.errors import StorageError
from agentstate.scope import KINDS, StateScope
from agentstate.storage.index import decode_cursor, encode_cursor
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery
from agentstate.storage.rocksdb.keys import TIME, after_prefix, head_key, scope_of, walk_prefix
from agentstate.storage.rocksdb.rows import unpack_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentstate.storage.rocksdb.engine import Engine

__all__ = ["page"]

Found = tuple[float, StateScope, bytes]


def page(engine: Engine, query: ScopeQuery, now: float) -> ScopePage:
    """Return one page of states; expired ones are absent."""
    at = _position(query)
    walks = [_walk(engine, query, kind, at) for kind in sorted(KINDS) if query.kind in (None, kind)]
    ordered: Iterable[Found]
    if query.order == "id":
        ordered = itertools.chain.from_iterable(reversed(walks) if query.reverse else walks)
    else:
        ordered = heapq.merge(*walks, key=_by_update, reverse=query.reverse)
    found: list[ScopeInfo] = []
    last = 0.0
    for updated, scope, head in ordered:
        key = head_key(scope)
        row = head or engine.get(key)
        info = None if row is None else unpack_head(scope, key, row).info()
        if info is None or not _matches(info, query, now):
            continue
        if len(found) == query.limit:
            return ScopePage(tuple(found), _cursor(last, found[-1].scope, query))
        found.append(info)
        last = updated
    return ScopePage(tuple(found), None)


def _by_update(one: Found) -> tuple[float, str]:
    return one[0], one[1].text


def _cursor(updated: float, scope: StateScope, query: ScopeQuery) -> str:
    return encode_cursor((updated, scope.text) if query.order == "updated" else (scope.kind, scope.id))


def _position(query: ScopeQuery) -> tuple[float, str, str] | None:
    """Return where the page before ended: update time (0 when ordered by id), kind, id."""
    if query.cursor is None:
        return None
    first, second = decode_cursor(query.cursor)
    if query.order == "id" and isinstance(first, str):
        return 0.0, first, second
    if query.order == "updated" and isinstance(first, float):
        scope = StateScope.parse(second)
        return first, scope.kind, scope.id
    raise StorageError(f"{query.cursor!r} is a cursor of another order.", remedy="Pass the cursor of the page before.")


def _matches(info: ScopeInfo, query: ScopeQuery, now: float) -> bool:
    return (
        (not query.prefix or info.scope.id.startswith(query.prefix))
        and (query.owner is None or info.owner == query.owner)
        and (query.updated_before is None or info.updated_at < query.updated_before)
        and (query.updated_after is None or info.updated_at > query.updated_after)
        and (info.expires_at is None or info.expires_at > now)
    )


def _walk(engine: Engine, query: ScopeQuery, kind: str, at: tuple[float, str, str] | None) -> Iterator[Found]:
    """Return one kind's share: time of update (0 when ordered by id), scope, and its head where that is walked over."""
    updated = query.order == "updated"
    listed = walk_prefix(query.tenant, owner=query.owner, label=query.label, updated=updated)
    stem = listed + kind.encode() + b"\0"
    start, end = _bounds_by_update(query, stem) if updated else (stem + query.prefix.encode(), b"")
    end = end or after_prefix(start)
    if at is not None:
        behind = _behind_update(stem, kind, at, query) if updated else _behind_id(stem, kind, at, query)
        start, end = (start, min(end, behind)) if query.reverse else (max(start, behind), end)
    if start >= end:
        return
    name = len(stem) + (TIME.size if updated else 0)
    for key, row in engine.walk(start, end, reverse=query.reverse):
        scope = scope_of(query.tenant, kind, key[name:].decode())
        yield TIME.unpack_from(key, len(stem))[0] if updated else 0.0, scope, row


def _bounds_by_update(query: ScopeQuery, stem: bytes) -> tuple[bytes, bytes]:
    start, end = stem, after_prefix(stem)
    if query.updated_after is not None:
        start = stem + TIME.pack(max(math.nextafter(query.updated_after, math.inf), 0.0))
    if query.updated_before is not None:
        end = stem + TIME.pack(max(query.updated_before, 0.0))
    return start, end


def _behind_id(stem: bytes, kind: str, at: tuple[float, str, str], query: ScopeQuery) -> bytes:
    """Return the key where a kind's share goes on, or ends when in reverse."""
    if kind == at[1]:
        return stem + at[2].encode() + (b"" if query.reverse else b"\0")
    return stem if kind > at[1] else after_prefix(stem)


def _behind_update(stem: bytes, kind: str, at: tuple[float, str, str], query: ScopeQuery) -> bytes:
    """Return the key where a kind's share goes on, or ends when in reverse; kinds are in order at one time."""
    if kind == at[1]:
        return stem + TIME.pack(at[0]) + at[2].encode() + (b"" if query.reverse else b"\0")
    return stem + TIME.pack(at[0] if kind > at[1] else math.nextafter(at[0], math.inf))
