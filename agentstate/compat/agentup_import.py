"""Takes over what AgentUp itself wrote.

Each record becomes one commit; the records stay as they are. An import that was interrupted
is simply started again: what is there already is skipped.
"""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiofiles
import aiofiles.os

from agentstate import codec
from agentstate.compat.agentup_records import whole_of
from agentstate.errors import ConfigError, StateError, StorageAccessError
from agentstate.exchange.importing import Imported, OnExisting, check_mode, store_all
from agentstate.scope import StateScope
from agentstate.state.legacy import IMPORTED, imported_as, is_record
from agentstate.state.settings import TurnSettings
from agentstate.storage.file import FileOptions, FileStorage
from agentstate.storage.protocol import Part, Put, Storage
from agentstate.storage.valkey import ValkeyStorage, legacy
from agentstate.storage.valkey.connections import Connections
from agentstate.storage.valkey.options import options_from

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable

    from agentstate.context import ConversationContext
    from agentstate.exchange.importing import Whole
    from agentstate.state.store import Store
    from agentstate.storage.valkey import ValkeyOptions

KEY_PREFIX: Final = "agentup:state:"
SIBLINGS: Final = ("conversation", "session", "user")
STORE_FILE: Final = "store.json"
BATCH: Final = 500
ALL: Final = 2**31
MILLISECONDS: Final = 1000.0


async def import_agentup(
    source: str | os.PathLike[str] | Storage,
    context: ConversationContext,
    *,
    key_prefix: str | None = None,
    siblings: bool = False,
    on_existing: OnExisting = "skip",
    dry_run: bool = False,
    progress: Callable[[], None] | None = None,
) -> Imported:
    """Store what AgentUp wrote as conversations, under the ids it used.

    ::

        await import_agentup("./conversation_states", ConversationContext("sqlite:///state.db"))
        await import_agentup(context.storage, context)      # what lies at the same place

    Args:
        source: AgentUp's directory, one of its files, its Valkey URL; or a file or Valkey storage of
            ours at the same place.
        context: where the conversations go.
        key_prefix: of AgentUp's keys, with a Valkey URL that doesn't say it; ``agentup:state:`` by default.
        siblings: AgentUp's ``stateful_user``, ``stateful_session`` and ``stateful_conversation`` put
            ``user:``, ``session:`` and ``conversation:`` before their ids: such records go to
            where their namesakes here look. Without it these are conversations like the others.
        on_existing: what to do with a state that is there already; see `import_contexts`.
        dry_run: store nothing, and say what would be stored.
        progress: called after each record was read.

    Raises:
        DamagedStateError: a record is damaged; names it. Those before it are stored.
        StorageError: the source can't be read, or the storage refuses.
    """
    check_mode(on_existing)
    places: dict[str, str] = {}
    done: list[str] = []

    async def wholes() -> AsyncGenerator[Whole]:
        async with aclosing(_read(source, key_prefix, context.store)) as found:
            async for whole in found:
                if progress is not None:
                    progress()
                whole.scope = _scope(context, whole.head.id, siblings=siblings)
                # What was imported and cleared since stays cleared.
                if on_existing == "skip" and await imported_as(context.storage, whole.head.id) == whole.scope.text:
                    done.append(whole.head.id)
                else:
                    places[whole.head.id] = whole.scope.text
                    yield whole

    try:
        imported = await store_all(context, wholes(), on_existing, dry_run=dry_run)
    except StateError:
        if places and not dry_run:
            places.popitem()  # perhaps the very one that couldn't be stored
            await _note(context.store, places)
        raise
    if not dry_run:
        await _note(context.store, places)
    return imported._replace(skipped=(*imported.skipped, *done))


def _scope(context: ConversationContext, context_id: str, *, siblings: bool) -> StateScope:
    plain = context.scope_of(context_id)
    kind, colon, own = context_id.partition(":")
    if siblings and colon and own and kind in SIBLINGS:
        return StateScope.make(kind, own, tenant=plain.tenant)
    return plain


async def _note(store: Store, places: dict[str, str]) -> None:
    """Note what was imported as what; see `agentstate.state.legacy`."""
    rows = list(places.items())
    for start in range(0, len(rows), BATCH):
        puts = [Put("variables", key, codec.encode(place)) for key, place in rows[start : start + BATCH]]
        await store.commit_call(Part(scope=IMPORTED, puts=puts), TurnSettings())


def _read(source: str | os.PathLike[str] | Storage, key_prefix: str | None, store: Store) -> AsyncGenerator[Whole]:
    if isinstance(source, ValkeyStorage):
        return _on_valkey(source.options, store)
    if isinstance(source, FileStorage):
        return _in_files(Path(source.location))
    if isinstance(source, Storage):
        raise ConfigError(f"AgentUp never wrote to {source.name}.", remedy="Name its directory or its Valkey URL.")
    if isinstance(source, str) and "://" in source:
        if source.startswith("file://"):
            return _in_files(Path(FileOptions(url=source).directory))
        return _on_valkey(_options(source, key_prefix), store)
    return _in_files(Path(source))


def _options(url: str, key_prefix: str | None) -> ValkeyOptions:
    options = options_from(url, {} if key_prefix is None else {"key_prefix": key_prefix})
    return options if "key_prefix" in options.model_fields_set else options_from(url, {"key_prefix": KEY_PREFIX})


async def _in_files(place: Path) -> AsyncGenerator[Whole]:
    try:
        directory = await aiofiles.os.path.isdir(place)
        names = sorted(await aiofiles.os.listdir(place)) if directory else [place.name]
        for name in names:
            path = place / name if directory else place
            if directory and not name.endswith(".json"):
                continue
            async with aiofiles.open(path, "rb") as file:
                data = await file.read()
            if directory and name == STORE_FILE and not is_record(data):
                continue  # that one is ours
            yield whole_of(data, str(path))
    except OSError as error:
        if isinstance(error, StorageAccessError):
            raise
        raise StorageAccessError(
            f"Can't read {place}: {error.strerror or error}.", remedy="Name the directory that AgentUp wrote to."
        ) from error


async def _on_valkey(options: ValkeyOptions, store: Store) -> AsyncGenerator[Whole]:
    connections = Connections(options)
    try:
        here = await connections.here()
        for context_id in sorted(await legacy.keys(here, options, ALL)):
            data = await legacy.record(here, options, context_id)
            if data is None:
                continue  # its time was over meanwhile
            key = options.key_prefix + context_id
            (left,) = await here.ask_all([("PTTL", key.encode())])
            whole = whole_of(data, f"{key} at {options.location}")
            if left > 0:
                whole.head = whole.head._replace(expires_at=store.clock() + left / MILLISECONDS)
            yield whole
    finally:
        await connections.close()
