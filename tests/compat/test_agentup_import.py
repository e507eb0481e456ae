"""What AgentUp itself wrote is taken over exactly, or refused with the way to do that; never overwritten."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import SecretStr

import agentstate
from agentstate import ConversationContext, StateScope
from agentstate.compat import agentup
from agentstate.compat.agentup import import_agentup, stateful, stateful_user
from agentstate.errors import (
    ConfigError,
    ConflictError,
    ContextIdError,
    DamagedStateError,
    StorageAccessError,
    UnsupportedError,
)
from agentstate.storage.protocol import Wants
from agentstate.storage.valkey import ValkeyStorage

NAIVE, AWARE = "2025-07-01T10:00:00.123456", "2025-07-01T10:00:00.123456+00:00"


def record(name, /, **fields):
    """Return a state as AgentUp wrote it."""
    return {
        "context_id": name,
        "user_id": None,
        "created_at": AWARE,
        "updated_at": AWARE,
        "metadata": {"source": "web"},
        "variables": {"prefs": {"theme": "dark", "numbers": [1, 2.5, None]}, "name": "grüße"},
        "history": [
            {"role": "user", "content": "hello", "timestamp": NAIVE, "metadata": {}},
            {"role": "assistant", "content": "hi", "timestamp": AWARE, "metadata": {"tokens": 3}},
        ],
    } | fields


class Files:
    """AgentUp's directory, and a storage of ours in the same place."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self.source = directory
        self.storage = agentup.FileStorage(str(directory))

    def write(self, name, /, **fields):
        (self.directory / f"{name}.json").write_text(json.dumps(record(name, **fields), indent=2))

    def written(self, context_id):
        return json.loads((self.directory / f"{context_id}.json").read_text())


class Keys:
    """AgentUp's keys on a Valkey server, and a storage of ours with the same prefix."""

    def __init__(self, server, prefix):
        self.server, self.prefix = server, prefix
        self.source = server.url
        self.storage = agentup.ValkeyStorage(server.url, prefix, None)

    def write(self, name, /, **fields):
        self.server.ask("SETEX", self.prefix + name, 3600, json.dumps(record(name, **fields)))

    def written(self, context_id):
        return json.loads(self.server.ask("GET", self.prefix + context_id))


@pytest.fixture(params=["file", "valkey"])
async def place(request, tmp_path):
    """Where AgentUp wrote, on each of its backends."""
    if request.param == "file":
        made = Files(tmp_path / "conversation_states")
    else:
        made = Keys(request.getfixturevalue("valkey_server"), request.getfixturevalue("valkey_prefix"))
    yield made
    await made.storage.close()


def options(place):
    return {"key_prefix": place.prefix} if isinstance(place, Keys) else {}


async def test_everything_is_taken_over(place, memory):
    """Owner, variables, metadata, messages with their times, from AgentUp's place to another backend."""
    place.write("c-1", user_id="alice")
    place.write("c-2")
    context = ConversationContext(memory)
    assert await import_agentup(place.source, context, **options(place)) == (2, 4, ())
    state = await context.get("c-1")
    assert state.user_id == "alice"
    assert state.variables == record("c-1")["variables"]
    assert state.metadata == {"source": "web"}
    assert [(one.role, one.content, one.timestamp, one.metadata) for one in state.history] == [
        ("user", "hello", AWARE, {}),
        ("assistant", "hi", AWARE, {"tokens": 3}),
    ]
    assert (await context.get("c-2")).user_id is None
    assert place.written("c-1") == record("c-1", user_id="alice")


async def test_a_second_import_changes_nothing(place, memory):
    """What is there already, and what was imported and cleared since, is skipped."""
    place.write("c-1")
    place.write("c-2")
    context = ConversationContext(memory)
    await import_agentup(place.source, context, **options(place))
    await context.clear_context("c-1")
    await context.set_variable("c-2", "new", 1)
    assert await import_agentup(place.source, context, **options(place)) == (0, 0, ("c-1", "c-2"))
    assert not await context.exists("c-1")
    assert await context.get_variable("c-2", "new") == 1
    with pytest.raises(ConflictError):
        await import_agentup(place.source, context, **options(place), on_existing="error")
    first = await context.get_history("c-2")
    assert (await import_agentup(place.source, context, **options(place), on_existing="replace")).conversations == 2
    assert await context.get_variable("c-2", "new") is None
    assert await context.get_history("c-2") == first


