"""What a byte store as a storage is besides the contract: its documents, their number and size, and its feed."""

import asyncio
import subprocess
import sys
import textwrap

import pytest

from agentstate import ConversationContext, stateful
from agentstate.errors import CommitUnknownError, DamagedStateError, StorageUnavailableError, ValueTooLargeError
from agentstate.scope import StateScope
from agentstate.storage.keyvalue import KeyValueStorage
from agentstate.storage.protocol import Append, CutTail, EditItem, Increment, LeaseRequest, Part, Put, TrimHead, Wants
from agentstate.testing.turns import new_id
from tests.storage.test_conformance_keyvalue import DictStore, DirectoryStore, SwappingDictStore

A = StateScope.conversation("a")
EVERYTHING = Wants(tails=(("history", 10),))


class CountingStore(SwappingDictStore):
    """Counts calls and bytes, and fails on demand."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.failing = {}

    def note(self, name, key, size=0):
        self.calls.append((name, key, size))
        error = self.failing.pop((name, key.split("/")[1]), None)
        if error is not None:
            raise error

    async def get(self, key):
        self.note("get", key)
        return await super().get(key)

    async def set(self, key, value):
        self.note("set", key, len(value))
        await super().set(key, value)

    async def delete(self, key):
        self.note("delete", key)
        await super().delete(key)

    async def compare_and_swap(self, key, expected, new):
        self.note("swap", key, len(new))
        return await super().compare_and_swap(key, expected, new)


@pytest.fixture
def kv():
    """A byte store that counts."""
    return CountingStore()


@pytest.fixture
async def storage(kv):
    """A storage over it."""
    made = KeyValueStorage(kv)
    yield made
    await made.close()


async def append(storage, *values, scope=A, unique=True, **change):
    """Append items to the history."""
    items = [Append("history", f"m-{value}", b"%d" % value * 20, unique=unique) for value in values]
    (done,) = await storage.commit([Part(scope=scope, appends=items, **change)], commit_id=new_id())
    return done


async def values_of(storage, **which):
    """Return the numbers that the items hold."""
    return [int(item.id.removeprefix("m-")) for item in (await storage.read_log(A, "history", **which)).items]


async def test_a_handler_runs_on_it():
    """A dict is enough for a handler that remembers."""
    storage = KeyValueStorage(DictStore(), quick=True)

    @stateful(storage=storage)
    async def handler(task, context, context_id):
        await context.add_to_history(context_id, "user", task["text"])
        return await context.increment(context_id, "n")

    assert [await handler({"context_id": "c", "text": "hi"}) for _ in range(3)] == [1, 2, 3]
    assert len(await ConversationContext(storage).get_history("c")) == 3


def test_what_is_declared():
    """With compare-and-swap it is shared, without it is one process's, and it never commits several states."""
    with_swap, without = KeyValueStorage(SwappingDictStore()).capabilities, KeyValueStorage(DictStore()).capabilities
    assert (with_swap.shared, with_swap.leases, with_swap.atomic_scopes) == (True, "network", False)
    assert (without.shared, without.leases, without.atomic_scopes) == (False, "process", False)
    assert KeyValueStorage(DictStore(), durability="power").capabilities.durability == "power"


# -- sealed items -------------------------------------------------------------------------


async def test_cost_is_that_of_the_change(storage, kv):
    """An append to 6,000 messages reads and writes about as much as one to 200."""
    costs = []
    for total in (200, 6000):
        scope = StateScope.conversation(f"of-{total}")
        for start in range(0, total, 500):
            await append(storage, *range(start, min(start + 500, total)), scope=scope)
        kv.calls.clear()
        for number in range(10):
            await append(storage, total + number, scope=scope)
        costs.append((len(kv.calls) / 10, sum(size for *_, size in kv.calls) / 10))
    (few_calls, few_bytes), (many_calls, many_bytes) = costs
    assert many_calls <= few_calls + 1
    # Beside the items that aren't sealed yet the head names each segment, in some 60 bytes for up to 256 items,
    # and the newest document of the feed has more commits in it.
    assert many_bytes <= few_bytes + 6000


