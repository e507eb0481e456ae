"""Entries of every kind of scope: set, get, delete, list, update, versions, patches, limits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from agentstate import StateManager, StateScope
from agentstate.errors import (
    ConfigError,
    ConflictError,
    ContextIdError,
    ContextNotFoundError,
    StateError,
    UnsupportedValueError,
    ValueTooLargeError,
)
from agentstate.scope import KINDS
from agentstate.storage.protocol import Stamp
from agentstate.testing.faults import FaultyStorage

A = StateScope.agent("a")
SCOPES = [
    StateScope.GLOBAL,
    StateScope.team("t"),
    StateScope.guild("g"),
    A,
    StateScope.workflow("w"),
    StateScope.step("w", "s"),
    StateScope.session("s"),
    StateScope.conversation("c"),
    StateScope.user("u"),
    StateScope.custom("n"),
]
HOSTILE = ["a:b", "a/b", "*", "{x}", "../../etc", "😀", "a\nb", " ", "%2F", "x" * 512, "'; drop table", "@t/user:1"]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
async def test_a_value_of_each_kind_of_scope(manager, scope):
    """What is set in a scope is there, and nowhere else."""
    assert not await manager.exists(scope)
    await manager.set(scope, "k", {"n": [1, None, "x"]})
    assert await manager.get(scope, "k") == {"n": [1, None, "x"]}
    assert await manager.exists(scope)
    assert await manager.exists(scope, "k")
    assert not await manager.exists(scope, "other")
    assert [other for other in SCOPES if other != scope and await manager.exists(other)] == []
    assert [one.scope for one in await manager.list_scopes(scope.kind)] == [scope]
    assert await manager.delete(scope, "k")
    assert not await manager.delete(scope, "k")
    assert await manager.get(scope, "k", "none") == "none"


async def test_a_value_is_the_same_in_a_conversations_context(storage):
    """An entry of a conversation is the variable that a handler sees."""
    from agentstate import ConversationContext

    await ConversationContext(storage).set_variable("c", "k", 1)
    manager = StateManager(storage)
    assert await manager.conversation("c").get("k") == 1


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_ids_and_keys(manager, text):
    """Ids and keys are data: kept as they are, and found as they were given."""
    scopes = [StateScope.agent(text), StateScope.step(text, "s"), StateScope.step("s", text), StateScope.custom(text)]
    for number, scope in enumerate(scopes):
        await manager.set(scope, text, number)
    assert [await manager.list(scope) for scope in scopes] == [{text: n} for n in range(4)]
    assert [await manager.list_keys(scope, text[:1]) for scope in scopes] == [[text]] * 4


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "x" * 513, 7, None, ["k"]])
async def test_a_key_that_is_none(joint, key):
    """What can't be a key is refused before anything is stored."""
    for call in (joint.get(A, key), joint.set(A, key, 1), joint.increment(A, key), joint.set_many(A, {"ok": 1, "": 2})):
        with pytest.raises(ContextIdError):
            await call
    assert not await joint.exists(A)


async def test_several_at_once(manager):
    """Several values are set, read and deleted as one change each."""
    await manager.set_many(A, {"a": 1, "b": [2], "c": None})
    assert (await manager.info(A)).version == 1
    assert await manager.get_many(A, ["c", "b", "zz"]) == {"c": None, "b": [2]}
    assert await manager.delete_many(A, ["a", "c", "zz"]) == 2
    assert (await manager.info(A)).version == 2
    assert await manager.list(A) == {"b": [2]}


async def test_several_are_all_or_nothing(manager):
    """One value that can't be stored, and none is."""
    with pytest.raises(UnsupportedValueError):
        await manager.set_many(A, {"a": 1, "b": object()})
    assert await manager.delete_many(A, ["a", "b"]) == 0
    assert not await manager.exists(A)