async def test_a_state_that_was_not_imported_is_refused(place):
    """A handler on AgentUp's place says how to import, and changes nothing; afterwards it goes on."""
    place.write("c-1")
    calls = []

    @stateful(place.storage)
    async def handler(task, context, context_id):
        calls.append(context_id)
        await context.add_to_history(context_id, "user", "again")
        return len(await context.get_history(context_id))

    context = agentup.ConversationContext(place.storage)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"'c-1'.*agentstate import-agentup --url"):
            await handler({"context_id": "c-1"})
    for call in (context.get_history("c-1"), context.set_variable("c-1", "n", 1), context.increment("c-1", "n")):
        with pytest.raises(UnsupportedError):
            await call
    assert calls == []
    assert place.written("c-1") == record("c-1")
    assert await handler({"context_id": "another"}) == 1
    assert (await import_agentup(context.storage, context)).conversations == 1
    assert await handler({"context_id": "c-1"}) == 3
    assert place.written("c-1") == record("c-1")


async def test_native_handlers_meet_it_too(place):
    """In every mode, bound or blind, from inside another state's turn: nothing is begun beside a forgotten record."""
    place.write("c-1")
    native = ConversationContext(place.storage)

    def handler(**settings):
        @agentstate.stateful(storage=place.storage, **settings)
        async def run(task, context, context_id):
            await context.set_variable(context_id, "n", 1)

        return run

    for settings in ({}, {"turns": "optimistic"}, {"turns": "read"}, {"commit": "immediate"}, {"turns": "reject"}):
        with pytest.raises(UnsupportedError, match="agentstate import-agentup --url"):
            await handler(**settings)({"context_id": "c-1"})
    calls = [
        lambda: native.set_variable("c-1", "n", 1),
        lambda: native.increment("c-1", "n"),
        lambda: native.add_to_history("c-1", "user", "x"),
        lambda: native.get_variable("c-1", "n"),
        lambda: native.clear_context("c-1"),
        lambda: native.get_or_create("c-1"),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError):
            await call()
    with pytest.raises(UnsupportedError):
        async with native.turn("c-1"):
            pass
    assert (await place.storage.read(StateScope.conversation("c-1"), Wants())).lease is None
    assert not (await native.list_contexts())
    assert place.written("c-1") == record("c-1")
    await handler()({"context_id": "c-2"})
    await import_agentup(native.storage, native)
    await handler(turns="reject")({"context_id": "c-1"})
    assert await native.get_variable("c-1", "name") == "grüße"


async def test_the_state_manager_meets_it_too(place):
    """Its accessors neither read past a record nor write beside it."""
    place.write("c-1")
    async with agentstate.StateManager(place.storage) as manager:
        conversation = manager.conversation("c-1")
        for call in (
            lambda: conversation.get("name"),
            lambda: conversation.set("name", "x"),
            lambda: conversation.update({"name": "x"}),
        ):
            with pytest.raises(UnsupportedError, match="agentstate import-agentup"):
                await call()


async def test_looking_costs_new_conversations_only(valkey_server, valkey_prefix):
    """Under a prefix that may be AgentUp's two keys are looked up at a conversation's first turn; else none ever is."""

    async def lookups(storage):
        @agentstate.stateful(storage=storage)
        async def handler(task, context, context_id):
            await context.increment(context_id, "n")

        counts = []
        for _ in range(3):
            before = valkey_server.calls().get("get", 0)
            await handler({"context_id": f"new-{valkey_prefix}"})
            counts.append(valkey_server.calls().get("get", 0) - before)
        await storage.close()
        return counts

    assert await lookups(ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix)) == [2, 0, 0]
    assert await lookups(ValkeyStorage(valkey_server.url)) == [0, 0, 0]


async def test_the_turn_is_given_back(place):
    """A refused handler holds nothing: whoever comes next is refused at once, and not after a wait."""
    place.write("c-1")

    @agentstate.stateful(storage=place.storage, turns="reject")
    async def handler(task, context, context_id):
        raise AssertionError

    for _ in range(3):
        with pytest.raises(UnsupportedError):
            await handler({"context_id": "c-1"})


