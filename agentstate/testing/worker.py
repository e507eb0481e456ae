"""What a worker process can be asked to do. Runs in processes that `nursery` forks.

Each job gets an open storage and a channel. It says JSON lines and may wait for some; when
it fails, ``{"failed": ...}`` is the last thing it says.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConflictError, StateError, StorageClosedError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Check, Increment, Part, Put
from agentstate.testing.turns import EVERYTHING, new_id, take_turn

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from agentstate.storage.protocol import Storage

__all__ = [
    "CHILD_COMMITTED",
    "CHILD_REFUSED",
    "JOBS",
    "PATIENCE",
    "TOTAL",
    "Channel",
    "number_of",
    "numbered_part",
    "run_job",
]

CHILD_REFUSED = 10
CHILD_COMMITTED = 11
PATIENCE = 30.0
TOTAL = StateScope.custom("crash-total")


class Channel:
    """The line to the test."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._reader = line.makefile("rb")

    def say(self, message: object) -> None:
        """Say something; it has left this process when the call returns."""
        self._line.sendall(json.dumps(message).encode() + b"\n")

    async def hear(self) -> Any:
        """Return what the test says next; raises `EOFError` when it has gone."""
        line = await asyncio.to_thread(self._reader.readline)
        if not line:
            raise EOFError
        return json.loads(line)

    def close(self) -> None:
        """Close this process's end, as a forked child does with what isn't its own."""
        os.close(self._line.fileno())


def run_job(channel: Channel, request: Mapping[str, Any]) -> None:
    """Run the job of a request in an event loop of its own."""
    try:
        asyncio.run(_run(channel, request))
    except EOFError:
        return
    except BaseException:  # noqa: BLE001 - the test shall see whatever it was
        channel.say({"failed": traceback.format_exc()})


async def _run(channel: Channel, request: Mapping[str, Any]) -> None:
    from agentstate.storage import registry

    storage = registry.create(request["backend"], request["options"])
    await storage.open()
    try:
        await JOBS[request["job"]](storage, channel, **request["arguments"])
    finally:
        await storage.close()


def number_of(value: bytes | int | None) -> int:
    """Return the number that an entry of the contention jobs holds."""
    return int(value or 0)


async def _count(storage: Storage, channel: Channel, *, scope: str, tasks: int, times: int, how: str) -> None:
    """In each of ``tasks`` tasks, add ``times`` to ``variables/n`` of a scope and append an item each time."""
    where = StateScope.parse(scope)
    channel.say("ready")
    await channel.hear()

    async def count(task: int) -> None:
        for turn in range(times):
            item = Append("history", f"{os.getpid()}-{task}-{turn}", b"x", unique=True)
            if how == "blind":
                part = Part(scope=where, increments=[Increment("variables", "n", 1)], appends=[item])
                await storage.commit([part], commit_id=new_id())
            elif how == "optimistic":
                await _count_optimistically(storage, where, item)
            else:
                await _count_in_a_turn(storage, where, item)

    await asyncio.gather(*(count(task) for task in range(tasks)))
    channel.say("done")


async def _count_optimistically(storage: Storage, scope: StateScope, item: Append) -> None:
    while True:
        found = (await storage.read(scope, EVERYTHING)).entries.get(("variables", "n"))
        check = Check("entry", "variables", found.stamp if found else None, "n")
        put = Put("variables", "n", b"%d" % (number_of(found.value if found else None) + 1))
        try:
            await storage.commit([Part(scope=scope, checks=[check], puts=[put], appends=[item])], commit_id=new_id())
        except ConflictError:
            continue
        return


async def _count_in_a_turn(storage: Storage, scope: StateScope, item: Append) -> None:
    snapshot = await take_turn(storage, scope, f"process {os.getpid()}")
    found = snapshot.entries.get(("variables", "n"))
    put = Put("variables", "n", b"%d" % (number_of(found.value if found else None) + 1))
    await storage.commit(
        [Part(scope=scope, puts=[put], appends=[item])], commit_id=new_id(), lease=snapshot.lease, release=True
    )


async def _hold(storage: Storage, channel: Channel, *, scope: str, seconds: float) -> None:
    """Hold the turn of a scope and do what it is told: ``commit``, ``leave``, ``fork``."""
    where = StateScope.parse(scope)
    lease = (await take_turn(storage, where, "the holder", seconds=seconds)).lease
    assert lease is not None
    channel.say("held")
    while True:
        order = await channel.hear()
        said: object = "done"
        try:
            if order == "commit":
                part = Part(scope=where, puts=[Put("variables", "by", b"holder")])
                await storage.commit([part], commit_id=new_id(), lease=lease, release=True)
            elif order == "leave":
                await storage.leave(where, lease.nonce)
            else:
                said = _fork_a_sleeper(channel)
        except StateError as error:
            said = type(error).__name__
        channel.say(said)


def _fork_a_sleeper(channel: Channel) -> int:
    child = os.fork()
    if child == 0:
        channel.close()
        time.sleep(PATIENCE)
        os._exit(0)
    return child


async def _fork(storage: Storage, channel: Channel, *, scope: str) -> None:
    """Fork with an open storage, use it in the child, then in the parent; say how both went."""
    part = Part(scope=StateScope.parse(scope), increments=[Increment("variables", "n", 1)])
    await storage.commit([part], commit_id=new_id())
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))
        os._exit(asyncio.run(_use_inherited(storage, part)))
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    await storage.commit([part], commit_id=new_id())
    channel.say({"child": os.waitstatus_to_exitcode(status)})


async def _use_inherited(storage: Storage, part: Part) -> int:
    try:
        await storage.commit([part], commit_id=new_id())
    except StorageClosedError:
        return CHILD_REFUSED
    except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's stack
        traceback.print_exc()
        return 1
    return CHILD_COMMITTED


async def _write_sequence(storage: Storage, channel: Channel, *, scopes: list[str], counts: list[int]) -> None:
    """Commit a numbered sequence to each scope at once until killed; acknowledge every commit.

    Each commit adds one to ``variables/n`` and appends two items that hold the number. Where
    a commit can hold several scopes, every commit also counts in `TOTAL`.
    """
    together = storage.capabilities.atomic_scopes

    async def write(which: int) -> None:
        for number in itertools.count(counts[which] + 1):
            parts = [numbered_part(StateScope.parse(scopes[which]), number)]
            if together:
                parts.append(Part(scope=TOTAL, increments=[Increment("variables", "n", 1)]))
            await storage.commit(parts, commit_id=new_id())
            channel.say([which, number])

    await asyncio.gather(*(write(which) for which in range(len(scopes))))


def numbered_part(scope: StateScope, number: int) -> Part:
    """Return the part that the ``write_sequence`` job commits as number ``number``."""
    return Part(
        scope=scope,
        puts=[Put("variables", "last", b"%d" % number)],
        increments=[Increment("variables", "n", 1)],
        appends=[Append("history", f"{number}-{half}", b"%d%s" % (number, half.encode())) for half in "ab"],
        record=b"%d" % number,
    )


JOBS: dict[str, Callable[..., Awaitable[None]]] = {
    "count": _count,
    "fork": _fork,
    "hold": _hold,
    "write_sequence": _write_sequence,
}
