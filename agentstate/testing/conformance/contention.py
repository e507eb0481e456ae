"""Many at once: tasks, threads and event loops, without a lost update and without a deadlock."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

from agentstate.errors import ConflictError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Check, Increment, Part, Put
from agentstate.testing.conformance.case import A, B, StorageCase, add, commit, need, put, read, value_of
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from agentstate.storage.protocol import Storage

TASKS = 64


async def add_and_append(storage: Storage, item: str, scope: StateScope = A) -> None:
    """Commit blindly: one increment, one append."""
    append = Append("history", item, item.encode(), unique=True)
    await commit(storage, scope, increments=[Increment("variables", "n", 1)], appends=[append])


async def count_in_a_turn(storage: Storage, holder: str) -> None:
    """Read, add one and write back what was read, relying on the turn alone."""
    entered = await take_turn(storage, A, holder, patience=60)
    found = entered.entries.get(("variables", "n"))
    number = int(found.value) if found else 0
    await asyncio.sleep(0)
    value = Put("variables", "n", b"%d" % (number + 1))
    await commit(storage, puts=[value], lease=entered.lease, release=True)


async def count_optimistically(storage: Storage) -> int:
    """Read, add one and write back under a check, until it succeeds; return how often it conflicted."""
    conflicts = 0
    while True:
        found = (await read(storage)).entries.get(("variables", "n"))
        check = Check("entry", "variables", found.stamp if found else None, "n")
        value = Put("variables", "n", b"%d" % ((int(found.value) if found else 0) + 1))
        try:
            await commit(storage, checks=[check], puts=[value])
        except ConflictError:
            conflicts += 1
            continue
        return conflicts


class ContentionTests(StorageCase):
    """Sixty-four tasks on one state."""

    async def test_blind_commits(self, live: Storage) -> None:
        """Increments and appends of 64 tasks all arrive, none twice, in dense order."""
        await asyncio.gather(*(add_and_append(live, f"m-{n}") for n in range(TASKS)))
        page = await live.read_log(A, "history")
        assert await value_of(live, "n") == TASKS
        assert {item.id for item in page.items} == {f"m-{n}" for n in range(TASKS)}
        assert [(item.position, item.seq) for item in page.items] == [(n, n) for n in range(1, TASKS + 1)]
        found = await read(live)
        assert found.stamp is not None
        assert found.stamp.version == TASKS

    async def test_one_winner(self, live: Storage) -> None:
        """Of 64 commits on the same base exactly one is done, and the others conflict."""
        base = (await put(live, k=b"0")).stamp
        calls = [commit(live, base=base, puts=[Put("variables", "k", b"%d" % n)]) for n in range(TASKS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        won = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert {type(result) for n, result in enumerate(results) if n not in won} == {ConflictError}
        assert await value_of(live, "k") == b"%d" % won[0]

    async def test_one_creator(self, live: Storage) -> None:
        """Of 64 commits that each demand an absent state exactly one creates it."""
        calls = [commit(live, birth=0, appends=[Append("history", f"m-{n}", b"x")]) for n in range(TASKS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in results) == 1
        assert (await read(live)).logs["history"].head == 1

    async def test_optimistic_counting(self, live: Storage) -> None:
        """Sixteen tasks that read, add and check lose no update."""
        await asyncio.gather(*(count_optimistically(live) for _ in range(16)))
        assert await value_of(live, "n") == b"16"

    async def test_counting_in_turns(self, live: Storage) -> None:
        """Sixteen tasks that rely on the turn alone lose no update."""
        await asyncio.gather(*(count_in_a_turn(live, f"task {n}") for n in range(16)))
        assert await value_of(live, "n") == b"16"

    async def test_many_states(self, live: Storage) -> None:
        """Commits to many states at once don't mix."""
        scopes = [StateScope.conversation(f"c-{n}") for n in range(16)]
        await asyncio.gather(*(add_and_append(live, f"{n}", scopes[n % 16]) for n in range(TASKS)))
        for number, scope in enumerate(scopes):
            ids = {item.id for item in (await live.read_log(scope, "history")).items}
            assert ids == {str(n) for n in range(number, TASKS, 16)}
            assert await value_of(live, "n", scope) == 4

    async def test_readers_see_whole_commits(self, live: Storage) -> None:
        """Whoever reads while others commit sees counter, entry and log of the same commit."""
        stop = False

        async def watch() -> int:
            looks = 0
            while not stop:
                found = await live.read(A, EVERYTHING)
                if found.stamp is not None:
                    number = found.entries["variables", "n"].value
                    assert found.entries["variables", "k"].value == str(number).encode()
                    assert found.logs["history"].head == number == found.stamp.version
                looks += 1
                await asyncio.sleep(0)
            return looks

        watchers = [asyncio.create_task(watch()) for _ in range(4)]
        for number in range(1, 60):
            await commit(
                live,
                puts=[Put("variables", "k", b"%d" % number)],
                increments=[Increment("variables", "n", 1)],
                appends=[Append("history", "m", b"x")],
            )
            await asyncio.sleep(0)
        stop = True
        assert min(await asyncio.gather(*watchers)) > 0

    async def test_transfers(self, live: Storage) -> None:
        """Commits of two scopes at once, in both orders: no deadlock, and the sum stays."""
        need(live.capabilities.atomic_scopes, "atomic_scopes")
        await add(live, A, by=1000)
        await add(live, B, by=1000)

        async def move(number: int) -> None:
            parts = [Part(scope=A, increments=[Increment("variables", "n", -number)])]
            parts.append(Part(scope=B, increments=[Increment("variables", "n", number)]))
            await live.commit(parts if number % 2 else parts[::-1], commit_id=new_id())

        async with asyncio.timeout(60):
            await asyncio.gather(*(move(number) for number in range(40)))
        assert (await value_of(live, "n", A), await value_of(live, "n", B)) == (1000 - 780, 1000 + 780)

    async def test_drops_among_commits(self, live: Storage) -> None:
        """Drops and commits that race leave whole incarnations: a counter and its log agree."""

        async def drop() -> None:
            for _ in range(5):
                await live.drop(A)
                await asyncio.sleep(0)

        await asyncio.gather(*(add_and_append(live, f"m-{n}") for n in range(32)), drop(), drop())
        await add_and_append(live, "last")
        found = await read(live)
        assert found.entries["variables", "n"].value == found.logs["history"].head

    async def test_two_instances(self, live: Storage, another: Callable[..., Awaitable[Storage]]) -> None:
        """Two instances open on the same data lose nothing of one another."""
        need(live.capabilities.shared, "shared")
        other = await another()
        await asyncio.gather(*(add_and_append((live, other)[n % 2], f"m-{n}") for n in range(TASKS)))
        for storage in (live, other):
            assert await value_of(storage, "n") == TASKS
            assert (await read(storage)).logs["history"].head == TASKS


