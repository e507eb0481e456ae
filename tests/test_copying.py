"""States move from one engine to another: all of them, whole, once, while both are in use."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from agentstate import ConversationContext
from agentstate.errors import ConflictError, DamagedStateError
from agentstate.exchange import copying
from agentstate.exchange.copying import Copied, copy_states
from agentstate.scope import StateScope
from agentstate.state.turn import new_id
from agentstate.storage import registry
from agentstate.storage.protocol import Append, Increment, Part, Put, ScopeQuery, TrimHead, Wants
from tests.conftest import BACKENDS

A = StateScope.conversation("a")
STATES = (A, StateScope.GLOBAL, StateScope.step("wf", "a/b"), StateScope.user("ümlaut:*{}"), StateScope.agent("x"))


@pytest.fixture
async def source():
    """A memory storage with a few states."""
    made = registry.create("memory", {})
    for number, scope in enumerate(STATES):
        for turn in range(number + 1):
            await made.commit(
                [
                    Part(
                        scope=scope,
                        puts=[Put("variables", f"k{turn}", b'"v"'), Put("metadata", "ключ", b"\x01\x00\xff")],
                        increments=[Increment("variables", "count", 2**40)],
                        appends=[Append("history", f"m-{turn}-{n}", b'{"n":%d}' % n) for n in range(3)],
                        owner="ada" if number else None,
                        labels={"room": "7"},
                        parent="team:t" if number else None,
                    )
                ],
                commit_id=new_id(),
            )
    await made.commit([Part(scope=A, trims=[TrimHead("history", 3)], ttl=3600.0)], commit_id=new_id())
    return made


async def picture(storage, scope):
    """What a copy must have in common with its original."""
    found = await storage.read(scope, Wants())
    page = await storage.read_log(scope, "history")
    return (
        found.stamp.version,
        (found.created_at, found.updated_at, found.owner, found.parent, dict(found.labels)),
        found.expires_at is None or round(found.expires_at, -2),
        {at: entry.value for at, entry in found.entries.items()},
        [(item.position, item.id, item.value) for item in page.items],
    )


async def test_to_every_engine(source, storage):
    """Versions, times, positions, owners, labels, parents, lifetimes and bytes are the original's."""
    done = await copy_states(source, storage)
    assert done == Copied(copied=5, items=3 * 15 - 2)
    for scope in STATES:
        assert await picture(storage, scope) == await picture(source, scope)


async def test_there_and_back(source, storage):
    """A copy of a copy is the same again."""
    back = registry.create("memory", {})
    await copy_states(source, storage)
    assert (await copy_states(storage, back)).copied == 5
    for scope in STATES:
        assert await picture(back, scope) == await picture(source, scope)


class TestAgain:
    """Running it again."""

    async def test_nothing_twice(self, source, storage):
        """What is there already is compared, and left as it is."""
        await copy_states(source, storage)
        stamps = [(await storage.read(scope, Wants())).stamp for scope in STATES]
        assert await copy_states(source, storage) == Copied(same=5)
        assert [(await storage.read(scope, Wants())).stamp for scope in STATES] == stamps

    async def test_what_has_changed(self, source, storage):
        """A state that went on in the source is copied anew; its old copy was nobody's work."""
        await copy_states(source, storage)
        await source.commit([Part(scope=A, appends=[Append("history", "new", b"1")])], commit_id=new_id())
        done = await copy_states(source, storage)
        assert (done.copied, done.same) == (1, 4)
        assert await picture(storage, A) == await picture(source, A)

    async def test_after_it_was_stopped(self, source, storage, monkeypatch):
        """A run that was cancelled in the middle of a large state is finished by the next."""
        monkeypatch.setattr(copying, "COMMIT_BYTES", 50)
        await source.commit(
            [Part(scope=A, appends=[Append("history", f"x{n}", b"x" * 40) for n in range(40)])], commit_id=new_id()
        )
        for steps in itertools.count(1):
            run = asyncio.create_task(copy_states(source, storage, ScopeQuery(kind="conversation")))
            for _ in range(steps * 25):
                await asyncio.sleep(0)
            if run.done():
                break
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        await copy_states(source, storage)
        assert (await picture(storage, A))[1:] == (await picture(source, A))[1:]


