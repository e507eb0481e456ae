"""Storages with one fault each, and the class of the conformance suite that must find it.

Run by `test_conformance`, in a process of its own: each class here has to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from agentstate.storage.memory import CAPABILITIES, MemoryStorage
from agentstate.storage.protocol import ANY, KEEP, Lease, Part
from agentstate.testing import conformance

SECONDS = 20


@pytest.fixture(autouse=True)
def bounded():
    """A fault may let a case ask for ever, without ever waiting: that is found, too."""

    def give_up(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


class NoChecks(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.checks = ()
        return await super().commit(parts, **rest)


class NoBirth(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.birth = ANY
        return await super().commit(parts, **rest)


class NoBase(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.base = ANY
        return await super().commit(parts, **rest)


class ScopesOneByOne(MemoryStorage):
    async def commit(self, parts, **rest):
        return tuple([(await super(ScopesOneByOne, self).commit([part], **rest))[0] for part in parts])


class LateHoldersWelcome(MemoryStorage):
    async def commit(self, parts, *, lease=None, **rest):
        return await super().commit(parts, **rest)


class TurnsNeverGivenBack(MemoryStorage):
    async def commit(self, parts, *, release=False, **rest):
        return await super().commit(parts, **rest)


class KeysForgotten(MemoryStorage):
    async def commit(self, parts, *, once=None, **rest):
        return await super().commit(parts, **rest)


class NoJournal(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.record = None
        return await super().commit(parts, **rest)


class LifetimesIgnored(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.ttl = KEEP
        return await super().commit(parts, **rest)


class AlwaysSliding(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.sliding = True
        return await super().commit(parts, **rest)


class SwallowsCancellation(MemoryStorage):
    async def commit(self, parts, **rest):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await super().commit(parts, **rest)


class HalfOfACancelledCommit(MemoryStorage):
    async def commit(self, parts, *, commit_id, **rest):
        if len(parts) == 1:
            first = Part(scope=parts[0].scope, increments=parts[0].increments)
            await super().commit([first], commit_id=commit_id, **rest)
            await asyncio.sleep(0)
            parts[0].increments = ()
        return await super().commit(parts, commit_id=commit_id, **rest)


class LostUpdates(MemoryStorage):
    async def commit(self, parts, **rest):
        held = await self.read(parts[0].scope, conformance.case.EVERYTHING)
        await asyncio.sleep(0)
        if parts[0].increments and held.entries:
            number = held.entries["variables", "n"].value + 1
            parts[0].deletes = [("variables", "n")]
            parts[0].increments = [parts[0].increments[0]._replace(by=number)]
        return await super().commit(parts, **rest)


class CaseFolded(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.puts = [one._replace(key=one.key.lower()) for one in part.puts]
        return await super().commit(parts, **rest)


class ValuesAsText(MemoryStorage):
    async def commit(self, parts, **rest):
        for part in parts:
            part.puts = [one._replace(value=one.value.decode("utf-8", "replace").encode()) for one in part.puts]
        return await super().commit(parts, **rest)


class NoHolder(MemoryStorage):
    async def read(self, scope, wants, **rest):
        found = await super().read(scope, wants, **rest)
        found.holder = None
        return found


class EverythingComplete(MemoryStorage):
    async def read(self, scope, wants, **rest):
        found = await super().read(scope, wants, **rest)
        found.complete = True
        return found


class TurnsForAll(MemoryStorage):
    async def read(self, scope, wants, *, lease=None, **rest):
        found = await super().read(scope, wants, **rest)
        found.lease = lease and Lease(scope, lease.nonce, 1, found.now + lease.seconds)
        return found


class NothingDropped(MemoryStorage):
    async def drop(self, scope, *, stamp=None):
        return True


class DropsUnderATurn(MemoryStorage):
    async def drop(self, scope, *, stamp=None):
        self._leases._turns.clear()
        return await super().drop(scope, stamp=stamp)


class SweepsWithoutBound(MemoryStorage):
    async def sweep(self, limit=100):
        return await super().sweep(10_000)


class PrefixesFolded(MemoryStorage):
    async def scopes(self, query):
        page = await super().scopes(query._replace(prefix=""))
        found = [info for info in page.items if info.scope.id.lower().startswith(query.prefix.lower())]
        return page._replace(items=tuple(found))


class FirstPageOnly(MemoryStorage):
    async def scopes(self, query):
        return (await super().scopes(query))._replace(cursor=None)


class TenantsMixed(MemoryStorage):
    async def scopes(self, query):
        pages = [await super(TenantsMixed, self).scopes(query._replace(tenant=one)) for one in ("", "acme", "a")]
        return pages[0]._replace(items=tuple(info for page in pages for info in page.items))


class TailsReversed(MemoryStorage):
    async def read_log(self, scope, log, **where):
        page = await super().read_log(scope, log, **where)
        return page._replace(items=page.items[::-1])


class ForgetsOutcomes(MemoryStorage):
    async def outcome(self, scope, commit_id):
        return None


class FeedWithoutDrops(MemoryStorage):
    async def feed(self, partition, **where):
        return tuple(item for item in await super().feed(partition, **where) if item.stamp is not None)


class NeverCloses(MemoryStorage):
    async def close(self):
        pass


class Boastful(MemoryStorage):
    capabilities = CAPABILITIES._replace(shared=True)


MUTANTS = {
    NoChecks: conformance.CheckTests,
    NoBirth: conformance.CheckTests,
    NoBase: conformance.ContentionTests,
    ScopesOneByOne: conformance.AtomicityTests,
    LateHoldersWelcome: conformance.LateHolderTests,
    TurnsNeverGivenBack: conformance.LeaseTests,
    KeysForgotten: conformance.OnceTests,
    NoJournal: conformance.JournalTests,
    LifetimesIgnored: conformance.ScopeExpiryTests,
    AlwaysSliding: conformance.ScopeExpiryTests,
    SwallowsCancellation: conformance.CancellationTests,
    HalfOfACancelledCommit: conformance.CancellationTests,
    LostUpdates: conformance.ContentionTests,
    CaseFolded: conformance.HostileIdTests,
    ValuesAsText: conformance.ValueTests,
    NoHolder: conformance.LeaseTests,
    EverythingComplete: conformance.ReadTests,
    TurnsForAll: conformance.QueueTests,
    NothingDropped: conformance.DropTests,
    DropsUnderATurn: conformance.DropTests,
    SweepsWithoutBound: conformance.SweepTests,
    PrefixesFolded: conformance.ListingTests,
    FirstPageOnly: conformance.ListingTests,
    TenantsMixed: conformance.ListingTests,
    TailsReversed: conformance.LogTests,
    ForgetsOutcomes: conformance.OutcomeTests,
    FeedWithoutDrops: conformance.DropTests,
    NeverCloses: conformance.LifecycleTests,
    Boastful: conformance.LifecycleTests,
}


def _suite(mutant, cases):
    def make_storage(self):
        return lambda clock: mutant(clock=clock)

    return type(f"Test{mutant.__name__}", (cases,), {"make_storage": pytest.fixture(make_storage)})


globals().update({f"Test{mutant.__name__}": _suite(mutant, cases) for mutant, cases in MUTANTS.items()})