async def test_sealed_items_are_what_they_were(storage):
    """Items that lie in segments are read by position, found by id, cut, trimmed and edited as all others are."""
    await append(storage, *range(1, 701))
    head, _ = await storage.load(A)
    assert len(head.segments("history")) >= 2
    assert await values_of(storage, start=250, limit=5) == [250, 251, 252, 253, 254]
    assert (await storage.find_item(A, "history", "m-77")).position == 77
    assert (await append(storage, 77)).logs == {}
    item = await storage.find_item(A, "history", "m-300")
    edit = EditItem("history", 300, item.seq, b"edited")
    part = Part(scope=A, edits=[edit], trims=[TrimHead("history", 260)], cuts=[CutTail("history", 500)], record=b"r")
    await storage.commit([part], commit_id=new_id())
    assert await values_of(storage) == list(range(260, 500))
    assert (await storage.find_item(A, "history", "m-300")).value == b"edited"
    assert await storage.find_item(A, "history", "m-77") is None
    assert await storage.find_item(A, "history", "m-600") is None
    (record,) = await storage.journal(A)
    assert len(record.removed["history"]) == 259 + 201 + 1
    done = await append(storage, 600, 77)
    assert (done.logs["history"].head, done.logs["history"].first) == (501, 260)
    assert (await values_of(storage))[-3:] == [499, 600, 77]
    assert (await storage.read(A, EVERYTHING)).logs["history"].items[-1].position == 501


async def test_no_document_is_left_behind(storage, kv):
    """Segments that nobody names any more are removed, and a dropped state leaves its head."""
    for _ in range(3):
        await append(storage, *range(1, 701))
        await storage.commit([Part(scope=A, cuts=[CutTail("history", 0)])], commit_id=new_id())
        assert [key for key in kv.values if "/log/" in key] == []
    await append(storage, *range(1, 701))
    assert await storage.drop(A)
    assert [key for key in kv.values if "/more/" in key or "/todo/" in key] == []


async def test_a_lost_segment(storage, kv):
    """A segment that is missing is damage, and is said."""
    await append(storage, *range(1, 701))
    del kv.values[next(key for key in kv.values if "/log/" in key)]
    with pytest.raises(DamagedStateError, match="missing"):
        await storage.read_log(A, "history")
    assert len((await storage.read(A, EVERYTHING)).logs["history"].items) == 10


async def test_sealed_items_expire(kv):
    """A sweep empties expired items in segments, and removes them at the head of the log."""
    now = 1000.0
    storage = KeyValueStorage(kv, clock=lambda: now)
    items = [Append("history", f"m-{n}", b"x" * 50, ttl=10.0 if n < 300 or n % 2 else None) for n in range(600)]
    await storage.commit([Part(scope=A, appends=items)], commit_id=new_id())
    now += 11
    swept = []
    while not swept or not swept[-1].done:
        swept.append(await storage.sweep(100))
    assert sum(step.items for step in swept) == 450
    page = await storage.read_log(A, "history")
    assert page.view.first == 301
    assert [item.position for item in page.items if item.value] == list(range(301, 601, 2))
    assert page.view.size == 150 * 50
    await storage.close()


# -- limits and failures ------------------------------------------------------------------


async def test_the_largest_document(kv):
    """A state that would outgrow the byte store's limit is refused, and stays as it was."""
    storage = KeyValueStorage(kv, max_bytes=20_000)
    await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"small")])], commit_id=new_id())
    with pytest.raises(ValueTooLargeError, match="more than 20000"):
        await storage.commit([Part(scope=A, puts=[Put("variables", "k", b"x" * 30_000)])], commit_id=new_id())
    found = await storage.read(A, EVERYTHING)
    assert (found.stamp.version, found.entries["variables", "k"].value) == (1, b"small")
    await storage.close()


@pytest.mark.parametrize("where", [("get", "state"), ("set", "todo"), ("swap", "state")])
async def test_a_byte_store_that_fails_before_the_commit(storage, kv, where):
    """An error of the byte store reaches the caller typed, nothing is stored, and the next call works."""
    await append(storage, 1)
    kv.failing[where] = OSError("the line is dead")
    with pytest.raises((StorageUnavailableError, CommitUnknownError), match="failed"):
        await append(storage, 2)
    assert await values_of(storage) == [1]
    await append(storage, 3)
    assert await values_of(storage) == [1, 3]
    assert [item.stamp.version for item in await storage.feed(0)] == [1, 2]


