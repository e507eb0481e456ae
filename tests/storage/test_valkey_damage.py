"""Keys of ours that hold another type: commits are refused whole, and nothing is written over."""

import pytest

from agentstate.errors import DamagedStateError, StateError
from agentstate.scope import StateScope
from agentstate.storage.protocol import (
    Append,
    CutTail,
    EditItem,
    Increment,
    LeaseRequest,
    OnceRecord,
    Part,
    Put,
    TrimHead,
    Wants,
)
from agentstate.storage.valkey import ValkeyStorage
from agentstate.testing import FakeClock
from agentstate.testing.turns import EVERYTHING, new_id

TAIL = Wants(tails=(("history", 10),))
C = StateScope.conversation("c-1")
OWN = ("state", "entries", "keys", "log:history", "unique:history", "journal", "known", "once", "once-times")
SHARED = ("by-id:all:", "by-time:kind::conversation", "by-id:owner::ada", "by-time:owner::ada", "expiry", "feed")
COMMITS = {
    "put": {"puts": [Put("variables", "k", b"new")]},
    "put another": {"puts": [Put("variables", "another", b"new")]},
    "put for a while": {"puts": [Put("variables", "k", b"new", ttl=60.0)]},
    "append": {"appends": [Append("history", "a", b"new")], "record": b"r"},
    "append once": {"appends": [Append("history", "a", b"new", unique=True)]},
    "append for a while": {"appends": [Append("history", "a", b"new", ttl=60.0)]},
    "append elsewhere": {"appends": [Append("events", "a", b"new")]},
    "increment": {"increments": [Increment("variables", "n", 1)]},
    "delete": {"deletes": [("variables", "k")]},
    "cut": {"cuts": [CutTail("history", 2)], "record": b"r"},
    "trim": {"trims": [TrimHead("history", 2)]},
    "edit": {"edits": [EditItem("history", 1, 1, b"new")]},
    "describe": {"owner": "bob", "labels": {"status": "open"}},
    "live": {"puts": [Put("variables", "k", b"new")], "ttl": 60.0},
}


@pytest.fixture
async def storage(valkey_server, valkey_prefix):
    """Return a storage with a state that has something of everything, on a clock that stands still."""
    made = ValkeyStorage(valkey_server.url, key_prefix=valkey_prefix, clock=FakeClock())
    part = Part(
        scope=C,
        puts=[Put("variables", "k", b"1")],
        increments=[Increment("variables", "n", 1)],
        appends=[Append("history", f"m-{number}", b"1", unique=True) for number in range(3)],
        owner="ada",
        record=b"r",
        ttl=1000.0,
    )
    await made.commit([part], commit_id=1, once=OnceRecord("key", "f", 1, b"r"))
    yield made
    await made.close()


def stored(server, prefix):
    """Return what lies in each key."""
    return {key: server.ask("DUMP", key) for key in server.ask("KEYS", f"{prefix}*")}


def key_of(prefix, what):
    """Return the name of a key of the state, or of its partition."""
    base = f"{prefix}{{{C.partition(256)}}}{what}"
    return (base if what in SHARED else f"{base}:{C.text}").encode()


@pytest.mark.parametrize("what", [*OWN, *SHARED])
@pytest.mark.parametrize("how", COMMITS)
async def test_all_or_nothing(storage, valkey_server, valkey_prefix, what, how):
    """Whichever key holds something else, a commit writes all it has to write, or nothing."""
    key = key_of(valkey_prefix, what)
    assert valkey_server.ask("EXISTS", key) == 1
    valkey_server.ask("SET", key, "mine")
    before = stored(valkey_server, valkey_prefix)
    try:
        (done,) = await storage.commit([Part(scope=C, **COMMITS[how])], commit_id=new_id())
    except DamagedStateError:
        after = stored(valkey_server, valkey_prefix)
        changed = {at for at in {*before, *after} if before.get(at) != after.get(at)}
        # A time may stay alone in its index when the feed can't be written: it only says where to look.
        assert changed <= {key_of(valkey_prefix, one) for one in SHARED if "by-time" in one}
    else:
        assert done.stamp.version == 2
        assert valkey_server.ask("GET", key) == b"mine"


@pytest.mark.parametrize("what", OWN)
async def test_reading(storage, valkey_server, valkey_prefix, what):
    """Reading says that the state is damaged, or reads it, and takes the turn only with what it has read."""
    valkey_server.ask("SET", key_of(valkey_prefix, what), "mine")
    before = stored(valkey_server, valkey_prefix)
    try:
        found = await storage.read(C, TAIL, lease=LeaseRequest(1, 30.0, "h"))
    except DamagedStateError:
        assert stored(valkey_server, valkey_prefix) == before
    else:
        assert found.lease is not None
        assert found.entries["variables", "k"].value == b"1"
        assert len(found.logs["history"].items) == 3
    assert valkey_server.ask("GET", key_of(valkey_prefix, what)) == b"mine"


@pytest.mark.parametrize("what", [one for one in OWN if one != "state"])
async def test_dropping(storage, valkey_server, valkey_prefix, what):
    """A state with a key that holds something else can be dropped, as the error advises."""
    valkey_server.ask("SET", key_of(valkey_prefix, what), "mine")
    assert await storage.drop(C)
    (made,) = await storage.commit([Part(scope=C, **COMMITS["put"])], commit_id=new_id())
    assert made.stamp.version == 2
    try:
        found = await storage.read(C, EVERYTHING)
    except StateError as error:
        raise AssertionError(what) from error
    assert set(found.entries) == {("variables", "k")}