async def test_pages_in_both_directions(manager):
    """Pages have the order of the keys, forwards and backwards, with a prefix, and miss and repeat nothing."""
    keys = sorted([f"k{n:04}" for n in range(57)] + ["j", "l", "kä", "k😀"])
    await manager.set_many(A, {key: key for key in keys})
    for reverse in (False, True):
        for prefix in ("", "k", "k00", "zz"):
            wanted = [key for key in keys if key.startswith(prefix)]
            found, cursor = [], None
            while True:
                page = await manager.list(A, prefix, limit=10, cursor=cursor, reverse=reverse)
                found += page
                cursor = page.cursor
                if cursor is None:
                    break
            assert found == (wanted[::-1] if reverse else wanted)
            assert [*await manager.list(A, prefix, reverse=reverse)] == found


async def test_pages_of_a_large_state(joint):
    """A state too large for one read is paged as well, and in a transaction."""
    await joint.set_many(A, {f"k{n:04}": "x" * 100 for n in range(1200)})
    assert len(await joint.list(A)) == 1200
    assert [*await joint.list(A, limit=3, reverse=True)] == ["k1199", "k1198", "k1197"]
    assert [*await joint.list(A, limit=2, reverse=True, cursor="k0600")] == ["k0599", "k0598"]
    async with joint.transaction() as tx:
        await tx.set(A, "k0000a", 1)
        await tx.delete(A, "k0001")
        assert [*await tx.list(A, limit=3)] == ["k0000", "k0000a", "k0002"]
        assert len(await tx.list_keys(A)) == 1200


async def test_a_page_of_nothing_is_refused(manager):
    """A limit below one is an error."""
    with pytest.raises(ValueError, match="at least 1"):
        await manager.list(A, limit=0)


async def test_pages_of_states(joint):
    """States of a kind are listed by id in pages, both directions."""
    for n in range(25):
        await joint.set(StateScope.workflow(f"w{n:02}"), "k", n)
    ids = [f"w{n:02}" for n in range(25)]
    for reverse in (False, True):
        found, cursor = [], None
        while True:
            page = await joint.list_scopes(StateScope.WORKFLOW, prefix="w", limit=10, reverse=reverse, cursor=cursor)
            found += [one.scope.id for one in page]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == (ids[::-1] if reverse else ids)


async def test_update(manager):
    """A pure function replaces a value; it gets the default when there is none."""
    assert await manager.update(A, "n", lambda old: old + 1, 10) == 11
    assert await manager.update(A, "n", lambda old: old * 2) == 22
    assert await manager.get(A, "n") == 22


async def test_an_update_that_raises_stores_nothing(manager):
    """The function's own error goes on, and nothing is stored."""
    with pytest.raises(ZeroDivisionError):
        await manager.update(A, "n", lambda old: 1 / 0)
    assert not await manager.exists(A)


async def test_versions(manager):
    """A write that expects a version is refused when the entry has another one; the error holds both."""
    await manager.set(A, "k", 1, expected=None)
    value, version = await manager.get_versioned(A, "k")
    assert (value, version.version) == (1, 1)
    await manager.set(A, "other", 1)
    await manager.set(A, "k", 2, expected=version)
    for expected in (version, None, Stamp(2, 1)):
        with pytest.raises(ConflictError) as caught:
            await manager.set(A, "k", 3, expected=expected)
        assert caught.value.expected == expected
        assert caught.value.found == (await manager.get_versioned(A, "k")).version
    assert await manager.get(A, "k") == 2
    assert await manager.get_versioned(A, "absent") == (None, None)


async def test_a_version_doesnt_come_back(manager):
    """A deleted and made anew entry has another version, although it counts the same."""
    await manager.set(A, "k", 1)
    version = (await manager.get_versioned(A, "k")).version
    await manager.clear(A)
    await manager.set(A, "k", 1)
    with pytest.raises(ConflictError):
        await manager.set(A, "k", 2, expected=version)


async def test_put_if_absent(manager):
    """Of many that put, one does."""
    done = await asyncio.gather(*[manager.put_if_absent(A, "k", n) for n in range(20)])
    assert done.count(True) == 1
    assert await manager.get(A, "k") == done.index(True)


