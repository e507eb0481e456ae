"""Opening, closing, opening again; and that a storage says honestly what it is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from agentstate.errors import StorageClosedError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Capabilities, CutTail, Increment, Put, ScopeQuery, Storage, TrimHead
from agentstate.testing.conformance.case import A, B, StorageCase, add, commit, need, picture, put, read, value_of
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agentstate.testing.clock import FakeClock
    from agentstate.testing.conformance.case import MakeStorage

CALLS: dict[str, Callable[[Storage], Coroutine[Any, Any, Any]]] = {
    "open": lambda storage: storage.open(),
    "ping": lambda storage: storage.ping(),
    "read": lambda storage: storage.read(A, EVERYTHING),
    "commit": commit,
    "read_log": lambda storage: storage.read_log(A, "history"),
    "find_item": lambda storage: storage.find_item(A, "history", "m"),
    "scan": lambda storage: storage.scan(A, "variables"),
    "scopes": lambda storage: storage.scopes(ScopeQuery()),
    "drop": lambda storage: storage.drop(A),
    "sweep": lambda storage: storage.sweep(),
    "journal": lambda storage: storage.journal(A),
    "failures": lambda storage: storage.failures(A),
    "feed": lambda storage: storage.feed(0),
    "outcome": lambda storage: storage.outcome(A, 5),
}


class LifecycleTests(StorageCase):
    """Open, close, ping, capabilities."""

    async def test_is_a_storage(self, storage: Storage) -> None:
        """It has every method of the protocol, with parameters of the same names."""
        assert isinstance(storage, Storage)
        for name, wanted in inspect.getmembers(Storage, inspect.isfunction):
            if not name.startswith("_"):
                offered = inspect.signature(getattr(storage, name)).parameters
                assert [*inspect.signature(wanted).parameters][1:] == [*offered][: len(offered)], name

    async def test_capabilities(self, storage: Storage) -> None:
        """What it declares is of the declared kinds and fits together."""
        declared = storage.capabilities
        assert isinstance(declared, Capabilities)
        assert declared.durability in {"none", "process", "power"}
        assert declared.leases in {"process", "machine", "network"}
        assert declared.partitions >= 1
        assert declared.leases != "process" or not declared.shared, "processes that share need turns that exclude them"

    async def test_name_and_location(self, storage: Storage) -> None:
        """It has a short name, and says for people where its data lies, without a password."""
        assert storage.name
        assert storage.name == storage.name.strip().lower()
        assert storage.location
        assert "password" not in storage.location

    async def test_open_is_idempotent(self, storage: Storage) -> None:
        """Opening twice, with data in it, changes nothing."""
        await put(storage, k=b"1")
        before = await picture(storage)
        await storage.open()
        assert await picture(storage) == before

    async def test_opens_by_itself(self, make_storage: MakeStorage, clock: FakeClock) -> None:
        """A storage that nobody opened opens on its first use."""
        storage = make_storage(clock)
        try:
            await put(storage, k=b"1")
            assert await value_of(storage, "k") == b"1"
        finally:
            await storage.close()

    async def test_never_opened(self, make_storage: MakeStorage, clock: FakeClock) -> None:
        """A storage can be made and closed without ever being used, also twice."""
        storage = make_storage(clock)
        await storage.close()
        await storage.close()

    async def test_ping(self, storage: Storage) -> None:
        """An open storage answers."""
        await storage.ping()

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
    async def test_used_after_close(
        self, storage: Storage, call: Callable[[Storage], Coroutine[Any, Any, Any]]
    ) -> None:
        """Whatever is called after close says that it is closed."""
        await put(storage, k=b"1")
        await storage.close()
        with pytest.raises(StorageClosedError):
            await call(storage)

    async def test_close_twice(self, storage: Storage) -> None:
        """Closing again is no error."""
        await storage.close()
        await storage.close()


class ReopenTests(StorageCase):
    """What was committed is there when the data is opened again."""

    async def test_everything_is_kept(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """Entries, counters, logs, owner, labels, journal, expiry, stamps: all as before."""
        need(storage.capabilities.durability != "none", "durability")
        await commit(
            storage,
            puts=[Put("variables", "k", bytes(range(256))), Put("variables", "own", b"1", ttl=50.0)],
            appends=[Append("history", f"m-{n}", b"%d" % n, unique=True) for n in range(1, 9)],
            owner="ada",
            parent="user:ada",
            labels={"status": "open"},
            ttl=100.0,
            record=b"first",
        )
        await add(storage, by=-(2**62) - 1)
        await commit(storage, cuts=[CutTail("history", 7)], trims=[TrimHead("history", 3)], record=b"second")
        await storage.leave(A, new_id(), failure=b"failed")
        before = await picture(storage)
        await storage.close()
        again = await another(clock)
        assert await picture(again) == before
        assert await again.failures(A) == (b"failed",)
        item = await again.find_item(A, "history", "m-4")
        assert item is not None
        assert item.position == 4
        clock.advance(60)
        assert set((await read(again)).entries) == {("variables", "k"), ("variables", "n")}
        clock.advance(60)
        assert (await read(again)).stamp is None

    async def test_it_goes_on(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """Versions, positions and numbers go on where they were, over many openings."""
        need(storage.capabilities.durability != "none", "durability")
        for number in range(1, 5):
            done = await commit(
                storage,
                increments=[Increment("variables", "n", 1)],
                appends=[Append("history", "m", b"x")],
                record=b"%d" % number,
            )
            assert done.stamp is not None
            assert (done.stamp.version, done.counters["variables", "n"], done.logs["history"].head) == (number,) * 3
            await storage.close()
            storage = await another(clock)
        assert [one.record for one in await storage.journal(A)] == [b"1", b"2", b"3", b"4"]

    async def test_a_drop_is_kept(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """A dropped state stays dropped, and its version isn't used again."""
        need(storage.capabilities.durability != "none", "durability")
        first = await put(storage, k=b"1")
        await put(storage, B, k=b"1")
        await storage.drop(A)
        await storage.close()
        again = await another(clock)
        assert (await read(again)).stamp is None
        assert [info.scope for info in (await again.scopes(ScopeQuery())).items] == [B]
        second = await put(again, k=b"2")
        assert first.stamp is not None
        assert second.stamp is not None
        assert second.stamp.version > first.stamp.version

    async def test_the_feed_goes_on(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """A feed's cursor is good after opening again."""
        need(storage.capabilities.durability != "none", "durability")
        partition = A.partition(storage.capabilities.partitions)
        await put(storage, k=b"1")
        (item,) = await storage.feed(partition)
        await storage.close()
        again = await another(clock)
        assert await again.feed(partition) == (item,)
        done = await put(again, k=b"2")
        assert [one.stamp for one in await again.feed(partition, after=item.cursor)] == [done.stamp]

    async def test_many_states_kept(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """A hundred states are all listed and readable after opening again."""
        need(storage.capabilities.durability != "none", "durability")
        scopes = [StateScope.conversation(f"c-{n:03}") for n in range(100)]
        for scope in scopes:
            await commit(storage, scope, puts=[Put("variables", "k", scope.id.encode())], owner=scope.id[-1])
        await storage.close()
        again = await another(clock)
        assert [info.scope for info in (await again.scopes(ScopeQuery(limit=200))).items] == scopes
        assert [info.scope for info in (await again.scopes(ScopeQuery(owner="7"))).items] == scopes[7::10]
        assert [await value_of(again, "k", scope) for scope in scopes] == [scope.id.encode() for scope in scopes]

    async def test_turns_end_with_close(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """A turn held when the storage was closed is free when it is opened again."""
        need(storage.capabilities.durability != "none", "durability")
        await take_turn(storage, A, "holder", seconds=600.0)
        await storage.close()
        again = await another(clock)
        assert (await take_turn(again, A, "next", patience=20)).lease is not None

    async def test_another_instance_sees_at_once(
        self, storage: Storage, clock: FakeClock, another: Callable[..., Awaitable[Storage]]
    ) -> None:
        """An instance sees what another has committed, with no caching in between."""
        need(storage.capabilities.shared, "shared")
        other = await another(clock)
        for number in range(5):
            await put(storage, k=b"%d" % number)
            assert await value_of(other, "k") == b"%d" % number
            await commit(other, appends=[Append("history", "m", b"%d" % number)])
            assert (await read(storage)).logs["history"].head == number + 1
        assert await other.drop(A)
        assert (await read(storage)).stamp is None