class TestInTheWay:
    """The target has a state of that name that is no copy."""

    async def test_error(self, source, storage):
        """It stops, and says what to do; what was there is as it was."""
        await storage.commit([Part(scope=A, puts=[Put("variables", "own", b"1")])], commit_id=new_id())
        with pytest.raises(ConflictError, match="conversation:a") as caught:
            await copy_states(source, storage)
        assert "on_existing" in caught.value.remedy
        assert list((await storage.read(A, Wants())).entries) == [("variables", "own")]

    async def test_skip(self, source, storage):
        """It is left, and counted."""
        await storage.commit([Part(scope=A, puts=[Put("variables", "own", b"1")])], commit_id=new_id())
        done = await copy_states(source, storage, on_existing="skip")
        assert (done.copied, done.skipped) == (4, 1)
        assert list((await storage.read(A, Wants())).entries) == [("variables", "own")]

    async def test_replace(self, source, storage):
        """The copy takes its place, whole."""
        for _ in range(9):
            await storage.commit([Part(scope=A, puts=[Put("variables", "own", b"1")])], commit_id=new_id())
        await copy_states(source, storage, on_existing="replace")
        assert (await picture(storage, A))[1:] == (await picture(source, A))[1:]

    async def test_changed_copy(self, source, storage):
        """A copy that was changed afterwards is somebody's work."""
        await copy_states(source, storage)
        await storage.commit([Part(scope=A, puts=[Put("variables", "own", b"1")])], commit_id=new_id())
        with pytest.raises(ConflictError):
            await copy_states(source, storage)


async def test_chosen_ones(source, memory):
    """A query chooses."""
    assert (await copy_states(source, memory, ScopeQuery(kind="user", prefix="üml"))).copied == 1
    assert (await copy_states(source, memory, ScopeQuery(owner="ada"))).copied == 3


async def test_both_in_use(source, storage):
    """Turns go on in the source meanwhile: what is copied is each state at one of its versions."""
    context = ConversationContext(source)
    going = True

    async def work():
        number = 0
        while going:
            number += 1
            await context.set_variables("a", {"first": number, "second": number})
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    try:
        for _ in range(20):
            with suppress(ConflictError):  # it changes all the time
                await copy_states(source, storage, ScopeQuery(kind="conversation"))
            found = await ConversationContext(storage).get_variables("a")
            assert found.get("first") == found.get("second")
    finally:
        going = False
        await working
    await copy_states(source, storage)
    assert (await picture(storage, A))[1:] == (await picture(source, A))[1:]


async def test_copy_that_went_wrong(source, memory, monkeypatch):
    """What was stored is read back: a target that doesn't keep what it was given is found out."""
    original = memory.read_log

    async def forgetful(*args, **kwargs):
        page = await original(*args, **kwargs)
        return page._replace(items=page.items[:-1])

    monkeypatch.setattr(memory, "read_log", forgetful)
    with pytest.raises(DamagedStateError, match="isn't what is in"):
        await copy_states(source, memory)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_large(backend, storage_options, monkeypatch):
    """A state larger than a commit is copied in several, and has its original's version in the end."""
    monkeypatch.setattr(copying, "COMMIT_BYTES", 20_000)
    source, target = registry.create("memory", {}), registry.create(backend, storage_options(backend))
    for n in range(30):
        appends = [Append("history", f"{n}-{m}", b"x" * 100) for m in range(50)]
        await source.commit(
            [Part(scope=A, appends=appends, puts=[Put("variables", f"k{n}", b"1" * 3000)])], commit_id=n + 1
        )
    await copy_states(source, target)
    assert (await target.read(A, Wants((), (), (), 0))).stamp.version == 30
    assert (await target.read_log(A, "history")).items[-1].position == 1500
    assert (await copy_states(source, target)).same == 1
    await target.close()