def in_threads(*works: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run each coroutine in a thread and event loop of its own, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


class LoopTests(StorageCase):
    """One storage, several event loops in several threads."""

    async def test_loops_at_once(self, live: Storage) -> None:
        """Four loops commit to one state at the same time and lose nothing."""

        def work(loop: int) -> Callable[[], Coroutine[Any, Any, None]]:
            async def commits() -> None:
                await asyncio.gather(*(add_and_append(live, f"{loop}-{n}") for n in range(10)))

            return commits

        await asyncio.to_thread(in_threads, *(work(loop) for loop in range(4)))
        assert await value_of(live, "n") == 40
        assert (await read(live)).logs["history"].head == 40

    async def test_turns_across_loops(self, live: Storage) -> None:
        """Loops queue for one turn and wake one another."""

        async def turns() -> None:
            for _ in range(5):
                await count_in_a_turn(live, "loop")

        await asyncio.to_thread(in_threads, turns, turns, turns)
        assert await value_of(live, "n") == b"15"

    async def test_a_dead_loop(self, live: Storage) -> None:
        """A loop that ended, with a line it stood in and calls it never finished, harms no other."""
        entered = await take_turn(live, A, "holder")

        async def abandon() -> None:
            await live.wait_turn(A, new_id(), 0.01)
            waits = asyncio.ensure_future(take_turn(live, A, "abandoned"))
            adds = [asyncio.ensure_future(add(live, B)) for _ in range(4)]
            await asyncio.sleep(0.01)
            for one in (waits, *adds):
                one.cancel()

        await asyncio.to_thread(in_threads, abandon, abandon)
        await put(live, k=b"1")
        assert await value_of(live, "k") == b"1"
        assert entered.lease is not None
        await live.leave(A, entered.lease.nonce)
        again = await take_turn(live, A, "next", patience=20)
        assert again.lease is not None

    async def test_one_loop_after_another(self, live: Storage) -> None:
        """A storage serves loop after loop, as scripts and tests run them."""
        for item in ("m-1", "m-2", "m-3"):
            await asyncio.to_thread(in_threads, partial(add_and_append, live, item))
        assert await value_of(live, "n") == 3