async def test_compare_and_swap(manager):
    """A value is replaced if it is the expected one, of the same type."""
    assert await manager.compare_and_swap(A, "k", None, 1)
    assert not await manager.compare_and_swap(A, "k", True, 2)
    assert not await manager.compare_and_swap(A, "k", 5, 2)
    assert await manager.compare_and_swap(A, "k", 1, {"x": 1})
    assert await manager.compare_and_swap(A, "k", {"x": 1}, 3)
    done = await asyncio.gather(*[manager.compare_and_swap(A, "k", 3, 100 + n) for n in range(20)])
    assert done.count(True) == 1


async def test_counters(manager):
    """A number is added to, also one that was set, and nothing else is."""
    assert await manager.increment(A, "n") == 1
    assert await manager.increment(A, "n", -5) == -4
    await manager.set(A, "m", 10)
    assert await manager.increment(A, "m", 2) == 12
    await manager.set(A, "text", "x")
    for by in (1.5, "1", True):
        with pytest.raises(UnsupportedValueError):
            await manager.increment(A, "n", by)
    with pytest.raises(UnsupportedValueError):
        await manager.increment(A, "text")


async def test_lists_with_a_cap(manager):
    """Items go to the end of a list, and the oldest out of it."""
    assert await manager.append(A, "l", 1, 2) == 2
    assert await manager.append(A, "l", 3, 4, cap=3) == 3
    assert await manager.get(A, "l") == [2, 3, 4]
    assert await manager.append(A, "l", 5, cap=0) == 0
    await manager.set(A, "text", "x")
    with pytest.raises(UnsupportedValueError):
        await manager.append(A, "text", 1)


async def test_sets(manager):
    """Items are added once, to a set or to a list."""
    assert await manager.add_to_set(A, "s", 1, 2, 2) == 2
    assert await manager.add_to_set(A, "s", 2, 3) == 1
    assert await manager.get(A, "s") == {1, 2, 3}
    await manager.set(A, "l", [{"a": 1}])
    assert await manager.add_to_set(A, "l", {"a": 1}, {"b": 1}, {"b": 1}) == 1
    assert await manager.get(A, "l") == [{"a": 1}, {"b": 1}]


async def test_pointers(manager):
    """A JSON Pointer reads, sets and counts inside a value."""
    await manager.set(A, "k", {"items": [{"n": 1}], "a/b": {"~": 2}, "": 3})
    assert await manager.get(A, "k", path="/items/0/n") == 1
    assert await manager.get(A, "k", path="/a~1b/~0") == 2
    assert await manager.get(A, "k", path="/") == 3
    for path in ("/zz", "/items/5", "/items/0/n/x", "/items/x"):
        assert await manager.get(A, "k", "none", path=path) == "none"
    for whole in ({"ttl": 5.0}, {"expected": None}):
        with pytest.raises(ValueError, match="whole entry"):
            await manager.set(A, "k", 1, path="/items/0/n", **whole)
    assert await manager.increment(A, "k", 4, path="/items/0/n") == 5
    assert await manager.increment(A, "k", path="/new") == 1
    await manager.set(A, "k", "x", path="/items/0/name")
    assert await manager.get(A, "k", path="/items/0") == {"n": 5, "name": "x"}
    assert await manager.increment(A, "fresh", path="/n") == 1
    assert await manager.get(A, "fresh") == {"n": 1}


@pytest.mark.parametrize("path", ["items", "/items/-1/n", "/items/01", "/no/way"])
async def test_a_pointer_that_leads_nowhere_changes_nothing(joint, path):
    """What can't be changed is a typed error that names the path."""
    await joint.set(A, "k", {"items": [{"n": 1}]})
    with pytest.raises(UnsupportedValueError) as caught:
        await joint.increment(A, "k", path=path)
    assert caught.value.path == path
    assert await joint.get(A, "k") == {"items": [{"n": 1}]}


