"""Conversations go to a file of JSON Lines and come back the same, whole, or not at all."""

from __future__ import annotations

import asyncio
import contextvars
import json
import stat
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentstate import Conversation, ConversationContext, stateful
from agentstate.errors import (
    ConflictError,
    ContextIdError,
    ContextNotFoundError,
    DamagedStateError,
    NewerFormatError,
    StorageAccessError,
    ValueTooLargeError,
)
from agentstate.storage import registry
from agentstate.testing.clock import FakeClock

VALUES = {
    "text": "grüße\n\u2028 😀",
    "number": 2**63,
    "float": 1e-300,
    "nested": {"a": [1, None, True, {"$bytes": "no tag"}], "json": "x", "tagged": 1},
    "when": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    "pair": (1, "two"),
    "set": {1, 2, 3},
    "uuid": UUID(int=7),
    "money": Decimal("1.10"),
    "bytes": bytes(range(256)),
    "keys": {1: "one", None: "none"},
    "large": "x" * 50_000,
    "empty": {},
    "none": None,
}
HOSTILE = ["c-1", "a/b:c*{d}", "../../etc/passwd", "😀 \u202e", "line\nbreak", '"quoted"', "x" * 512]


async def filled(storage, ids=("c-1",)):
    """Return a context over conversations of every kind of content."""
    context = ConversationContext(storage)
    for n, one in enumerate(ids):
        await context.get_or_create(one, f"user-{n}")
        await context.set_variables(one, VALUES)
        await context.increment(one, "hits", 3)
        await context.set_metadata(one, "source", ["web", n])
        await context.add_messages(
            one,
            [
                {"role": "user", "content": f"hello {n}", "id": "m-1", "metadata": {"at": VALUES["when"]}},
                {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "tool_calls": [{"id": "t"}]},
                {"role": "tool", "content": "42", "tool_call_id": "t", "name": "calc"},
            ],
        )
    return context


async def contents(context, one):
    """Return all that must be the same on the other side."""
    state = await context.get(one)
    return state.user_id, dict(state.variables), dict(state.metadata), [dict(message) for message in state.history]


def rewritten(path, change):
    """Rewrite the lines of a file; ``change`` gets them parsed."""
    rows = [json.loads(line) for line in path.read_text().strip().split("\n")]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


@pytest.fixture
async def target():
    """An empty context to import into."""
    made = registry.create("memory", {})
    yield ConversationContext(made)
    await made.close()


@pytest.fixture
async def exported(memory, tmp_path):
    """A file with one conversation."""
    context = await filled(memory)
    await context.export(tmp_path / "one.jsonl")
    return tmp_path / "one.jsonl"


async def test_everything_comes_back_the_same(storage, target, tmp_path):
    """Owner, variables of every type, metadata, messages with ids and times: from any backend and back."""
    context = await filled(storage, HOSTILE)
    result = await context.export(tmp_path / "all.jsonl")
    assert result == (len(HOSTILE), 3 * len(HOSTILE))
    assert await target.import_(tmp_path / "all.jsonl") == (len(HOSTILE), 3 * len(HOSTILE), ())
    for one in HOSTILE:
        assert await contents(target, one) == await contents(context, one)
        back = await target.get_variables(one)
        assert {key: type(back[key]) for key in VALUES} == {key: type(value) for key, value in VALUES.items()}
    assert await target.increment("c-1", "hits") == 4


async def test_back_into_every_backend(storage, exported, memory):
    """A file can be imported into any backend, and again replaced there."""
    there = ConversationContext(storage)
    await there.import_(exported)
    assert await contents(there, "c-1") == await contents(ConversationContext(memory), "c-1")
    await there.set_variable("c-1", "extra", 1)
    await there.add_to_history("c-1", "user", "more")
    assert (await there.import_(exported, on_existing="replace")).conversations == 1
    assert await contents(there, "c-1") == await contents(ConversationContext(memory), "c-1")


async def test_a_second_export_is_the_same_file(exported, target, tmp_path):
    """Nothing is lost or added on the way: only the moment in the first line, and the state's own times, differ."""
    await target.import_(exported)
    await target.export(tmp_path / "two.jsonl")

    def body(path):
        rows = [json.loads(line) for line in path.read_text().strip().split("\n")][1:]
        return [{k: v for k, v in row.items() if k not in ("created_at", "updated_at")} for row in rows]

    assert body(tmp_path / "two.jsonl") == body(exported)


