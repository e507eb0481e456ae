"""Random histories, played to a storage and to the memory backend at once: what is seen must be the same.

The other classes check rules one at a time; this one checks that they hold together. A
failing seed prints the step that differed, and plays the same again.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

import pytest

from agentstate.errors import ConflictError, UnsupportedValueError
from agentstate.scope import StateScope
from agentstate.storage.memory import MemoryStorage
from agentstate.storage.protocol import (
    ANY,
    KEEP,
    Append,
    Check,
    CutTail,
    EditItem,
    Increment,
    OnceRecord,
    Part,
    Put,
    ScopeQuery,
    Stamp,
    TrimHead,
)
from agentstate.testing.conformance.case import StorageCase, live_items
from agentstate.testing.turns import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock

SCOPES = [StateScope.conversation("a"), StateScope.conversation("a:b"), StateScope.user("a", tenant="t")]
SECTIONS = ("variables", "metadata")
KEYS = ("k", "K", "n", "é")
LOGS = ("history", "events")
STEPS = 60


class History:
    """Makes up what happens next, from a seed and from what is there."""

    def __init__(self, seed: int, together: bool) -> None:
        """Begin; ``together``: commits may hold several scopes."""
        self.chance = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self.together = together
        self.commit_id = 1000

    def maybe(self, share: float) -> bool:
        """Return true in this share of the cases."""
        return self.chance.random() < share

    def some(self, share: float, most: int = 3) -> range:
        """Return a range to make up to ``most`` of something, in this share of the cases."""
        return range(self.chance.randint(1, most) if self.maybe(share) else 0)

    def entry(self) -> tuple[str, str]:
        """Return the address of some entry."""
        return self.chance.choice(SECTIONS), self.chance.choice(KEYS)

    def value(self) -> bytes:
        """Return some value."""
        return self.chance.randbytes(self.chance.choice((0, 1, 8, 300)))

    def lifetime(self, share: float) -> float | None:
        """Return seconds in this share of the cases, else None."""
        return float(self.chance.choice((5, 20, 60))) if self.maybe(share) else None

    def part(self, scope: StateScope, seen: dict[str, Any]) -> Part:
        """Return some change of a state of which this was seen."""
        chance = self.chance
        return Part(
            scope=scope,
            birth=chance.choice((seen["birth"], 0, 7)) if self.maybe(0.2) else ANY,
            base=chance.choice((seen["stamp"], None, Stamp(1, 7))) if self.maybe(0.1) else ANY,
            checks=[self.check(seen) for _ in self.some(0.3, 2)],
            clear=self.maybe(0.04),
            cuts=[CutTail(chance.choice(LOGS), chance.randrange(8)) for _ in self.some(0.1, 2)],
            trims=[TrimHead(chance.choice(LOGS), chance.randrange(8)) for _ in self.some(0.1, 2)],
            edits=[self.edit(seen) for _ in self.some(0.15, 1)],
            deletes=[self.entry() for _ in self.some(0.2)],
            puts=[Put(*self.entry(), self.value(), self.lifetime(0.2)) for _ in self.some(0.5)],
            increments=[Increment(chance.choice(SECTIONS), "n", chance.randint(-9, 9)) for _ in self.some(0.2)],
            appends=[self.append() for _ in self.some(0.5, 4)],
            owner=chance.choice(("ada", "bob", None)) if self.maybe(0.2) else KEEP,
            parent=chance.choice(("root", None)) if self.maybe(0.1) else KEEP,
            labels={"status": chance.choice(("open", "done"))} if self.maybe(0.2) else KEEP,
            ttl=self.lifetime(0.7) if self.maybe(0.2) else KEEP,
            sliding=self.maybe(0.5),
            record=self.value() if self.maybe(0.7) else None,
        )

    def check(self, seen: dict[str, Any]) -> Check:
        """Return a check that mostly holds."""
        section, key = self.entry()
        kind: Literal["entry", "section", "log"] = self.chance.choice(("entry", "section", "log"))
        name = self.chance.choice(LOGS) if kind == "log" else section
        found: Stamp | None = seen["stamps"].get((kind, name, key if kind == "entry" else ""))
        stamp = found if self.maybe(0.9) else Stamp(1, 7)
        return Check(kind, name, stamp, key if kind == "entry" else "")

    def edit(self, seen: dict[str, Any]) -> EditItem:
        """Return an edit, mostly of an item that is there."""
        log = self.chance.choice(LOGS)
        items: Sequence[tuple[int, int]] = seen["items"].get(log) or [(1, 1)]
        position, seq = self.chance.choice(items)
        return EditItem(log, position, seq if self.maybe(0.9) else seq + 1, self.value())

    def append(self) -> Append:
        """Return an append; ids repeat, and are unique only in the log ``events``."""
        log = self.chance.choice(LOGS)
        return Append(log, f"m-{self.chance.randrange(10)}", self.value(), None, unique=log == "events")


class ModelTests(StorageCase):
    """The storage and the memory backend, side by side."""

    @pytest.mark.parametrize("seed", range(8))
    async def test_same_as_the_model(self, storage: Storage, clock: FakeClock, seed: int) -> None:
        """Sixty random commits, drops, sweeps and waits leave both the same after every step."""
        model = MemoryStorage(clock=clock)
        history = History(seed, storage.capabilities.atomic_scopes)
        for step in range(STEPS):
            told = await _step(history, storage, model, clock)
            seen = [await _seen(one, scope, clock()) for scope in SCOPES for one in (storage, model)]
            for mine, wanted in zip(seen[::2], seen[1::2], strict=True):
                assert mine == wanted, f"after step {step} of seed {seed}: {told}"
        for query in (
            ScopeQuery(),
            ScopeQuery(owner="ada"),
            ScopeQuery(label=("status", "open")),
            ScopeQuery(tenant="t"),
        ):
            assert await _listed(storage, query) == await _listed(model, query)


async def _step(history: History, storage: Storage, model: Storage, clock: FakeClock) -> str:
    """Do one thing to both and compare what they return; return what it was."""
    scope = history.chance.choice(SCOPES)
    kind = history.chance.choices(("commit", "wait", "drop", "sweep", "fail"), (20, 3, 1, 2, 1))[0]
    if kind == "wait":
        clock.advance(history.chance.choice((1, 7, 30)))
        return kind
    if kind == "sweep":
        for one in (storage, model):
            while not (await one.sweep(50)).done:
                pass
        return kind
    if kind == "fail":
        for one in (storage, model):
            await one.leave(scope, 99, failure=b"%d" % history.commit_id)
        return f"{kind} {scope}"
    if kind == "drop":
        stamp = (await model.read(scope, EVERYTHING)).stamp if history.maybe(0.7) else Stamp(1, 7)
        assert await storage.drop(scope, stamp=stamp) == await model.drop(scope, stamp=stamp)
        return f"{kind} {scope}"
    return await _commit(history, storage, model, scope, clock())


async def _commit(history: History, storage: Storage, model: Storage, scope: StateScope, now: float) -> str:
    scopes = SCOPES if history.together and history.maybe(0.2) else [scope]
    parts = [history.part(one, await _seen(model, one, now)) for one in scopes]
    history.commit_id += 1
    record = None
    if history.maybe(0.2):
        record = OnceRecord(f"key-{history.chance.randrange(4)}", "f", history.commit_id, b"r")
    results: list[object] = []
    for one in (storage, model):
        try:
            done = await one.commit(parts, commit_id=history.commit_id, once=record)
        except (ConflictError, UnsupportedValueError):
            # Where two conditions fail, which one is told is the backend's choice.
            results.append("refused")
        else:
            results.append(
                [
                    (part.stamp, part.birth, part.counters, {log: view.head for log, view in part.logs.items()})
                    for part in done
                ]
            )
    assert results[0] == results[1], f"commit of {parts} once {record}"
    outcomes = [await one.outcome(scope, history.commit_id) for one in (storage, model)]
    assert outcomes[0] == outcomes[1], f"outcome of {parts}"
    return f"commit {parts} once {record}"


async def _seen(storage: Storage, scope: StateScope, now: float) -> dict[str, Any]:
    found = await storage.read(scope, EVERYTHING)
    items = {log: live_items((await storage.read_log(scope, log)).items, now) for log in LOGS}
    stamps: dict[tuple[str, str, str], Stamp] = {
        **{("entry", *at): entry.stamp for at, entry in found.entries.items()},
        **{("section", name, ""): stamp for name, stamp in found.sections.items()},
        **{("log", name, ""): view.stamp for name, view in found.logs.items()},
    }
    ids = [await storage.find_item(scope, "events", f"m-{number}") for number in range(10)]
    onces = [(await storage.read(scope, EVERYTHING, once=f"key-{number}")).once for number in range(4)]
    return {
        "stamp": found.stamp,
        "birth": found.birth,
        "meta": (found.owner, found.parent, dict(found.labels), found.created_at, found.expires_at),
        "entries": found.entries,
        "stamps": stamps,
        "heads": {name: (view.head, view.next_seq) for name, view in found.logs.items()},
        "items": {log: [(item.position, item.seq) for item in items[log]] for log in LOGS},
        "values": items,
        "found": [item and item.seq for item in ids],
        "once": onces,
        "journal": await storage.journal(scope),
        "failures": await storage.failures(scope),
    }


async def _listed(storage: Storage, query: ScopeQuery) -> list[tuple[object, ...]]:
    page = await storage.scopes(query)
    return [(info.scope, info.stamp, info.owner, dict(info.labels), dict(info.log_lengths)) for info in page.items]