# The examples of RFC 7396, appendix A: a value, a patch, what comes of it.
MERGES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("value", "patch", "wanted"), MERGES)
async def test_merge_patches(memory, value, patch, wanted):
    """The examples of RFC 7396."""
    manager = StateManager(memory)
    await manager.set(A, "k", value)
    assert await manager.merge(A, "k", patch) == wanted
    assert await manager.get(A, "k") == wanted


async def test_json_patches(manager):
    """A JSON patch is applied as a whole, or not at all."""
    await manager.set(A, "k", {"a": [1], "n": 1})
    steps = [
        {"op": "test", "path": "/n", "value": 1},
        {"op": "add", "path": "/a/-", "value": 2},
        {"op": "move", "from": "/n", "path": "/m"},
    ]
    assert await manager.patch(A, "k", steps) == {"a": [1, 2], "m": 1}
    with pytest.raises(ConflictError, match="test"):
        await manager.patch(A, "k", [{"op": "remove", "path": "/a"}, {"op": "test", "path": "/m", "value": True}])
    for bad in ({"op": "remove", "path": "/zz"}, {"op": "frob", "path": "/a"}, {"op": "add", "path": "a", "value": 1}):
        with pytest.raises(UnsupportedValueError):
            await manager.patch(A, "k", [bad])
    assert await manager.get(A, "k") == {"a": [1, 2], "m": 1}


class Address(BaseModel):
    """Where somebody lives."""

    city: str
    since: datetime


class Profile(BaseModel):
    """A user."""

    name: str
    homes: list[Address] = []


async def test_typed_values(manager):
    """A model is stored as plain JSON and comes back as the model; a wrong value says where it is wrong."""
    profile = Profile(name="Ada", homes=[Address(city="London", since=datetime(1815, 12, 10, tzinfo=UTC))])
    await manager.set(A, "p", profile, as_type=Profile)
    assert await manager.get(A, "p", as_type=Profile) == profile
    assert (await manager.get(A, "p"))["homes"][0]["city"] == "London"
    assert await manager.get(A, "p", as_type=Address, path="/homes/0") == profile.homes[0]
    assert await manager.get(A, "absent", as_type=Profile) is None
    await manager.set(A, "p", 5, path="/homes/0/city")
    with pytest.raises(UnsupportedValueError, match="/homes/0/city") as caught:
        await manager.get(A, "p", as_type=Profile)
    assert caught.value.path == "/homes/0/city"


async def test_the_largest_value(joint):
    """A value above the limit is refused on every way in, and names the key."""
    small = StateManager(joint.routes.of("agent").store, max_value_bytes=100)
    big = "x" * 200
    calls = [
        small.set(A, "k", big),
        small.set_many(A, {"a": 1, "k": big}),
        small.put_if_absent(A, "k", big),
        small.append(A, "k", big),
        small.update(A, "k", lambda old: big),
        small.merge(A, "k", {"b": big}),
        small.workflow("w").set_result("k", big),
        small.global_state.set_setting("k", big),
    ]
    for call in calls:
        with pytest.raises(ValueTooLargeError, match="'k' of"):
            await call
    assert not await small.exists(A)
    await small.set(A, "k", "x" * 50)


async def test_a_value_lives_as_long_as_it_is_told(clocked, clock):
    """An entry's own lifetime ends; a change that keeps the entry keeps what is left of it."""
    manager = StateManager(clocked)
    await manager.set(A, "k", [1], ttl=10)
    await manager.set(A, "other", 1)
    clock.advance(6)
    await manager.append(A, "k", 2)
    clock.advance(5)
    assert await manager.get(A, "k") is None
    await manager.set_ttl(A, 3)
    clock.advance(4)
    assert not await manager.exists(A)


