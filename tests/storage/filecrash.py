"""A script that ends a process of the file backend at its n-th system call: ``python -m … DIR [FIRST [STRIDE]]``.

For each n a forked child does a fixed piece of work on a store of its own and dies before its
n-th change of a file, or in the middle of writing. Another child then opens what is left and
compares it with what was acknowledged. Prints one line for each n that went wrong, and how
many were tried.
"""

import asyncio
import os
import sys
import traceback

from agentstate.scope import StateScope
from agentstate.storage.file import feed as file_feed
from agentstate.storage.file import scope as file_scope
from agentstate.storage.file import snapshot as file_snapshot
from agentstate.storage.file import storage as file
from agentstate.storage.file import write as file_write
from agentstate.storage.protocol import Append, CutTail, Part, Put, ScopeQuery, Wants
from agentstate.testing.clock import FakeClock
from tests.storage.filedisks import DyingDisk

A, B = StateScope.conversation("a"), StateScope.conversation("b")
WORDS = b'"' + b"word " * 40 + b'"'
COMMITS = 14


def small():
    """Make logs, archives and the feed short, so that a little work rotates and compacts all of them."""
    file_scope.ROTATE_BYTES = file_write.ROTATE_BYTES = 1200
    file_snapshot.SLACK = 200
    file_feed.KEPT_BYTES = 700


async def work(directory, n, acknowledge):
    """Do the work; say which step is done, as soon as it is."""
    disk = DyingDisk(n)
    file.Disk = lambda: disk
    clock = FakeClock(1000.0)
    storage = file.FileStorage(directory, clock=clock)
    disk.armed = True
    await storage.open()
    acknowledge()
    for number in range(1, COMMITS):
        part = Part(
            scope=A,
            puts=[Put("variables", "n", b"%d" % number)],
            appends=[Append("history", f"m{number}", WORDS, None, unique=True)],
            cuts=[CutTail("history", number - 2)] if number % 5 == 0 else [],
            record=b"{}",
        )
        await storage.commit([part], commit_id=number)
        acknowledge()
        if number == 6:
            await storage.commit([Part(scope=B, puts=[Put("variables", "n", b"1")], ttl=5.0)], commit_id=100)
            acknowledge()
    await storage.drop(A)
    acknowledge()
    clock.advance(10)
    await storage.sweep()
    acknowledge()
    clock.advance(5000)
    await storage.sweep()
    acknowledge()
    await storage.close()


def expected():
    """Return what must be seen after each number of acknowledged steps: A's version, B's, and the feed."""
    steps = [(0, 0, [])]
    for number in range(1, COMMITS):
        _, b, feed = steps[-1]
        steps.append((number, b, [*feed, ("a", number)]))
        if number == 6:
            steps.append((number, 1, [*feed, ("a", number), ("b", 100)]))
    _, b, feed = steps[-1]
    steps.append((0, b, [*feed, ("a", None)]))
    steps += [(0, 0, [*feed, ("a", None), ("b", None)])] * 2
    return steps


async def look(directory):
    """Return what is there now, after checking that its parts agree with one another."""
    storage = file.FileStorage(directory, clock=FakeClock(1000.0))
    found = [await storage.read(scope, Wants(tails=(("history", 100),))) for scope in (A, B)]
    versions = [one.stamp.version if one.stamp else 0 for one in found]
    if versions[0]:
        assert found[0].entries["variables", "n"].value == b"%d" % versions[0]
        items = found[0].logs["history"].items
        assert all(item.value == WORDS for item in items)
        assert items[-1].id == f"m{versions[0]}"
        journal = await storage.journal(A)
        assert [one.stamp.version for one in journal] == list(range(1, versions[0] + 1)), journal
        assert await storage.outcome(A, versions[0]) == found[0].stamp
    listed = {info.scope: info.stamp for info in (await storage.scopes(ScopeQuery())).items}
    assert listed == {one.scope: one.stamp for one in found if one.stamp}, listed
    feed = await storage.feed(0)
    # It goes on from there.
    done = await storage.commit([Part(scope=A, puts=[Put("variables", "n", b"0")])], commit_id=999)
    assert not versions[0] or done[0].stamp.version == versions[0] + 1
    await storage.close()
    assert not [*os.scandir(f"{directory}/inflight"), *os.scandir(f"{directory}/quarantine")]
    return (*versions, [(item.scope.id, item.stamp.commit_id if item.stamp else None) for item in feed])


def fits(found, wanted):
    """Whether the states are as wanted, and the feed is, but for what compaction let go."""
    kept = len(found[2])
    return found[:2] == wanted[:2] and kept >= min(1, len(wanted[2])) and found[2] == wanted[2][len(wanted[2]) - kept :]


def forked(run):
    """Run something in a forked child, and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            run()
        except BaseException:  # noqa: BLE001 - its exit code says it
            traceback.print_exc(file=sys.stdout)
            code = 1
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def one(directory, n):
    """Try one n; return whether the work came to its end before the n-th change."""
    here, there = os.pipe()
    code = forked(lambda: asyncio.run(work(directory, n, lambda: os.write(there, b"."))))
    os.close(there)
    acknowledged = len(os.read(here, 1000))
    os.close(here)
    allowed = expected()[max(acknowledged - 1, 0) : acknowledged + 1]

    def check():
        found = asyncio.run(look(directory))
        assert any(fits(found, one) for one in allowed), f"{found} after {acknowledged} steps, not one of {allowed}"

    if forked(check) != 0:
        print("FAILED at", n, "after", acknowledged, "steps in", directory, flush=True)
    return code == 0


def main():
    """Try n after n until the work is done first."""
    small()
    directory, first, stride = sys.argv[1], *(int(given) for given in [*sys.argv[2:], *("1", "1")[len(sys.argv) - 2 :]])
    n = first
    while not one(f"{directory}/{n}", n):
        n += stride
    print("tried up to", n, flush=True)


if __name__ == "__main__":
    main()
