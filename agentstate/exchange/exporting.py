"""From a storage to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agentstate.errors import ConflictError, ContextNotFoundError
from agentstate.exchange.files import written
from agentstate.exchange.lines import Count, Entry, Head, Item, first_line, write
from agentstate.state.turn import not_found
from agentstate.storage.protocol import Wants

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Iterable

    from agentstate.context import ConversationContext
    from agentstate.exchange.files import Sink
    from agentstate.exchange.lines import Record
    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Snapshot, Storage

PAGE: Final = 500
TRIES: Final = 4
EVERYTHING: Final = Wants()
NOTHING: Final = Wants((), (), (), 0)


class Exported(NamedTuple):
    """What an export holds."""

    conversations: int
    messages: int


async def export_contexts(
    context: ConversationContext,
    path: str | os.PathLike[str],
    ids: str | Iterable[str] | None = None,
    *,
    prefix: str = "",
    user_id: str | None = None,
) -> Exported:
    """Write conversations to a file, which appears when it is complete; one of that name is replaced.

    What is exported is what is stored; changes of a turn that still runs are not.

    Args:
        context: where the conversations are, and who asks: only those of its principal are found.
        path: the file.
        ids: of the conversations; without it all that the other arguments select.
        prefix: of the ids.
        user_id: only this owner's.

    Raises:
        ContextNotFoundError: one of ``ids`` is not there for this caller.
        ConflictError: a conversation keeps changing while it is read.
        StorageAccessError: the file can't be written.
    """
    count, messages = Count(), 0
    async with written(Path(path)) as sink:
        await sink.write(first_line(context.store.clock()))
        async for context_id in _selected(context, ids, prefix, user_id):
            try:
                found = await _export_one(context, context.scope_of(context_id), sink)
            except ContextNotFoundError:
                if ids is not None:
                    raise
                continue  # it ended since it was listed
            count = Count(*(one + more for one, more in zip(count, found, strict=True)))
            messages += found.items
        await sink.write(write(count))
    return Exported(count.conversations, messages)


async def _selected(
    context: ConversationContext, ids: str | Iterable[str] | None, prefix: str, user_id: str | None
) -> AsyncGenerator[str]:
    if ids is not None:
        for one in [ids] if isinstance(ids, str) else dict.fromkeys(ids):
            yield one
        return
    cursor: str | None = None
    while True:
        page = await context.list_contexts(user_id, prefix=prefix, limit=PAGE, cursor=cursor)
        for info in page:
            yield info.context_id
        cursor = page.cursor
        if cursor is None:
            return


async def _export_one(context: ConversationContext, scope: StateScope, sink: Sink) -> Count:
    """Write one conversation as it is at one version; one that changes meanwhile is begun again."""
    mark = await sink.mark()
    for tried in range(TRIES):
        if tried < TRIES - 1:
            count = await _as_it_is(context, scope, sink)
        else:
            async with context.turn(scope.id, name="export"):  # those who take turns wait for us, once
                count = await _as_it_is(context, scope, sink)
        if count is not None:
            return count
        await sink.back_to(mark)
    raise ConflictError(
        f"{scope} changed {TRIES} times while it was being exported.",
        scope=scope,
        what="the state",
        remedy="Export it when less is going on.",
    )


async def _as_it_is(context: ConversationContext, scope: StateScope, sink: Sink) -> Count | None:
    """Write one conversation; return ``None`` if what was written is no one version of it."""
    snapshot = await context.store.read(scope, EVERYTHING, principal=context.principal)
    if not snapshot.birth:
        raise not_found(scope)
    entries = items = 0
    await sink.write(write(_head(snapshot)))
    async for record in _contents(context, snapshot):
        await sink.write(write(record))
        entries += isinstance(record, Entry)
        items += isinstance(record, Item)
    after = await context.store.read(scope, NOTHING, principal=context.principal)
    return Count(1, entries, items) if after.stamp == snapshot.stamp else None


def _head(snapshot: Snapshot) -> Head:
    return Head(
        snapshot.scope.id,
        snapshot.owner,
        snapshot.labels,
        snapshot.created_at,
        snapshot.updated_at,
        snapshot.expires_at,
    )


async def _contents(context: ConversationContext, snapshot: Snapshot) -> AsyncGenerator[Record]:
    if snapshot.complete:
        for (section, key), entry in sorted(snapshot.entries.items()):
            yield Entry(section, key, entry.value, entry.expires_at)
    else:
        for section in sorted(snapshot.sections):
            async for record in _entries(context.storage, snapshot.scope, section):
                yield record
    for log, view in sorted(snapshot.logs.items()):
        for start in range(view.first, view.head + 1, PAGE):
            end = min(start + PAGE, view.head + 1)
            for item in (await context.storage.read_log(snapshot.scope, log, start=start, end=end)).items:
                if item.value:  # what has expired leaves its place only
                    yield Item(log, item.id, item.value, item.expires_at)


async def _entries(storage: Storage, scope: StateScope, section: str) -> AsyncGenerator[Entry]:
    cursor: str | None = None
    while True:
        page = await storage.scan(scope, section, cursor=cursor, limit=PAGE)
        for key, entry in page.entries:
            yield Entry(section, key, entry.value, entry.expires_at)
        cursor = page.cursor
        if cursor is None:
            return
