"""Whatever step a process dies at, what it acknowledged is there, whole, and in the feed."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.protocol import Append, Increment, Part, Put, ScopeQuery, Wants

ROOT = Path(__file__).resolve().parents[2]
SCOPES = [StateScope.conversation(f"c{n}") for n in range(3)]
WRITER = """
import asyncio, random, sys
from agentstate.scope import StateScope
from agentstate.storage.file import feed as file_feed
from agentstate.storage.file import scope as file_scope
from agentstate.storage.file import write as file_write
from agentstate.storage.file import FileStorage
from agentstate.storage.protocol import Append, Increment, Part
file_scope.ROTATE_BYTES = file_write.ROTATE_BYTES = 3000
file_feed.KEPT_BYTES = 100_000

async def main():
    storage = FileStorage(sys.argv[1], durability="normal")
    async def write(n):
        while True:
            part = Part(
                scope=StateScope.conversation(f"c{n}"),
                increments=[Increment("variables", "n", 1)],
                appends=[Append("history", "m", b'"' + b"x" * random.randrange(6000) + b'"')],
            )
            await storage.commit([part], commit_id=random.getrandbits(62))
            print(n, flush=True)
    await asyncio.gather(*(write(n) for n in range(3)))
asyncio.run(main())
"""


def run(*arguments):
    """Run Python in the project, and return what it says."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.crash
@pytest.mark.parametrize("first", [1, 2])
def test_dying_at_every_step(tmp_path, first):
    """A process that dies before its n-th change of a file, or in the middle of it, loses and tears nothing."""
    said = run("-m", "tests.storage.filecrash", str(tmp_path), str(first), "2")
    assert "FAILED" not in said, said
    tried = int(said.split("tried up to ")[1])
    assert tried > 150


@pytest.mark.crash
async def test_killed_beside_another(tmp_path):
    """A writer killed at random moments takes nothing of its own or of another process's commits with it."""
    storage = FileStorage(tmp_path, durability="normal")
    mine = [0, 0, 0]
    stop = asyncio.Event()

    async def write(n):
        while not stop.is_set():
            part = Part(
                scope=SCOPES[n],
                increments=[Increment("variables", "n", 1)],
                appends=[Append("history", "m", b'"mine"')],
                puts=[Put("variables", "k", b"1")],
            )
            await storage.commit([part], commit_id=random.getrandbits(62))
            mine[n] += 1
            await asyncio.sleep(0.001)

    writers = [asyncio.create_task(write(n)) for n in range(3)]
    acknowledged, chance, kills = [0, 0, 0], random.Random(7), 4
    for _ in range(kills):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        first = await process.stdout.readline()
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        for line in [first, *(await process.stdout.read()).splitlines()]:
            acknowledged[int(line)] += 1
        await process.wait()
    stop.set()
    await asyncio.gather(*writers)
    listed = {info.scope: info.stamp for info in (await storage.scopes(ScopeQuery())).items}
    feed = await storage.feed(0, limit=100_000)
    for n, scope in enumerate(SCOPES):
        found = await storage.read(scope, Wants())
        count = found.entries["variables", "n"].value
        assert 0 <= count - mine[n] - acknowledged[n] <= kills
        assert found.stamp.version == count == found.logs["history"].head
        assert listed[scope] == found.stamp
        told = [item.stamp.version for item in feed if item.scope == scope]
        # The feed was compacted meanwhile; from where it begins it has no gap.
        assert told == list(range(told[0], count + 1))
    await storage.close()
    assert not list((tmp_path / "inflight").iterdir())
    again = FileStorage(tmp_path)
    assert (await again.read(SCOPES[0], Wants())).stamp == listed[SCOPES[0]]
    await again.close()


async def test_a_torn_last_line_at_every_byte(tmp_path):
    """A log whose last line was cut short anywhere reads as before that line, and is written on from there."""
    storage = FileStorage(tmp_path)
    for number in range(3):
        await storage.commit(
            [Part(scope=SCOPES[0], puts=[Put("variables", "n", b"%d" % number)])], commit_id=number + 1
        )
    await storage.close()
    (path,) = (tmp_path / "scopes").glob("*/*/*/log.jsonl")
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(data)):
        path.write_bytes(data[:end])
        again = FileStorage(tmp_path)
        found = await again.read(SCOPES[0], Wants())
        assert found.stamp.version == 2
        assert found.entries["variables", "n"].value == b"1"
        assert path.stat().st_size == end, "a reader cut the line"
        done = await again.commit([Part(scope=SCOPES[0], puts=[Put("variables", "n", b"9")])], commit_id=9)
        assert done[0].stamp.version == 3
        other = FileStorage(tmp_path)
        assert (await other.read(SCOPES[0], Wants())).entries["variables", "n"].value == b"9"
        await again.close()
        await other.close()
    assert not list((tmp_path / "quarantine").iterdir())


async def test_a_scope_whose_first_write_was_torn(tmp_path):
    """What a crash left of a state's very first line is no state; the next commit begins it."""
    storage = FileStorage(tmp_path)
    await storage.commit([Part(scope=SCOPES[0], puts=[Put("variables", "n", b"1")])], commit_id=1)
    await storage.close()
    (path,) = (tmp_path / "scopes").glob("*/*/*/log.jsonl")
    data = path.read_bytes()
    for end in (0, 1, 30, data.index(b"\n"), data.index(b"\n") + 1, len(data) - 1):
        path.write_bytes(data[:end])
        again = FileStorage(tmp_path)
        assert (await again.read(SCOPES[0], Wants())).stamp is None
        done = await again.commit([Part(scope=SCOPES[0], puts=[Put("variables", "n", b"2")])], commit_id=2)
        assert done[0].stamp.version == 1
        await again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can't be taken on")
def test_a_directory_that_is_not_writable(tmp_path):
    """A directory that may not be written to is an access error that names it."""
    script = """
import asyncio, os, sys
os.setgid(65534); os.setuid(65534)
from agentstate.errors import StorageAccessError
from agentstate.storage.file import FileStorage
async def main():
    try:
        await FileStorage(sys.argv[1]).open()
    except StorageAccessError as error:
        print(error)
asyncio.run(main())
"""
    target = tmp_path / "closed"
    target.mkdir(mode=0o755)
    # The other user needs a way in, and the modules loaded before it loses its rights.
    preload = "import agentstate.storage.file, agentstate.storage.oslock\n"
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    said = run("-c", preload + script, str(target))
    assert str(target) in said
    assert "Permission denied" in said