async def test_plain_values_are_readable(exported):
    """Whoever opens the file finds what is plain JSON as it is."""
    rows = [json.loads(line) for line in exported.read_text().strip().split("\n")]
    assert {"section": "variables", "key": "nested", "json": VALUES["nested"]} in rows
    assert {"section": "variables", "key": "large", "json": VALUES["large"]} in rows
    assert {"section": "variables", "key": "hits", "counter": 3} in rows
    assert rows[-1] == {"end": True, "conversations": 1, "entries": len(VALUES) + 2, "items": 3}


async def test_only_its_owner_may_read_the_file(exported):
    """An export holds what people said: nobody else can open it, and nothing else is left behind."""
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    assert [one.name for one in exported.parent.iterdir()] == [exported.name]


async def test_what_is_exported_can_be_chosen(storage, tmp_path):
    """By id, by prefix, by owner."""
    context = await filled(storage, ["a:1", "a:2", "b:1"])
    path = tmp_path / "some.jsonl"

    def ids():
        return [
            row["conversation"]
            for row in map(json.loads, path.read_text().strip().split("\n"))
            if "conversation" in row
        ]

    await context.export(path, "a:2")
    assert ids() == ["a:2"]
    await context.export(path, ["b:1", "a:1", "b:1"])
    assert ids() == ["b:1", "a:1"]
    await context.export(path, prefix="a:")
    assert ids() == ["a:1", "a:2"]
    await context.export(path, user_id="user-2")
    assert ids() == ["b:1"]
    assert await context.export(path, prefix="nothing") == (0, 0)
    assert await context.import_(path) == (0, 0, ())


async def test_an_absent_conversation_leaves_the_old_file(storage, tmp_path):
    """An export that fails replaces nothing and leaves no part of a file."""
    context = await filled(storage)
    path = tmp_path / "kept.jsonl"
    await context.export(path)
    before = path.read_bytes()
    with pytest.raises(ContextNotFoundError):
        await context.export(path, ["c-1", "absent"])
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


async def test_a_principal_exports_and_imports_his_own(storage, exported, tmp_path):
    """Others' conversations are not there for him, in either direction."""
    await filled(storage, ["mine", "theirs"])
    mine = ConversationContext(storage, principal="user-0")
    assert (await mine.export(tmp_path / "mine.jsonl")).conversations == 1
    with pytest.raises(ContextNotFoundError):
        await mine.export(tmp_path / "mine.jsonl", "theirs")
    with pytest.raises(ContextNotFoundError):
        await mine.export(tmp_path / "mine.jsonl", user_id="user-1")
    other = ConversationContext(storage, principal="user-9")
    with pytest.raises(ContextNotFoundError):
        await other.import_(exported)
    rewritten(exported, lambda rows: [row | {"owner": None} if "conversation" in row else row for row in rows])
    await other.import_(exported)
    assert (await other.get("c-1")).user_id == "user-9"


async def test_what_is_there_already(exported, target):
    """error stops and says how far it got, skip leaves it, replace puts the file's in its place."""
    await target.set_variable("c-1", "mine", 1)
    with pytest.raises(ConflictError, match=r"0 conversations before it.*skip"):
        await target.import_(exported)
    assert await target.import_(exported, on_existing="skip") == (0, 0, ("c-1",))
    assert await target.get_variables("c-1") == {"mine": 1}
    await target.import_(exported, on_existing="replace")
    assert "mine" not in await target.get_variables("c-1")
    with pytest.raises(ValueError, match="on_existing"):
        await target.import_(exported, on_existing="overwrite")


async def test_replacing_conflicts_with_the_turn_that_relied_on_it(exported, target):
    """A turn that read the old state doesn't store its change over the new one."""
    await target.set_variable("c-1", "n", 1)

    @stateful(storage=target.storage)
    async def slow(task, conversation: Conversation):
        await conversation.set("n", await conversation.get("n") + 1)
        await asyncio.create_task(target.import_(exported, on_existing="replace"), context=contextvars.Context())

    with pytest.raises(ConflictError):
        await slow({"context_id": "c-1"})
    assert "n" not in await target.get_variables("c-1")