async def test_other_tenants_and_kinds_are_left_alone(place):
    """A record imported for a tenant is no other's; an agent's or workflow's state never was AgentUp's."""
    place.write("c-1")
    acme = ConversationContext(place.storage, tenant="acme")
    with pytest.raises(UnsupportedError, match="--tenant acme"):
        await acme.get_history("c-1")
    await import_agentup(place.storage, acme)
    assert len(await acme.get_history("c-1")) == 2
    assert await ConversationContext(place.storage, tenant="other").get_history("c-1") == []
    assert await ConversationContext(place.storage).get_history("c-1") == []


async def test_importing_lines_is_refused_too(place, memory, tmp_path):
    """A conversation from a file of ours isn't put in the place of a record that nobody imported."""
    place.write("c-1")
    ours = ConversationContext(memory)
    await ours.set_variable("c-1", "n", 1)
    await ours.export(tmp_path / "all.jsonl")
    with pytest.raises(UnsupportedError, match="import-agentup"):
        await ConversationContext(place.storage).import_(tmp_path / "all.jsonl")


async def test_an_import_that_stopped_half_way_goes_on(place, memory):
    """What was stored before a damaged record stays, and isn't brought back if it was cleared since."""
    for name in ("a", "b", "c"):
        place.write(name)
    place.write("d", history="none")
    context = ConversationContext(memory)
    with pytest.raises(DamagedStateError, match="d"):
        await import_agentup(place.source, context, **options(place))
    await context.clear_context("a")
    place.write("d")
    again = await import_agentup(place.source, context, **options(place))
    assert (again.conversations, sorted(again.skipped)) == (1, ["a", "b", "c"])
    assert not await context.exists("a")


async def test_a_dry_run_stores_nothing(place, memory):
    """It says what would be stored, and what is there already."""
    place.write("c-1")
    place.write("c-2")
    context = ConversationContext(memory)
    await context.set_variable("c-2", "n", 1)
    seen = []
    found = await import_agentup(place.source, context, **options(place), dry_run=True, progress=lambda: seen.append(1))
    assert (found.conversations, found.messages, found.skipped, len(seen)) == (1, 2, ("c-2",), 2)
    assert not await context.exists("c-1")
    assert (await import_agentup(place.source, context, **options(place))).conversations == 1


def test_the_url_in_the_hint_says_all():
    """Prefix, user and other settings are in it; of the password only that there is one."""
    made = agentup.ValkeyStorage("valkeys://ada:s3cret@host:7000/2?socket_timeout=9", "agentup:state:")
    assert made.legacy_url == "valkeys://ada:PASSWORD@host:7000/2?key_prefix=agentup%3Astate%3A&socket_timeout=9.0"
    assert ValkeyStorage(made.legacy_url).options == made.options.model_copy(update={"password": SecretStr("PASSWORD")})
    assert (
        ValkeyStorage("unix:///run/v.sock?db=3", key_prefix="x:").legacy_url
        == "unix:///run/v.sock?db=3&key_prefix=x%3A"
    )
    assert ValkeyStorage().legacy_url is None


async def test_a_cleared_state_isnt_taken_for_a_forgotten_one(place):
    """After the import a conversation can be cleared and begun anew."""
    place.write("c-1")
    context = agentup.ConversationContext(place.storage)
    await import_agentup(context.storage, context)
    await context.clear_context("c-1")
    assert await context.get_history("c-1") == []


