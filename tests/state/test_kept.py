"""How long idempotency keys are kept, and that ids which only look alike are different states."""

from __future__ import annotations

import asyncio
import unicodedata

import pytest

from agentstate import Conversation, ConversationContext, StateScope, stateful
from agentstate.state.turn import new_id
from agentstate.storage.protocol import ONCE_COUNT, ONCE_SECONDS, OnceRecord, Part, Put, Wants

C1 = StateScope.conversation("c-1")


def delivered(storage):
    """A handler that says how often it ran."""

    @stateful(storage=storage, once=lambda task: task["id"])
    async def handler(task, conversation: Conversation):
        return await conversation.increment("n")

    async def deliver(key):
        return await handler({"context_id": "c-1", "id": key})

    return deliver


async def test_a_key_is_kept_for_a_day(clocked, clock):
    """A delivery within 24 hours gets the first result, one after them runs; each key has its own day."""
    deliver = delivered(clocked)
    assert await deliver("first") == 1
    clock.advance(ONCE_SECONDS / 2)
    assert await deliver("second") == 2
    clock.advance(ONCE_SECONDS / 2 - 60)
    assert [await deliver("first"), await deliver("second")] == [1, 2]
    clock.advance(120)
    assert [await deliver("first"), await deliver("second"), await deliver("first")] == [3, 2, 3]


async def test_a_thousand_keys_are_kept(clocked, clock):
    """The 1,000 newest keys of a state are known; the 1,001st takes the oldest's place, in its state only."""
    deliver = delivered(clocked)
    other = StateScope.conversation("c-2")

    async def use(scope, key):
        clock.advance(0.001)
        part = Part(scope=scope, puts=[Put("variables", "k", b"1")])
        await clocked.commit([part], commit_id=new_id(), once=OnceRecord(key, "", 0, b"7"))

    await use(other, "first")
    assert await deliver("first") == 1
    for start in range(0, ONCE_COUNT - 1, 111):
        await asyncio.gather(*(use(C1, f"key-{n}") for n in range(start, start + 111)))
    assert [await deliver("first"), await deliver("key-0"), await deliver("key-998")] == [1, 7, 7]
    await use(C1, "one more")
    assert [await deliver("key-0"), await deliver("one more")] == [7, 7]
    assert await deliver("first") == 2
    assert (await clocked.read(other, Wants((), (), (), 0), once="first")).once is not None


TWINS = [
    unicodedata.normalize("NFC", "Zoë"),
    unicodedata.normalize("NFD", "Zoë"),
    "zoë", "ZOË", "straße", "strasse", "STRASSE", "ﬁn", "fin", "K-1", "k-1", "\u212a-1",
    "c-1", "c-1 ", " c-1", "c-1\n", "c\u20111", "C-1", "Ω", "\u2126", "\u0131", "i", "I", "İ", "a\u200db", "ab",
    "\uff11", "1",
]  # fmt: skip


async def test_ids_that_look_alike_are_different_conversations(storage):
    """Composed and decomposed, upper and lower case, wide and narrow: each id is kept byte for byte."""

    @stateful(storage=storage)
    async def handler(task, context, context_id):
        await context.add_to_history(context_id, "user", context_id)
        return context_id, await context.increment(context_id, "n")

    for count in (1, 2):
        results = await asyncio.gather(*(handler({"context_id": one}) for one in TWINS))
        assert results == [(one, count) for one in TWINS]
    context = ConversationContext(storage)
    assert sorted(one.context_id for one in await context.list_contexts()) == sorted(TWINS)
    for one in TWINS:
        assert [message.content for message in await context.get_history(one)] == [one, one]
        assert [info.context_id for info in await context.list_contexts(prefix=one) if info.context_id == one] == [one]
    await context.clear_context(TWINS[0])
    assert await context.exists(TWINS[1])
    assert not await context.exists(TWINS[0])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
async def test_keys_that_look_alike_are_different_variables(storage, form):
    """So are the keys of entries, and idempotency keys."""
    key, twin = (unicodedata.normalize(one, "é") for one in (form, "NFD" if form == "NFC" else "NFC"))
    context = ConversationContext(storage)
    await context.set_variables("c-1", {key: 1, twin: 2, "É": 3})
    assert await context.get_variables("c-1") == {key: 1, twin: 2, "É": 3}
    deliver = delivered(storage)
    assert [await deliver(key), await deliver(twin), await deliver(key)] == [1, 2, 1]