DAMAGE = {
    "not JSON": lambda rows: [*rows[:3], "garbage", *rows[4:]],
    "no object": lambda rows: [*rows[:3], "[]", *rows[4:]],
    "a missing line": lambda rows: [*rows[:3], *rows[4:]],
    "a line twice": lambda rows: [*rows[:3], rows[2], *rows[3:]],
    "no last line": lambda rows: rows[:-1],
    "a cut last line": lambda rows: [*rows[:-1], rows[-1][:-5]],
    "only the first line": lambda rows: rows[:1],
    "after the end": lambda rows: [*rows, rows[2]],
    "no conversation": lambda rows: [rows[0], *rows[2:]],
    "another file": lambda rows: ['{"hello":"world"}'],
    "an unknown line": lambda rows: [*rows[:3], '{"thing":1}', *rows[3:]],
    "a lost field": lambda rows: [rows[0], '{"conversation":"c-1"}', *rows[2:]],
    "a wrong owner": lambda rows: [rows[0], rows[1].replace('"user-0"', "7"), *rows[2:]],
    "a wrong time": lambda rows: [rows[0], rows[1].replace('"expires_at":null', '"expires_at":"soon"'), *rows[2:]],
    "a counter too large": lambda rows: [row.replace('"counter":3', f'"counter":{2**63}') for row in rows],
    "a counter of text": lambda rows: [row.replace('"counter":3', '"counter":"3"') for row in rows],
    "bad base64": lambda rows: [row.replace('"bytes":"', '"bytes":"*') for row in rows],
    "bad tags": lambda rows: [row.replace('"tuple"', '"nonsense"') for row in rows],
    "a message without role": lambda rows: [row.replace('"role":"tool",', "") for row in rows],
    "a message with another id": lambda rows: [
        row.replace('"id":"m-1","tagged"', '"id":"m-2","tagged"') for row in rows
    ],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_damage_is_found_before_anything_is_stored(exported, target, damage):
    """A damaged or cut file raises a typed error that names file and line, and stores nothing."""
    lines = exported.read_text().strip().split("\n")
    changed = damage(lines)
    assert changed != lines
    exported.write_text("\n".join(changed) + "\n")
    with pytest.raises((DamagedStateError, NewerFormatError), match=r"one\.jsonl:\d+: "):
        await target.import_(exported)
    assert await target.list_contexts() == []


async def test_every_cut_is_noticed(exported, target):
    """Wherever a copy of the file stopped, the import says so and stores nothing."""
    data = exported.read_bytes()
    for size in [*range(0, len(data) - 1, 997), *range(len(data) - 130, len(data) - 1)]:
        exported.write_bytes(data[:size])
        with pytest.raises(DamagedStateError):
            await target.import_(exported)
    assert await target.list_contexts() == []


async def test_a_newer_file_is_refused(exported, target):
    """A file of a newer release isn't guessed at."""
    exported.write_text(exported.read_text().replace('"version":1', '"version":2', 1))
    with pytest.raises(NewerFormatError, match=r"one\.jsonl:1: .*Upgrade"):
        await target.import_(exported)


async def test_a_bad_id_is_refused(exported, target):
    """An id that could not have been exported is an error that names the line."""
    rewritten(exported, lambda rows: [row | {"conversation": ""} if "conversation" in row else row for row in rows])
    with pytest.raises(ContextIdError, match=r"one\.jsonl:2: "):
        await target.import_(exported)


async def test_a_line_without_end_is_refused(tmp_path, target, monkeypatch):
    """A file that is one endless line is given up, not read into memory."""
    monkeypatch.setattr("agentstate.exchange.files.MAX_LINE", 1000)
    monkeypatch.setattr("agentstate.exchange.files.BLOCK", 600)
    (tmp_path / "endless").write_bytes(b"x" * 5000)
    with pytest.raises(ValueTooLargeError, match="endless:1"):
        await target.import_(tmp_path / "endless")


async def test_paths_that_dont_work(target, tmp_path):
    """A file that isn't there, a directory, a place nobody may write: typed errors with the path."""
    with pytest.raises(StorageAccessError, match=r"absent\.jsonl"):
        await target.import_(tmp_path / "absent.jsonl")
    with pytest.raises(StorageAccessError, match="Check the path"):
        await target.import_(tmp_path)
    with pytest.raises(StorageAccessError, match="no-directory"):
        await target.export(tmp_path / "no-directory" / "x.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageAccessError):
        await target.export(tmp_path / "file" / "x.jsonl")


async def test_lifetimes_are_carried_over(tmp_path):
    """States, variables and messages end when they would have; what has ended is not brought back."""
    clock = FakeClock()
    made = [registry.create("memory", {}, clock=clock) for _ in range(2)]
    here, there = (ConversationContext(agentstate_store(one, clock)) for one in made)
    await here.set_variable("c-1", "kept", 1)
    await here.set_variable("c-1", "short", 1, ttl=100)
    await here.set_variable("c-1", "long", 1, ttl=1000)
    await here.add_to_history("c-1", "user", "short", ttl=100)
    await here.add_to_history("c-1", "user", "long", ttl=1000)
    await here.set_ttl("c-1", 2000)
    await here.set_variable("over", "n", 1)
    await here.set_ttl("over", 50)
    await here.export(tmp_path / "x.jsonl")
    clock.advance(500)
    assert await there.import_(tmp_path / "x.jsonl") == (1, 2, ("over",))
    assert await there.get_variables("c-1") == {"kept": 1, "long": 1}
    assert [one.content for one in await there.get_history("c-1")] == ["long"]
    clock.advance(600)
    assert await there.get_variables("c-1") == {"kept": 1}
    clock.advance(1000)
    assert not await there.exists("c-1")


def agentstate_store(storage, clock):
    """Return a store with a clock of the test's."""
    from agentstate.state.store import Store

    return Store(storage, clock=clock)


async def test_a_conversation_that_changes_meanwhile_is_read_again(tmp_path, target):
    """What is exported is one version, though somebody writes all the time."""
    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})
    context = ConversationContext(storage)
    stop = asyncio.Event()

    async def write():
        n = 0
        while not stop.is_set():
            async with context.turn("c-1") as turn:
                n += 1
                await turn.set("n", n)
                await turn.add("user", str(n))
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    async with asyncio.timeout(20):
        while not await context.exists("c-1"):  # noqa: ASYNC110 - what is stored has no event
            await asyncio.sleep(0)
        for _ in range(5):
            await context.export(tmp_path / "x.jsonl")
            await target.import_(tmp_path / "x.jsonl", on_existing="replace")
            state = await target.get("c-1")
            assert [message.content for message in state.history] == [str(n + 1) for n in range(state.variables["n"])]
    stop.set()
    await writing
    await storage.close()


