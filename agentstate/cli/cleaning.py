"""``agentstate cleanup``: drop what nobody has touched for long.

Each state is dropped only if it is still as the listing saw it and nobody holds its turn, so
running agents lose nothing; stopping half-way leaves whole states.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from agentstate.cli.connection import AsJson, Backend, ConfigFile, Target, Tenant, Url
from agentstate.cli.listing import known_kind
from agentstate.cli.moments import duration
from agentstate.cli.output import counting, print_json
from agentstate.scope import check_id
from agentstate.storage.protocol import ScopePage, ScopeQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentstate.storage.protocol import Storage

__all__ = ["cleanup"]

PAGE = 50


class Counts(NamedTuple):
    """What a cleanup did. ``kept``: changed or in use since they were listed."""

    dropped: int = 0
    kept: int = 0
    expired: int = 0


def cleanup(
    *,
    older_than: Annotated[str, typer.Option(help="Not changed for so long: 24h, 7d.", show_default=False)],
    kind: Annotated[str, typer.Option(help="Which kind of state, or 'all'.")] = "conversation",
    prefix: Annotated[str, typer.Option(help="Only ids that begin so.", show_default=False)] = "",
    user: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    url: Url = None,
    backend: Backend = None,
    config: ConfigFile = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Drop states that have not changed for a time, and sweep what has expired."""
    if tenant:
        check_id(tenant, "tenant")
    query = ScopeQuery(
        kind=None if kind == "all" else known_kind(kind),
        prefix=prefix,
        owner=user,
        updated_before=time.time() - duration(older_than),
        order="updated",
        limit=PAGE,
        tenant=tenant,
    )
    counts = asyncio.run(_cleanup(Target(url, backend, config), query, dry_run=dry_run))
    if as_json:
        print_json({**counts._asdict(), "dry_run": dry_run})
        return
    verb = "would be dropped" if dry_run else "dropped"
    kept = f", {counts.kept} kept (changed or in use meanwhile)" if counts.kept else ""
    expired = f", {counts.expired} expired swept" if counts.expired else ""
    typer.echo(f"{counts.dropped} {verb}{kept}{expired}.")


async def _cleanup(target: Target, query: ScopeQuery, *, dry_run: bool) -> Counts:
    with counting("states looked at") as progress:
        storage: Storage
        async with target.opened() as storage:
            counts = await _drop_old(storage, query, dry_run=dry_run, progress=progress)
            return counts if dry_run else counts._replace(expired=await _sweep(storage))


async def _drop_old(
    storage: "Storage", query: ScopeQuery, *, dry_run: bool, progress: "Callable[[int], None]"
) -> Counts:
    dropped = kept = 0
    page: ScopePage | None = None
    while page is None or page.cursor is not None:
        page = await storage.scopes(query._replace(cursor=page.cursor if page else None))
        if dry_run:
            dropped += len(page.items)
        else:
            gone = await asyncio.gather(*(storage.drop(one.scope, stamp=one.stamp) for one in page.items))
            dropped += sum(gone)
            kept += len(gone) - sum(gone)
        progress(len(page.items))
    return Counts(dropped, kept)


async def _sweep(storage: "Storage") -> int:
    swept = 0
    while True:
        step = await storage.sweep()
        swept += len(step.scopes)
        if step.done:
            return swept