async def test_siblings_states_go_to_their_namesakes(place):
    """What stateful_user kept under user:alice is the state of the user alice."""
    place.write("user:alice")

    @stateful_user(place.storage, owner="alice")
    async def handler(task, context, context_id):
        return await context.get_variable(context_id, "name")

    with pytest.raises(UnsupportedError, match="--siblings"):
        await handler({})
    context = agentup.ConversationContext(place.storage)
    await import_agentup(context.storage, context)
    assert await context.get_variable("user:alice", "name") == "grüße"
    with pytest.raises(UnsupportedError, match="--siblings"):
        await handler({})
    await import_agentup(context.storage, context, siblings=True)
    assert await handler({}) == "grüße"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"history": [{"content": "no role"}]}, DamagedStateError),
        ({"history": "none"}, DamagedStateError),
        ({"created_at": "yesterday"}, DamagedStateError),
        ({"variables": ["a"]}, DamagedStateError),
        ({"context_id": ""}, ContextIdError),
        ({"context_id": 7}, ContextIdError),
    ],
)
async def test_damaged_records_are_named(place, memory, fields, error):
    """A record that isn't what AgentUp wrote raises with its place; nothing of it is stored."""
    place.write("c-1", **fields)
    context = ConversationContext(memory)
    with pytest.raises(error, match="c-1"):
        await import_agentup(place.source, context, **options(place))
    assert await context.list_contexts() == []


async def test_odd_messages_are_kept(place, memory):
    """Content that isn't text becomes a part; a message without a time, an empty content, stay."""
    odd = [
        {"role": "agent", "content": {"a": 1}, "timestamp": AWARE},
        {"role": "user", "content": None},
        {"role": "user", "content": None},
    ]
    place.write("c-1", history=odd, variables=None, user_id="")
    context = ConversationContext(memory)
    await import_agentup(place.source, context, **options(place))
    found = await context.get_history("c-1")
    assert [(one.role, one.content) for one in found] == [("assistant", [{"a": 1}]), ("user", ""), ("user", "")]


async def test_what_is_not_agentups_is_let_be(tmp_path, memory):
    """Files of other kinds are ignored; a JSON file that is no record is named."""
    place = Files(tmp_path / "states")
    place.write("c-1")
    (place.directory / "c-1.json.corrupted.1750000000").write_text("{")
    (place.directory / "c-2.json.tmp").write_text("{")
    await ConversationContext(place.storage).set_variable("ours", "n", 1)
    context = ConversationContext(memory)
    assert (await import_agentup(place.directory, context)).conversations == 1
    assert (await import_agentup(f"file://{place.directory}", context)).skipped == ("c-1",)
    assert (await import_agentup(place.directory / "c-1.json", context)).skipped == ("c-1",)
    (place.directory / "broken.json").write_text('{"context_id":')
    with pytest.raises(DamagedStateError, match=r"broken\.json"):
        await import_agentup(place.directory, context)
    await place.storage.close()


async def test_other_keys_are_let_be(valkey_server, valkey_prefix, memory):
    """Of the keys with the prefix only strings are looked at, ours never."""
    place = Keys(valkey_server, valkey_prefix)
    place.write("c-1")
    valkey_server.ask("RPUSH", f"{valkey_prefix}list", "x")
    await ConversationContext(place.storage).set_variable("ours", "n", 1)
    context = ConversationContext(memory)
    imported = await import_agentup(place.source, context, key_prefix=valkey_prefix)
    assert (imported.conversations, imported.skipped) == (1, ())
    (info,) = await context.list_contexts()
    assert info.expires_at - time.time() == pytest.approx(3600, abs=60)
    await agentup.ConversationContext(place.storage).set_variable("list", "n", 1)
    valkey_server.ask("DEL", f"{valkey_prefix}list")
    await place.storage.close()


async def test_sources_that_dont_work(tmp_path, memory):
    """A directory that isn't there, a backend that AgentUp never had, another scheme: typed errors."""
    context = ConversationContext(memory)
    with pytest.raises(StorageAccessError, match="absent"):
        await import_agentup(tmp_path / "absent", context)
    with pytest.raises(ConfigError, match="memory"):
        await import_agentup(memory, context)
    with pytest.raises(ConfigError):
        await import_agentup("mongodb://x", context)
    with pytest.raises(ValueError, match="on_existing"):
        await import_agentup(tmp_path, context, on_existing="x")


async def test_hostile_ids_reach_no_other_file(tmp_path):
    """An id that is a path is looked up nowhere."""
    (tmp_path / "outside.json").write_text(json.dumps(record("../outside")))
    place = Files(tmp_path / "states")
    context = agentup.ConversationContext(place.storage)
    await context.set_variable("../outside", "n", 1)
    assert await context.get_variable("../outside", "n") == 1
    await context.set_variable("x" * 512, "n", 1)
    await place.storage.close()