async def test_long_histories_are_streamed(tmp_path):
    """An export of 20,000 messages holds a page of them in memory."""
    storage = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})
    context = ConversationContext(storage)
    for start in range(0, 20_000, 5000):
        await context.add_messages(
            "long", [{"role": "user", "content": f"{n} " + "x" * 400} for n in range(start, start + 5000)]
        )
    tracemalloc.start()
    try:
        result = await context.export(tmp_path / "x.jsonl", "long")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result == (1, 20_000)
    assert (tmp_path / "x.jsonl").stat().st_size > 10_000_000
    assert peak < 8_000_000
    other = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/other.db"})
    there = ConversationContext(other)
    assert await there.import_(tmp_path / "x.jsonl") == (1, 20_000, ())
    assert [one.content for one in await there.get_history("long", 1)] == ["19999 " + "x" * 400]
    assert (await there.get_history("long", 1))[0].id == (await context.get_history("long", 1))[0].id
    await storage.close()
    await other.close()


async def test_cancelled_exports_leave_nothing(tmp_path, memory):
    """An export that is cancelled leaves neither the file nor a part of it."""
    context = await filled(memory, [f"c-{n}" for n in range(50)])
    task = asyncio.create_task(context.export(tmp_path / "x.jsonl"))
    while not list(tmp_path.glob(".x.jsonl.*.part")):  # noqa: ASYNC110 - nor has a file
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), JSONISH))
async def test_any_values(tmp_path, values):
    """Whatever can be stored can be exported and imported."""
    values = {key.replace("\0", "_"): value for key, value in values.items()}
    here, there = (ConversationContext(registry.create("memory", {})) for _ in range(2))
    try:
        await here.get_or_create("c")
        await here.set_variables("c", values)
    except (ValueError, TypeError):
        return  # not storable
    await here.export(tmp_path / "x.jsonl")
    await there.import_(tmp_path / "x.jsonl")
    assert await there.get_variables("c") == await here.get_variables("c")
