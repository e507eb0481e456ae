"""The usual commit has a path of its own through the script: it does what the other path does, to the byte."""

import random

import pytest

from agentstate.errors import ConflictError
from agentstate.scope import StateScope
from agentstate.storage.protocol import ANY, Append, Check, Increment, LeaseRequest, Part, Put, Wants
from agentstate.storage.valkey import ValkeyStorage, encode
from agentstate.testing import FakeClock

SCOPES = (StateScope.conversation("c-1"), StateScope.step("wf", "s", tenant="a/b"), StateScope.GLOBAL)
ALL = Wants(tails=(("history", 100), ("events", 100)))


def content(server, prefix):
    """Return what lies in the keys under a prefix, whatever the order of its fields."""
    found = {}
    for key in server.ask("KEYS", f"{prefix}*"):
        kind = server.ask("TYPE", key).decode()
        if kind == "hash":
            flat = server.ask("HGETALL", key)
            value = dict(zip(flat[::2], flat[1::2], strict=True))
        elif kind == "list":
            value = server.ask("LRANGE", key, 0, -1)
        elif kind == "zset":
            value = server.ask("ZRANGE", key, 0, -1, "WITHSCORES")
        else:
            value = [fields for _, fields in server.ask("XRANGE", key, "-", "+")]
        found[key.decode().removeprefix(prefix)] = value
    return found


def first(scope):
    """Return what makes a state with something of everything."""
    return Part(
        scope=scope,
        puts=[Put("variables", "a", b"1"), Put("variables", "brief", b"1", ttl=5.0)],
        increments=[Increment("variables", "n", 1)],
        appends=[Append("history", "m", b"1", unique=True), Append("events", "e", b"1")],
        owner="ada" if scope.ids else None,
        record=b"made",
    )


def change(dice, scope, found):
    """Return a change such as turns make, upon what was read, right or not."""
    part = Part(scope=scope, birth=dice.choice([found.birth, ANY]), record=dice.choice([b"r", b"", None]))
    part.puts = [Put("variables", key, b"x" * dice.randrange(9)) for key in dice.sample("abcdefgh", dice.randrange(4))]
    logs = dice.choice([(), ("history",), ("history", "events", "history")])
    part.appends = [Append(log, f"i-{dice.randrange(10**6)}", b"y" * dice.randrange(300)) for log in logs]
    old = dice.random() < 0.1
    read = [
        Check("entry", section, None if old else entry.stamp, key) for (section, key), entry in found.entries.items()
    ]
    read += [
        Check("entry", "variables", None, key) for key in ("brief", "z") if ("variables", key) not in found.entries
    ]
    read += [Check("section", name, stamp) for name, stamp in found.sections.items()]
    read += [Check("log", name, view.stamp) for name, view in found.logs.items()]
    part.checks = dice.sample(read, dice.randrange(len(read)))
    if dice.random() < 0.5:
        part.ttl, part.sliding = dice.choice([60.0, 90.5]), dice.random() < 0.9
    part.base = dice.choice([found.stamp, ANY, ANY])
    return part


@pytest.mark.parametrize("seed", range(8))
async def test_the_same(valkey_server, valkey_prefix, monkeypatch, seed):
    """Any commit that turns make leaves the same bytes, and gets the same reply, on either path."""
    dice, clock = random.Random(seed), FakeClock()
    scope, most = SCOPES[seed % len(SCOPES)], encode.MANY
    paths = {f"{valkey_prefix}usual:": most, f"{valkey_prefix}whole:": 0}
    storages = {prefix: ValkeyStorage(valkey_server.url, key_prefix=prefix, clock=clock) for prefix in paths}
    for one in storages.values():
        await one.commit([first(scope)], commit_id=1)
    refused = 0
    for number in range(2, 60):
        clock.advance(dice.choice([0.0, 0.25, 3.0]))
        request = dice.choice([None, LeaseRequest(number, 30.0, "h")])
        found = [await one.read(scope, ALL, lease=request) for one in storages.values()]
        assert found[0] == found[1]
        part, release, said = change(dice, scope, found[0]), dice.random() < 0.9, []
        for prefix, one in storages.items():
            monkeypatch.setattr(encode, "MANY", paths[prefix])
            lease = found[0].lease
            try:
                said += await one.commit([part], commit_id=number, lease=lease, release=release)
            except ConflictError as error:
                said.append(str(error))
        assert said[0] == said[1]
        refused += isinstance(said[0], str)
        if request is not None and (isinstance(said[0], str) or not release):
            for one in storages.values():
                await one.leave(scope, request.nonce)
    usual, whole = (content(valkey_server, prefix) for prefix in paths)
    assert usual == whole
    assert 0 < refused < 30
    for one in storages.values():
        await one.close()
