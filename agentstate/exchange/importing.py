"""From a file to a storage."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from agentstate.errors import ConflictError
from agentstate.exchange.files import records
from agentstate.exchange.lines import Count, Entry, Head, Item
from agentstate.state.history import LOG as HISTORY
from agentstate.state.store import check_owner
from agentstate.state.turn import not_found
from agentstate.storage.protocol import ANY, KEEP, Append, Increment, Part, Put, Wants

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Sequence

    from agentstate.context import ConversationContext
    from agentstate.scope import StateScope

OnExisting = Literal["error", "skip", "replace"]

TRIES: Final = 5
NOTHING: Final = Wants((), (), (), 0)


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        skipped: ids that were there already, or whose time is over.
    """

    conversations: int
    messages: int
    skipped: tuple[str, ...]


@dataclass(slots=True)
class Whole:
    """All of one conversation. ``scope`` is where it goes, if not to the conversation of its id."""

    head: Head
    entries: list[Entry] = field(default_factory=list[Entry])
    items: list[Item] = field(default_factory=list[Item])
    scope: StateScope | None = None

    def add(self, record: Entry | Item) -> None:
        """Take a part of it."""
        if isinstance(record, Entry):
            self.entries.append(record)
        else:
            self.items.append(record)


async def import_contexts(
    context: ConversationContext, path: str | os.PathLike[str], *, on_existing: OnExisting = "error"
) -> Imported:
    """Store the conversations of a file, each in one commit, after the whole file was checked.

    Args:
        context: where they go. With a principal only conversations of his, or of nobody, are taken.
        path: a file that `export_contexts` wrote.
        on_existing: what to do with one that is there already: ``error`` stops at it, ``skip``
            leaves it as it is, ``replace`` puts the file's in its place.

    Raises:
        ConflictError: a conversation is there already; those before it in the file are stored.
        DamagedStateError: the file is damaged or was cut; names the line. Nothing is stored.
        NewerFormatError: a newer release wrote the file. Nothing is stored.
        ContextNotFoundError: a conversation belongs to somebody else than who asks.
    """
    check_mode(on_existing)
    async for _ in records(Path(path)):
        pass
    return await store_all(context, _to_begin(context, _wholes(Path(path))), on_existing)


def check_mode(on_existing: str) -> None:
    """Raise `ValueError` unless this is a way to go on."""
    if on_existing not in get_args(OnExisting):
        raise ValueError(f"on_existing is {on_existing!r}; use 'error', 'skip' or 'replace'")


async def _to_begin(context: ConversationContext, wholes: AsyncGenerator[Whole]) -> AsyncGenerator[Whole]:
    legacy = context.store.legacy
    async with aclosing(wholes) as each:
        async for whole in each:
            if legacy is not None:
                await legacy.refuse(context.scope_of(whole.head.id))
            yield whole


async def store_all(
    context: ConversationContext, wholes: AsyncGenerator[Whole], on_existing: OnExisting, *, dry_run: bool = False
) -> Imported:
    """Store conversations, one after the other; a dry run only says what it would do."""
    stored = messages = 0
    skipped: list[str] = []
    async with aclosing(wholes) as each:
        async for whole in each:
            if await _store(context, whole, on_existing, stored, dry_run=dry_run):
                stored += 1
                messages += sum(item.log == HISTORY for item in whole.items)
            else:
                skipped.append(whole.head.id)
    return Imported(stored, messages, tuple(skipped))


async def _wholes(path: Path) -> AsyncGenerator[Whole]:
    whole: Whole | None = None
    async with aclosing(records(path)) as all_records:
        async for record in all_records:
            if isinstance(record, (Head, Count)):
                if whole is not None:
                    yield whole
                whole = Whole(record) if isinstance(record, Head) else None
            elif whole is not None:
                whole.add(record)


async def _store(
    context: ConversationContext, whole: Whole, on_existing: OnExisting, before: int, *, dry_run: bool
) -> bool:
    scope = whole.scope or context.scope_of(whole.head.id)
    if context.principal is not None and whole.head.owner not in (None, context.principal):
        raise not_found(scope)
    now = context.store.clock()
    if whole.head.expires_at is not None and whole.head.expires_at <= now:
        return False
    for tried in range(TRIES):
        there = await context.storage.read(scope, NOTHING)
        check_owner(there, context.principal)
        if there.birth and on_existing == "skip":
            return False
        if there.birth and on_existing == "error":
            break
        if dry_run:
            return True
        part = _part(scope, whole, now)
        part.owner = whole.head.owner or context.principal or None
        # What is replaced is what was looked at; a new one must still be new.
        part.birth, part.base, part.clear = (ANY, there.stamp, True) if there.birth else (0, ANY, False)
        try:
            await context.store.commit_call(part, context.settings)
        except ConflictError:
            if tried == TRIES - 1:
                raise
        else:
            return True
    raise ConflictError(
        f"{scope} is there already; {before} conversations before it were imported.",
        scope=scope,
        what="the state",
        remedy="Go on with on_existing='skip', or replace what is there with on_existing='replace'.",
    )


def _part(scope: StateScope, whole: Whole, now: float) -> Part:
    head = whole.head
    entries = [one for one in whole.entries if one.expires_at is None or one.expires_at > now]
    items = [one for one in whole.items if one.expires_at is None or one.expires_at > now]
    return Part(
        scope=scope,
        puts=_puts(entries, now),
        increments=[Increment(one.section, one.key, one.value) for one in entries if isinstance(one.value, int)],
        appends=[Append(one.log, one.id, one.value, _left(one.expires_at, now), unique=True) for one in items],
        labels=head.labels,
        ttl=KEEP if head.expires_at is None else head.expires_at - now,
    )


def _puts(entries: Sequence[Entry], now: float) -> list[Put]:
    return [
        Put(one.section, one.key, one.value, _left(one.expires_at, now))
        for one in entries
        if isinstance(one.value, bytes)
    ]


def _left(expires_at: float | None, now: float) -> float | None:
    return None if expires_at is None else expires_at - now
