"""``agentstate copy``: move states to another storage, while both are in use."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agentstate.cli.connection import AsJson, Target, Tenant
from agentstate.cli.listing import known_kind
from agentstate.cli.output import print_json, progressing
from agentstate.errors import ConfigError
from agentstate.scope import check_id
from agentstate.storage.protocol import ScopeQuery

if TYPE_CHECKING:
    from agentstate.exchange import Copied
    from agentstate.storage.protocol import Storage

__all__ = ["copy"]

PAGE = 1000


def copy(
    *,
    source: Annotated[str, typer.Argument(metavar="SRC", help="The URL to copy from, as in sqlite:///state.db.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The URL to copy to, as in valkey://host:6379.")],
    kind: Annotated[str, typer.Option(help="Which kind of state, or 'all'.")] = "all",
    prefix: Annotated[str, typer.Option(help="Only ids that begin so.", show_default=False)] = "",
    user: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    on_existing: Annotated[
        Literal["error", "skip", "replace"],
        typer.Option(help="When another state is there: stop, leave it, or replace it."),
    ] = "error",
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Copy states to another storage. Running it again copies what has changed since."""
    if tenant:
        check_id(tenant, "tenant")
    query = ScopeQuery(kind=None if kind == "all" else known_kind(kind), prefix=prefix, owner=user, tenant=tenant)
    done = asyncio.run(_copy(Target(source, None, None), Target(target, None, None), query, on_existing))
    if as_json:
        print_json(done._asdict())
        return
    same = f", {done.same} there already" if done.same else ""
    skipped = f", {done.skipped} skipped" if done.skipped else ""
    typer.echo(f"{done.copied} copied with {done.items} log items{same}{skipped}.")


async def _copy(
    source: Target, target: Target, query: ScopeQuery, on_existing: Literal["error", "skip", "replace"]
) -> "Copied":
    from agentstate.exchange import copy_states

    there: Storage
    here: Storage
    async with source.opened() as here, target.opened(create=True) as there:
        if here.location == there.location:
            raise ConfigError(f"Both are {here.location}.", remedy="Name another place to copy to.")
        with progressing("states", await _count(here, query)) as progress:
            return await copy_states(here, there, query, on_existing=on_existing, progress=progress)


async def _count(storage: "Storage", query: ScopeQuery) -> int:
    found, cursor = 0, None
    while True:
        page = await storage.scopes(query._replace(limit=PAGE, cursor=cursor))
        found, cursor = found + len(page.items), page.cursor
        if cursor is None:
            return found