async def test_tenants_dont_meet(storage):
    """Two tenants with the same ids have nothing in common, and neither can name the other's states."""
    one, two = StateManager(storage, tenant="one"), StateManager(storage, tenant="two")
    for manager, name in ((one, "one"), (two, "two")):
        for scope in SCOPES:
            await manager.set(scope, "k", name)
    for manager, name in ((one, "one"), (two, "two")):
        assert [await manager.get(scope, "k") for scope in SCOPES] == [name] * len(SCOPES)
        listed = [info.scope for kind in KINDS for info in await manager.list_scopes(kind)]
        assert {scope.tenant for scope in listed} == {name}
        assert len(listed) == len(SCOPES)
    for scope in (StateScope.agent("a", tenant="two"), StateScope.make("global", tenant="two")):
        with pytest.raises(ContextNotFoundError):
            await one.get(scope, "k")
        with pytest.raises(ContextNotFoundError):
            await one.set(scope, "k", 1)
    assert await StateManager(storage).get(A, "k") is None


async def test_principals(storage):
    """A state becomes its first principal's; others find nothing there, and share what is shared."""
    ada, bob = StateManager(storage, principal="ada"), StateManager(storage, principal="bob")
    scope = StateScope.conversation("c")
    await ada.set(scope, "k", 1)
    assert (await ada.info(scope)).owner == "ada"
    calls = [
        bob.get(scope, "k"),
        bob.set(scope, "k", 2),
        bob.increment(scope, "n"),
        bob.update(scope, "k", lambda old: 5),
        bob.list(scope),
        bob.clear(scope),
        bob.conversation("c").add_message("user", "x"),
    ]
    for call in calls:
        with pytest.raises(ContextNotFoundError):
            await call
    assert await ada.get(scope, "k") == 1
    await ada.set(StateScope.team("t"), "k", 1)
    assert await bob.get(StateScope.team("t"), "k") == 1
    assert (await ada.info(StateScope.team("t"))).owner is None


async def test_kinds_without_an_id(joint):
    """A kind is enough where it is bound to an id, and nowhere else."""
    bound = joint.bind(agent="a", guild="g", step=("w", "s"))
    await bound.set(StateScope.AGENT, "k", 1)
    await bound.set(StateScope.GUILD, "k", 2)
    await bound.set(StateScope.STEP, "k", 3)
    await bound.set(StateScope.GLOBAL, "k", 4)
    await bound.set(StateScope.user("u"), "k", 5)
    found = [A, StateScope.team("g"), StateScope.step("w", "s"), StateScope.GLOBAL, StateScope.user("u")]
    assert [await joint.get(scope, "k") for scope in found] == [1, 2, 3, 4, 5]
    with pytest.raises(ContextIdError, match=r"bind\(user="):
        await bound.get(StateScope.USER, "k")
    assert await bound.bind(user="u").get(StateScope.USER, "k") == 5
    with pytest.raises(ContextIdError, match=r"bind\(agent="):
        await joint.get(StateScope.AGENT, "k")


async def test_storage_per_kind(tmp_path):
    """Each kind of scope may lie in a storage of its own, and '*' is for all the rest."""
    manager = StateManager(storages={"guild": f"file:///{tmp_path}/f", "*": f"sqlite:///{tmp_path}/s.db"})
    await manager.set(StateScope.team("t"), "k", 1)
    await manager.set(A, "k", 2)
    assert StateManager(f"file:///{tmp_path}/f").routes.of("team").store is manager.routes.of("team").store
    assert await StateManager(f"sqlite:///{tmp_path}/s.db").get(A, "k") == 2
    assert await StateManager(f"sqlite:///{tmp_path}/s.db").get(StateScope.team("t"), "k") is None
    await manager.aclose()


def test_storages_that_contradict():
    """A kind that isn't one is refused, and so are two answers to one question."""
    with pytest.raises(ConfigError, match="workflow"):
        StateManager(storages={"workflows": "memory://"})
    with pytest.raises(ConfigError, match="Keep one"):
        StateManager("memory://", storages={"*": "memory://"})


