"""``agentstate ls``: which states there are."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from agentstate.cli.connection import AsJson, Backend, ConfigFile, Target, Tenant, Url
from agentstate.cli.moments import ago
from agentstate.cli.output import console, iso, print_json, size, table
from agentstate.config.spelling import nearest
from agentstate.scope import KINDS, check_id
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

__all__ = ["described", "known_kind", "ls"]

HEADINGS = ("STATE", "OWNER", "VERSION", "UPDATED", "EXPIRES", "SIZE", "MESSAGES")


def ls(
    *,
    kind: Annotated[str | None, typer.Option(help=f"Only this kind: {', '.join(KINDS)}.")] = None,
    prefix: Annotated[str, typer.Option(help="Only ids that begin so.", show_default=False)] = "",
    user: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    updated_before: Annotated[str | None, typer.Option(help="Only older than this: 24h, or a date.")] = None,
    updated_after: Annotated[str | None, typer.Option(help="Only younger than this: 24h, or a date.")] = None,
    order: Annotated[str, typer.Option(help="Sort by 'id' or 'updated'.")] = "id",
    reverse: Annotated[bool, typer.Option("--reverse", help="Last ones first.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Go on after a page.")] = None,
    url: Url = None,
    backend: Backend = None,
    config: ConfigFile = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """List states."""
    if order not in {"id", "updated"}:
        raise typer.BadParameter(f"--order is {order!r}; use 'id' or 'updated'.")
    if tenant:
        check_id(tenant, "tenant")
    now = time.time()
    query = ScopeQuery(
        kind=known_kind(kind),
        prefix=prefix,
        owner=user,
        updated_before=ago(updated_before, now) if updated_before else None,
        updated_after=ago(updated_after, now) if updated_after else None,
        order=cast("Literal['id', 'updated']", order),
        reverse=reverse,
        cursor=cursor,
        limit=limit,
        tenant=tenant,
    )
    location, page = asyncio.run(_page(Target(url, backend, config), query))
    if as_json:
        _print_json(location, page)
    else:
        _print_table(location, page)


def known_kind(kind: str | None) -> str | None:
    """Return the kind of scope that was asked for.

    Raises:
        typer.BadParameter: there is none of that name.
    """
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"There is no kind {kind!r}. {nearest(kind, KINDS)}")
    return kind


async def _page(target: Target, query: ScopeQuery) -> tuple[str, ScopePage]:
    storage: Storage
    async with target.opened() as storage:
        return storage.location, await storage.scopes(query)


def described(info: ScopeInfo) -> dict[str, Any]:
    """Return what a listing says of a state, as JSON shows it."""
    return {
        "scope": info.scope.text,
        "kind": info.scope.kind,
        "id": info.scope.id,
        "tenant": info.scope.tenant,
        "owner": info.owner,
        "version": info.stamp.version,
        "stamp": str(info.stamp),
        "created_at": iso(info.created_at),
        "updated_at": iso(info.updated_at),
        "expires_at": iso(info.expires_at),
        "bytes": info.entry_bytes,
        "logs": dict(info.log_lengths),
        "labels": dict(info.labels),
    }


def _print_json(location: str, page: ScopePage) -> None:
    print_json(
        {
            "storage": location,
            "scopes": [described(info) for info in page.items],
            "count": len(page.items),
            "truncated": page.cursor is not None,
            "cursor": page.cursor,
        }
    )


def _print_table(location: str, page: ScopePage) -> None:
    rows = [
        (
            info.scope.text,
            info.owner,
            info.stamp.version,
            iso(info.updated_at),
            iso(info.expires_at),
            size(info.entry_bytes),
            info.log_lengths.get("history", 0),
        )
        for info in page.items
    ]
    if rows:
        table(HEADINGS, rows)
    else:
        console(stderr=True).print(f"No states in {location} match.")
    if page.cursor:
        console(stderr=True).print(f"There are more: --limit, or --cursor {page.cursor}")
