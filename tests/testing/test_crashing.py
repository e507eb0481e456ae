"""The check of the crash tests finds what a crash must not leave."""

import pytest

from agentstate.scope import StateScope
from agentstate.storage.memory import MemoryStorage
from agentstate.storage.protocol import Append, CutTail, Increment, Part, Put
from agentstate.testing.crashing import check_sequence
from agentstate.testing.turns import new_id
from agentstate.testing.worker import TOTAL, numbered_part

SCOPES = [StateScope.conversation("a"), StateScope.conversation("b")]
TORN = {
    "half a pair": Part(scope=SCOPES[0], cuts=[CutTail("history", 6)]),
    "an item too many": Part(scope=SCOPES[0], appends=[Append("history", "x", b"3b")]),
    "counter without items": Part(scope=SCOPES[0], increments=[Increment("variables", "n", 1)]),
    "items of another commit": Part(
        scope=SCOPES[0], cuts=[CutTail("history", 6)], appends=[Append("history", "x", b"2b")]
    ),
    "an entry of another commit": Part(scope=SCOPES[0], puts=[Put("variables", "last", b"2")]),
    "one scope without the other": Part(scope=TOTAL, increments=[Increment("variables", "n", 1)]),
}


@pytest.fixture
async def storage():
    """Three numbered commits in each of two states."""
    storage = MemoryStorage()
    for scope in SCOPES:
        for number in (1, 2, 3):
            total = Part(scope=TOTAL, increments=[Increment("variables", "n", 1)])
            await storage.commit([numbered_part(scope, number), total], commit_id=new_id())
    return storage


async def test_sane(storage):
    """Whole commits are fine, also such as were never acknowledged."""
    await check_sequence(storage, SCOPES, [3, 3], since=[0, 0])
    await check_sequence(storage, SCOPES, [2, 3], since=[1, 3])


async def test_lost(storage):
    """An acknowledged commit that isn't there is found."""
    with pytest.raises(AssertionError, match="commit 4 was acknowledged, but only 3 are there"):
        await check_sequence(storage, SCOPES, [3, 4], since=[0, 0])


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN.keys())
async def test_torn(storage, torn):
    """Half of a commit is found, whichever half."""
    await storage.commit([torn], commit_id=new_id())
    with pytest.raises(AssertionError):
        await check_sequence(storage, SCOPES, [3, 3], since=[0, 0])
