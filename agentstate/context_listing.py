"""Listing conversations and dropping old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from agentstate.storage.protocol import ScopeInfo, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentstate.storage.protocol import Storage

PAGE = 500


class ContextInfo(NamedTuple):
    """What a listing says of one conversation. Times are seconds since the epoch."""

    context_id: str
    user_id: str | None
    created_at: float
    updated_at: float
    expires_at: float | None
    version: int
    messages: int
    labels: Mapping[str, str]


class ContextPage(list[ContextInfo]):
    """A page of conversations.

    Attributes:
        cursor: pass it for the next page; ``None`` on the last.
    """

    def __init__(self, items: Iterable[ContextInfo] = (), cursor: str | None = None) -> None:
        """Hold the items of a page."""
        super().__init__(items)
        self.cursor = cursor

    @property
    def ids(self) -> list[str]:
        """The ids alone."""
        return [info.context_id for info in self]


async def list_page(
    storage: Storage,
    tenant: str,
    owner: str | None,
    prefix: str,
    updated_before: float | None,
    updated_after: float | None,
    order: Literal["id", "updated"],
    cursor: str | None,
    *,
    reverse: bool,
    limit: int,
) -> ContextPage:
    """Return a page of conversations."""
    if order not in ("id", "updated"):
        raise ValueError(f"order is {order!r}; use 'id' or 'updated'")
    if limit < 1:
        raise ValueError(f"limit is {limit}; a page holds at least 1")
    query = ScopeQuery(
        kind="conversation",
        prefix=prefix,
        owner=owner,
        updated_before=updated_before,
        updated_after=updated_after,
        order=order,
        reverse=reverse,
        cursor=cursor,
        limit=limit,
        tenant=tenant,
    )
    page = await storage.scopes(query)
    return ContextPage((_info(one) for one in page.items), page.cursor)


def _info(one: ScopeInfo) -> ContextInfo:
    return ContextInfo(
        one.scope.id,
        one.owner,
        one.created_at,
        one.updated_at,
        one.expires_at,
        one.stamp.version,
        one.log_lengths.get("history", 0),
        one.labels,
    )


async def cleanup(storage: Storage, tenant: str, owner: str | None, before: float, *, dry_run: bool) -> int:
    """Drop conversations last changed before a time; each only if it is still as the listing saw it."""
    query = ScopeQuery(
        kind="conversation", owner=owner, updated_before=before, order="updated", limit=PAGE, tenant=tenant
    )
    dropped = 0
    while True:
        page = await storage.scopes(query)
        for one in page.items:
            dropped += dry_run or await storage.drop(one.scope, stamp=one.stamp)
        if page.cursor is None:
            return dropped
        query = query._replace(cursor=page.cursor)