async def test_a_lost_reply(kv, storage):
    """A swap that happened although its reply was lost counts as done."""
    await append(storage, 1)
    swap = kv.compare_and_swap

    async def lose(key, expected, new):
        kv.compare_and_swap = swap
        await swap(key, expected, new)
        raise OSError("the reply was lost")

    kv.compare_and_swap = lose
    await append(storage, 2)
    assert await values_of(storage) == [1, 2]


@pytest.mark.parametrize("where", [("swap", "feed"), ("get", "feed"), ("delete", "todo")])
async def test_a_commit_that_was_not_told(storage, kv, where):
    """A commit whose teller died between the head and the feed is told by whoever reads the feed, once."""
    await append(storage, 1)
    kv.calls.clear()

    async def die():
        swapped = False
        note = kv.note

        def once_swapped(name, key, size=0):
            nonlocal swapped
            note(name, key, size)
            if swapped and (name, key.split("/")[1]) == where:
                raise OSError("died")
            swapped = swapped or (name, key.split("/")[1]) == ("swap", "state")

        kv.note = once_swapped
        try:
            with pytest.raises(StorageUnavailableError):
                await append(storage, 2)
        finally:
            kv.note = note

    await die()
    other = KeyValueStorage(kv)
    assert [item.stamp.version for item in await other.feed(0)] == [1, 2]
    await append(other, 3)
    assert [item.stamp.version for item in await storage.feed(0)] == [1, 2, 3]
    await other.close()


# -- processes ----------------------------------------------------------------------------


async def test_two_storages_over_one_store(kv):
    """What two storages count at once over one byte store adds up, as between processes."""
    storages = [KeyValueStorage(kv) for _ in range(2)]

    async def count(storage):
        for _ in range(20):
            part = Part(scope=A, increments=[Increment("variables", "n", 1)], appends=[Append("history", "m", b"x")])
            await storage.commit([part], commit_id=new_id())

    await asyncio.gather(*(count(storage) for storage in storages for _ in range(3)))
    found = await storages[0].read(A, EVERYTHING)
    assert (found.entries["variables", "n"].value, found.logs["history"].head) == (120, 120)
    versions = [item.stamp.version for item in await storages[1].feed(0, limit=1000)]
    assert sorted(versions) == list(range(1, 121))
    for storage in storages:
        await storage.close()


WORKER = """
import asyncio, sys
from pathlib import Path
from agentstate.scope import StateScope
from agentstate.storage.keyvalue import KeyValueStorage
from agentstate.storage.protocol import Append, Put, Part, Wants
from agentstate.testing.turns import new_id, take_turn
from tests.storage.test_conformance_keyvalue import DirectoryStore

async def main():
    storage = KeyValueStorage(DirectoryStore(Path(sys.argv[1])))
    scope = StateScope.conversation("a")
    for _ in range(8):
        found = await take_turn(storage, scope, "worker", patience=60)
        entry = found.entries.get(("variables", "n"))
        put = Put("variables", "n", b"%d" % (int(entry.value if entry else 0) + 1))
        part = Part(scope=scope, puts=[put], appends=[Append("history", "m", b"x")])
        await storage.commit([part], commit_id=new_id(), lease=found.lease, release=True)
    await storage.close()
asyncio.run(main())
"""


async def test_turns_of_several_processes(tmp_path):
    """Processes that take turns over one directory of files lose nothing: their leases exclude each other."""
    directory = tmp_path / "kv"
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(directory)]
    workers = await asyncio.to_thread(lambda: [subprocess.Popen(command) for _ in range(3)])
    assert [await asyncio.to_thread(worker.wait, 90) for worker in workers] == [0, 0, 0]
    storage = KeyValueStorage(DirectoryStore(directory))
    found = await storage.read(A, EVERYTHING)
    assert (int(found.entries["variables", "n"].value), found.logs["history"].head) == (24, 24)
    assert (await storage.read(A, EVERYTHING, lease=LeaseRequest(new_id(), 5.0, "test"))).lease is not None
    await storage.close()


@pytest.mark.parametrize("kv", [DictStore(), SwappingDictStore()], ids=["plain", "swapping"])
async def test_a_cancelled_commit_is_carried_through(kv):
    """A handler that gives up on commit() and goes on adds its messages once."""
    context = ConversationContext(KeyValueStorage(kv, durability="none"))
    async with context.turn("c") as conversation:
        await conversation.add("user", "once")
        task = asyncio.ensure_future(conversation.commit())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await conversation.add("user", "after")
    assert [one.content for one in await context.get_history("c")] == ["once", "after"]
