"""Listing the states of a key-value storage, by their keys and then by their heads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from agentstate.scope import StateScope
from agentstate.storage.index import ScopeIndex
from agentstate.storage.keyvalue.documents import unpack
from agentstate.storage.keyvalue.head import Head
from agentstate.storage.protocol import Entry, EntryPage, ScopePage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.image import Image
    from agentstate.storage.keyvalue.bytestore import Access
    from agentstate.storage.protocol import ScopeQuery

__all__ = ["all_scopes", "entry_page", "page"]

AT_ONCE: Final = 16


async def all_scopes(access: Access, prefix: str) -> list[tuple[StateScope, str]]:
    """Return the addresses of all states, also of those that were dropped, and the keys of their heads."""
    found: list[tuple[StateScope, str]] = []
    for key in await access.list_keys(f"{prefix}state/"):
        name = key.removeprefix(f"{prefix}state/")
        if "=" not in name:
            found.append((StateScope.parse(unquote(name)), key))
        elif (raw := await access.get(key)) is not None:  # the key has a digest: the document says whose it is
            found.append((StateScope.parse(unpack(key, raw)["scope"]), key))
    return found


async def page(access: Access, prefix: str, query: ScopeQuery, now: float) -> ScopePage:
    """Return one page of states; expired ones are absent."""
    index = ScopeIndex()
    wanted = [one for one in await all_scopes(access, prefix) if _may_match(one[0], query)]
    for start in range(0, len(wanted), AT_ONCE):
        for head in await _heads(access, wanted[start : start + AT_ONCE]):
            if head.image.stamp is not None:
                index.put(head.image.info())
    return index.page(query, now)


async def _heads(access: Access, wanted: Sequence[tuple[StateScope, str]]) -> list[Head]:
    raws = await asyncio.gather(*(access.get(key) for _, key in wanted))
    return [Head.read(scope, key, raw) for (scope, key), raw in zip(wanted, raws, strict=True) if raw is not None]


def _may_match(scope: StateScope, query: ScopeQuery) -> bool:
    return scope.tenant == query.tenant and query.kind in (None, scope.kind) and scope.id.startswith(query.prefix)


def entry_page(image: Image, section: str, prefix: str, cursor: str | None, limit: int, now: float) -> EntryPage:
    """Return live entries in the order of their keys."""
    if not image.alive(now):
        return EntryPage((), None)
    keys = sorted(
        key
        for name, key in image.entries
        if name == section and key.startswith(prefix) and (cursor is None or key > cursor)
    )
    found: list[tuple[str, Entry]] = []
    for key in keys:
        entry = image.entry(section, key, now)
        if entry is not None:
            if len(found) == limit:
                return EntryPage(tuple(found), found[-1][0])
            found.append((key, entry))
    return EntryPage(tuple(found), None)
