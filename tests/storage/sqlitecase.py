"""What the tests of the SQLite backend share."""

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Check, LeaseRequest, Part, Put, Wants
from agentstate.storage.sqlite.jobs import Task

A, B = StateScope.conversation("a"), StateScope.conversation("b")
TURN = Wants(tails=(("history", 10),))


async def put(storage, scope=A, key="k", value=b"1", commit_id=1, **change):
    """Set one variable."""
    part = Part(scope=scope, puts=[Put("variables", key, value)], **change)
    return (await storage.commit([part], commit_id=commit_id))[0]


async def value(storage, scope=A, key="k"):
    """Return one variable."""
    entry = (await storage.read(scope, Wants())).entries.get(("variables", key))
    return None if entry is None else entry.value


async def turn(storage, number, scope=A):
    """Make one turn as a handler does: 10 messages and 2 variables read, 2 appended, 1 set, recorded."""
    found = await storage.read(scope, TURN, lease=LeaseRequest(number + 1, 30.0, "handler"))
    entries = [(key, found.entries.get(("variables", key))) for key in ("visits", "mood")]
    part = Part(
        scope=scope,
        birth=found.birth,
        checks=[Check("entry", "variables", entry.stamp if entry else None, key) for key, entry in entries],
        puts=[Put("variables", "visits", b"%d" % number)],
        appends=[Append("history", f"m{number}-{n}", b"x" * 200) for n in range(2)],
        record=b"{}",
    )
    await storage.commit([part], commit_id=number + 1, lease=found.lease, release=True)


async def ask(storage, sql, *values):
    """Return what the writing connection answers: another library in this process would drop its locks."""
    return await storage._engine.write(Task(lambda connection: connection.execute(sql, values).fetchall()))


def rows(path, sql):
    """Return what a closed file holds."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def spoil(path, *statements):
    """Change a closed file behind the backend's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for sql in statements:
            connection.execute(sql)


def start(script, path, *arguments):
    """Start a script in a process of its own that is talked to by lines."""
    argv = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(path), *arguments]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(script, path):
    """Run a script in a process of its own."""
    argv = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
