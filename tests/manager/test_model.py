"""A random history of calls, transactions and savepoints gives what a dict would."""

from __future__ import annotations

import asyncio
import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from agentstate import Message, StateManager, StateScope
from agentstate.state import history
from agentstate.storage.memory import MemoryStorage

SCOPES = [StateScope.agent("a"), StateScope.step("w", "s"), StateScope.GLOBAL]
KEYS = ["a", "ab", "b/c", "ä"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 3), max_size=2),
)  # fmt: skip
WHERE = st.tuples(st.sampled_from(SCOPES), st.sampled_from(KEYS))
STEPS = st.one_of(
    st.tuples(st.just("set"), WHERE, VALUES),
    st.tuples(st.just("delete"), WHERE, st.none()),
    st.tuples(st.just("count"), WHERE, st.integers(-3, 3)),
    st.tuples(st.just("append"), WHERE, st.integers(0, 3)),
    st.tuples(st.just("merge"), WHERE, st.dictionaries(st.sampled_from("xy"), st.none() | st.integers(0, 3))),
    st.tuples(st.just("swap"), WHERE, st.tuples(VALUES, VALUES)),
    st.tuples(st.just("absent"), WHERE, VALUES),
    st.tuples(st.just("clear"), WHERE, st.none()),
    st.tuples(st.just("say"), WHERE, st.text("abc", max_size=2)),
)
BLOCKS = st.lists(st.tuples(st.sampled_from(["calls", "keep", "undo"]), st.lists(STEPS, max_size=6)), max_size=5)


class UndoneError(Exception):
    """Ends a block that is to be undone."""


def expected(model, step):  # noqa: C901 - a case each
    """Change the model as the call should; return whether the call should be possible."""
    name, (scope, key), given = step
    said = model[scope, "said"]
    if name == "say":
        said.append(given)
        return True
    if name == "clear":
        said.clear()
    entries = model.setdefault(scope, {})
    old = entries.get(key)
    if name == "set" or (name == "absent" and key not in entries):
        entries[key] = given
    elif name == "delete":
        entries.pop(key, None)
    elif name == "clear":
        entries.clear()
    elif name == "count":
        if key in entries and type(old) is not int:
            return False
        entries[key] = (old or 0) + given
    elif name == "append":
        if key in entries and not isinstance(old, list):
            return False
        entries[key] = [*(old or []), given]
    elif name == "merge":
        kept = {name: one for name, one in (old if isinstance(old, dict) else {}).items() if name not in given}
        entries[key] = kept | {name: one for name, one in given.items() if one is not None}
    elif name == "swap" and type(old) is type(given[0]) and old == given[0]:
        entries[key] = given[1]
    return True


async def call(face, step):
    """Make the call; return whether it was possible."""
    name, (scope, key), value = step
    calls = {
        "set": lambda: face.set(scope, key, value),
        "delete": lambda: face.delete(scope, key),
        "count": lambda: face.increment(scope, key, value),
        "append": lambda: face.append(scope, key, value),
        "merge": lambda: face.merge(scope, key, value),
        "swap": lambda: face.compare_and_swap(scope, key, *value),
        "absent": lambda: face.put_if_absent(scope, key, value),
        "clear": lambda: face.clear(scope),
        "say": lambda: face.run(scope, history.add, Message.new("user", value), ttl=None, unique=False),
    }
    try:
        await calls[name]()
    except TypeError:
        return False
    return True


async def whole(face):
    """Return everything."""
    said = {(scope, "said"): await face.run(scope, history.read, None, None, None) for scope in SCOPES}
    found = {at: [one.content for one in messages] for at, messages in said.items()}
    return found | {scope: dict(await face.list(scope)) for scope in SCOPES}


async def play(blocks, *, inside, looks):
    """Play the blocks on a manager, or as savepoints of one transaction, beside a model.

    With ``looks`` everything is read after each step; without, what was blind stays blind.
    """
    manager = StateManager(MemoryStorage())
    model = {scope: {} for scope in SCOPES} | {(scope, "said"): [] for scope in SCOPES}
    outer = manager.transaction()
    face = await outer.__aenter__() if inside else manager
    for kind, steps in blocks:
        if kind == "calls":
            for step in steps:
                before = copy.deepcopy(model)
                possible = expected(model, step)
                assert await call(face, step) == possible
                model = model if possible else before
        else:
            before = copy.deepcopy(model)
            try:
                async with outer.savepoint() if inside else manager.transaction() as tx:
                    for step in steps:
                        assert await call(tx, step) == expected(model, step)
                        if looks:
                            assert await whole(tx) == model
                    if kind == "undo":
                        raise UndoneError  # noqa: TRY301 - it ends the block
            except UndoneError:
                model = before
        if looks or not inside:
            assert await whole(face) == model
    if inside:
        await outer.__aexit__(None, None, None)
    assert await whole(manager) == model


@settings(max_examples=80, deadline=None)
@given(BLOCKS, st.booleans())
def test_calls_and_transactions(blocks, looks):
    """Calls and transactions on the manager."""
    asyncio.run(play(blocks, inside=False, looks=looks))


@settings(max_examples=80, deadline=None)
@given(BLOCKS, st.booleans())
def test_a_transaction_and_its_savepoints(blocks, looks):
    """The same inside one transaction, its blocks being savepoints."""
    asyncio.run(play(blocks, inside=True, looks=looks))
