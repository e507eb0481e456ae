"""One cycle of a crash test: let a worker commit, kill it, and look at what it left.

The worker (job ``write_sequence``) commits numbered pairs of items to several states and
acknowledges each commit. After its death every acknowledged commit must be there, and
every commit that is there must be whole.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentstate.storage.protocol import Wants
from agentstate.testing.processes import start_worker
from agentstate.testing.worker import TOTAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Storage
    from agentstate.testing.processes import ProcessSpec

__all__ = ["check_sequence", "counts_of", "crash_cycle"]


async def crash_cycle(
    spec: ProcessSpec,
    scopes: Sequence[StateScope],
    counts: Sequence[int],
    seconds: float,
    *,
    early: bool = False,
    kill: Callable[[], None] | None = None,
) -> list[int]:
    """Let a worker commit, kill it, and return what each state has acknowledged.

    Args:
        spec: how the worker opens the data.
        scopes: the states it commits to.
        counts: how many commits each of them holds already.
        seconds: kill it so long after its first acknowledgement.
        early: kill it so long after its start instead, perhaps while it opens the data.
        kill: kills something else first, such as the server.
    """
    acknowledged = list(counts)
    names = [scope.text for scope in scopes]
    with start_worker(spec, "write_sequence", scopes=names, counts=list(counts)) as worker:
        said: list[tuple[int, int]] = [] if early else [await worker.receive()]
        await asyncio.sleep(seconds)
        if kill is not None:
            kill()
        worker.kill()
        said += await worker.rest()
    for which, number in said:
        acknowledged[which] = max(acknowledged[which], int(number))
    return acknowledged


async def counts_of(storage: Storage, scopes: Sequence[StateScope]) -> list[int]:
    """Return how many commits each state holds, by its counter."""
    counts: list[int] = []
    for scope in scopes:
        found = (await storage.read(scope, Wants())).entries.get(("variables", "n"))
        counts.append(int(found.value) if found is not None else 0)
    return counts


async def check_sequence(
    storage: Storage, scopes: Sequence[StateScope], acknowledged: Sequence[int], *, since: Sequence[int]
) -> None:
    """Fail unless all acknowledged commits are there and those after ``since`` are whole.

    Raises:
        AssertionError: a commit is lost, torn, doubled or out of order.
    """
    counts = await counts_of(storage, scopes)
    for scope, count, sure, start in zip(scopes, counts, acknowledged, since, strict=True):
        assert count >= sure, f"{scope}: commit {sure} was acknowledged, but only {count} are there"
        await _check_whole(storage, scope, count, start)
    if storage.capabilities.atomic_scopes:
        (total,) = await counts_of(storage, [TOTAL])
        assert total == sum(counts), f"{total} commits were counted, and {sum(counts)} are there"


async def _check_whole(storage: Storage, scope: StateScope, count: int, start: int) -> None:
    if count == 0:
        return
    found = await storage.read(scope, Wants())
    last = found.entries["variables", "last"].value
    assert last == b"%d" % count, f"{scope}: the counter says {count}, the entry {last!r}"
    assert found.stamp is not None
    assert found.stamp.version == count, f"{scope}: {count} commits, version {found.stamp.version}"
    assert found.logs["history"].head == 2 * count, f"{scope}: {found.logs['history'].head} items of {count} commits"
    items = (await storage.read_log(scope, "history", start=2 * start + 1)).items
    wanted = [b"%d%s" % (number, half) for number in range(start + 1, count + 1) for half in (b"a", b"b")]
    assert [item.value for item in items] == wanted, f"{scope}: the items after {start} are not those of its commits"
    versions: list[int] = []
    while page := await storage.journal(scope, after=versions[-1] if versions else start):
        assert [one.record for one in page] == [b"%d" % one.stamp.version for one in page]
        versions += [one.stamp.version for one in page]
    # Long journals are trimmed; what is left must be the newest, without a gap.
    assert versions == list(range(count - len(versions) + 1, count + 1)), f"{scope}: the journal has gaps"
    assert not versions or versions[-1] == count