async def test_the_configuration_per_kind(tmp_path, monkeypatch):
    """The file says where the states of a kind lie, how long they live, and how they end."""
    from agentstate import configure

    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent_config.yaml").write_text(
        "state:\n  url: sqlite:///all.db\n  scopes:\n    guild: {url: 'memory://', ttl: 60}\n"
        "    workflow: {on_end: delete}\n"
    )
    try:
        configure()
        manager = StateManager()
        assert manager.routes.of("team").store.storage.name == "memory"
        assert manager.routes.of("team").settings.ttl == 60
        assert manager.routes.of("agent").store.storage.name == "sqlite"
        assert manager.routes.of("workflow").on_end == "delete"
        assert manager.routes.of("agent").on_end == "keep"
    finally:
        monkeypatch.undo()
        configure()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("scopes: {workflows: {}}", "workflow"),
        ("scopes: [a]", "mapping"),
        ("scopes: {team: {}, guild: {}}", "twice"),
        ("scopes: {team: {on_end: expire}}", "on_end"),
        ("scopes: {team: {no_such: 1}}", "no_such"),
    ],
)
def test_a_wrong_configuration_per_kind(tmp_path, block, said):
    """What is wrong in it is an error that names the file and the line."""
    from agentstate.config.check import check
    from agentstate.config.discovery import Configuration
    from agentstate.config.document import load
    from agentstate.storage import registry

    file = tmp_path / "agent_config.yaml"
    file.write_text(f"state:\n  {block}\n")
    errors = [one.message for one in check(Configuration(load(file)), registry).findings if one.level == "error"]
    assert any(said in message and "agent_config.yaml:2" in message for message in errors), errors


async def test_errors_are_of_one_tree(joint):
    """Whatever goes wrong is a StateError."""
    for call in (joint.get(StateScope.AGENT, "k"), joint.set(A, "k", object()), joint.patch(A, "k", [{}])):
        with pytest.raises(StateError):
            await call


CALLS = [
    (lambda manager: manager.get(A, "k"), (1, 0)),
    (lambda manager: manager.get_many(A, [f"k{n}" for n in range(50)]), (1, 0)),
    (lambda manager: manager.exists(A, "k"), (1, 0)),
    (lambda manager: manager.exists(A), (1, 0)),
    (lambda manager: manager.set(A, "k", 1), (0, 1)),
    (lambda manager: manager.set_many(A, {f"k{n}": n for n in range(50)}), (0, 1)),
    (lambda manager: manager.put_if_absent(A, "k", 1), (0, 1)),
    (lambda manager: manager.increment(A, "n"), (0, 1)),
    (lambda manager: manager.delete(A, "k"), (1, 1)),
    (lambda manager: manager.delete_many(A, ["k", "k1"]), (1, 1)),
    (lambda manager: manager.update(A, "k", lambda old: 1), (1, 1)),
    (lambda manager: manager.append(A, "l", 1), (1, 1)),
    (lambda manager: manager.merge(A, "d", {"a": 1}), (1, 1)),
    (lambda manager: manager.increment(A, "d", path="/n"), (1, 1)),
    (lambda manager: manager.compare_and_swap(A, "k", 1, 2), (1, 1)),
]


@pytest.mark.parametrize(("call", "trips"), CALLS)
async def test_round_trips(memory, call, trips):
    """Each call takes the reads and commits that the page on costs says, also with many keys."""
    await StateManager(memory).set_many(A, {"k": 1, "k1": 2})
    counted = FaultyStorage(memory)
    await call(StateManager(counted))
    assert (counted.calls["read"], counted.calls["commit"]) == trips


async def test_misuse(joint):
    """What makes no sense is refused, before anything is stored."""
    for call in (joint.get("agent:a", "k"), joint.set(None, "k", 1), joint.list_scopes("agents")):
        with pytest.raises(ContextIdError):
            await call
    for call in (joint.set(A, "k", 1, ttl=0), joint.put_if_absent(A, "k", 1, ttl=-1), joint.set_ttl(A, float("nan"))):
        with pytest.raises(ValueError, match="ttl"):
            await call
    with pytest.raises(ContextIdError):
        joint.bind(nobody="x")
    assert not await joint.exists(A)
