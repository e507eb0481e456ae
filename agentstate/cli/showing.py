"""``agentstate show``: what is in one state."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from agentstate import codec
from agentstate.cli.connection import AsJson, Backend, ConfigFile, Target, Tenant, Url
from agentstate.cli.exits import DATA
from agentstate.cli.output import console, iso, print_json, safe, size, table
from agentstate.errors import ContextNotFoundError, DamagedStateError, NewerFormatError, StateError
from agentstate.scope import KINDS, StateScope
from agentstate.state.legacy import legacy_of
from agentstate.storage.protocol import Entry, Snapshot, Wants

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

__all__ = ["show"]

MAX_ENTRIES: Final = 1000
LOG: Final = "history"


def show(
    *,
    state: Annotated[str, typer.Argument(help="A scope (user:7, global), or the id of a conversation.")],
    messages: Annotated[int, typer.Option(min=0, max=10_000, help="So many of the last messages.")] = 10,
    url: Url = None,
    backend: Backend = None,
    config: ConfigFile = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Show one state: its variables, metadata, last messages, owner, version and expiry."""
    scope = _scope(state, tenant)
    report = asyncio.run(_report(Target(url, backend, config), scope, messages))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report["damaged"]:
        raise typer.Exit(DATA)


def _scope(text: str, tenant: str) -> StateScope:
    if text.startswith("@"):
        return StateScope.parse(text)
    if text == "global" or text.partition(":")[0] in KINDS:
        scope = StateScope.parse(text)
        return StateScope.make(scope.kind, *scope.ids, tenant=tenant)
    return StateScope.conversation(text, tenant=tenant)


async def _report(target: Target, scope: StateScope, messages: int) -> dict[str, Any]:
    storage: Storage
    async with target.opened() as storage:
        snapshot = await storage.read(scope, Wants(tails=((LOG, messages),)))
        if snapshot.stamp is None:
            legacy = legacy_of(storage)
            if legacy is not None:
                await legacy.refuse(scope)
            raise ContextNotFoundError(
                f"There is no state {scope} in {storage.location}.", scope=scope, remedy="See 'agentstate ls'."
            )
        entries, more = await _entries(storage, snapshot)
    damaged: list[str] = []
    sections: dict[str, dict[str, Any]] = {}
    for (section, key), entry in sorted(entries.items()):
        sections.setdefault(section, {})[key] = _decoded(entry.value, f"{section} {key!r}", damaged)
    log = snapshot.logs.get(LOG)
    items = [item for item in (log.items if log else ()) if item.value]
    tail = [_decoded(item.value, f"message {item.position}", damaged) for item in items]
    count = log.head - log.first + 1 if log else 0
    return {
        "scope": scope.text,
        "storage": storage.location,
        "owner": snapshot.owner,
        "parent": snapshot.parent,
        "version": snapshot.stamp.version,
        "stamp": str(snapshot.stamp),
        "created_at": iso(snapshot.created_at),
        "updated_at": iso(snapshot.updated_at),
        "expires_at": iso(snapshot.expires_at),
        "bytes": snapshot.entry_bytes,
        "labels": dict(snapshot.labels),
        "sections": sections,
        "messages": tail,
        "message_count": count,
        "truncated": more or count > len(tail),
        "damaged": damaged,
    }


async def _entries(storage: "Storage", snapshot: Snapshot) -> tuple[dict[tuple[str, str], Entry], bool]:
    """Return the entries, and whether there are more of them than are shown."""
    if snapshot.complete:
        return snapshot.entries, False
    found: dict[tuple[str, str], Entry] = {}
    more = False
    for section in snapshot.sections:
        page = await storage.scan(snapshot.scope, section, limit=MAX_ENTRIES)
        found |= {(section, key): entry for key, entry in page.entries}
        more = more or page.cursor is not None
    return found, more


def _decoded(raw: bytes | int, where: str, damaged: list[str]) -> Any:
    """Return the value; one that can't be read is shown as the reason, and noted if it is damaged."""
    if isinstance(raw, int):
        return raw
    try:
        return codec.decode(raw)
    except (DamagedStateError, NewerFormatError) as error:
        damaged.append(f"{where}: {error}")
        return {"unreadable": str(error)}
    except StateError as error:  # a type that only the agent's program knows
        return {"unreadable": str(error)}


def _print(report: dict[str, Any]) -> None:
    keys = ("scope", "storage", "owner", "parent", "version", "created_at", "updated_at", "expires_at")
    rows = [(key, report[key]) for key in keys if report[key] is not None]
    table(("", ""), [*rows, ("size", size(report["bytes"])), *report["labels"].items()])
    for section, values in report["sections"].items():
        _print_heading(section)
        table(("", ""), [(key, _text(value)) for key, value in values.items()])
    if report["message_count"]:
        _print_heading(f"last {len(report['messages'])} of {report['message_count']} messages")
        table(("", "", ""), [_message(one) for one in report["messages"]])


def _print_heading(text: str) -> None:
    console().print(f"\n{safe(text)}", style="bold")


def _message(value: Any) -> tuple[Any, Any, Any]:
    if isinstance(value, dict) and "role" in value:
        fields = cast("dict[str, Any]", value)
        return fields.get("timestamp"), fields["role"], _text(fields.get("content"))
    return None, None, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
