"""``agentstate import-agentup``: take over what AgentUp itself wrote.

Each record becomes one commit, and stays as it is. What is there already is left alone, so an
import that was interrupted is simply started again, also while agents are running.
"""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from agentstate.cli.connection import AsJson, Backend, ConfigFile, Target, Tenant, Url, is_missing
from agentstate.cli.output import counting, print_json
from agentstate.scope import check_id

if TYPE_CHECKING:
    from agentstate.exchange import Imported
    from agentstate.storage.protocol import Storage

__all__ = ["import_"]


def import_(
    *,
    source: Annotated[
        str | None,
        typer.Argument(help="AgentUp's directory or Valkey URL; else what lies at the storage itself."),
    ] = None,
    key_prefix: Annotated[
        str | None, typer.Option(help="Of AgentUp's keys, with a Valkey URL.", show_default="agentup:state:")
    ] = None,
    siblings: Annotated[
        bool, typer.Option("--siblings", help="Ids like user:ada and session:7 become users and sessions.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    url: Url = None,
    backend: Backend = None,
    config: ConfigFile = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Import the conversations that AgentUp wrote; what is there already is left alone."""
    if tenant:
        check_id(tenant, "tenant")
    target = Target(url, backend, config)
    done = asyncio.run(_import(target, source, key_prefix, tenant, siblings=siblings, dry_run=dry_run))
    if as_json:
        print_json({**done._asdict(), "dry_run": dry_run})
        return
    verb = "would be imported" if dry_run else "imported"
    skipped = f", {len(done.skipped)} skipped (there already, or expired)" if done.skipped else ""
    what = f"{_counted(done.conversations, 'conversation')} with {_counted(done.messages, 'message')}"
    typer.echo(f"{what} {verb}{skipped}.")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


async def _import(
    target: Target, source: str | None, key_prefix: str | None, tenant: str, *, siblings: bool, dry_run: bool
) -> "Imported":
    from agentstate import ConversationContext
    from agentstate.compat.agentup import import_agentup
    from agentstate.storage.memory import MemoryStorage

    async def run(storage: "Storage", origin: "str | Storage") -> "Imported":
        with counting("records read") as progress:
            return await import_agentup(
                origin,
                ConversationContext(storage, tenant=tenant),
                key_prefix=key_prefix,
                siblings=siblings,
                dry_run=dry_run,
                progress=lambda: progress(1),
            )

    there = target.storage()
    if dry_run and is_missing(there):  # and stays so
        return await run(MemoryStorage(), source or there)
    storage: Storage
    async with target.opened(create=True) as storage:
        return await run(storage, source or storage)
