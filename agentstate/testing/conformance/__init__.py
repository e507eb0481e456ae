"""The conformance suite for storages: one class per capability, and `StorageConformance` for all.

A backend inherits what it means to pass and supplies fixtures (see `StorageCase`)::

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def make_storage(self, tmp_path):
            return lambda clock: MyStorage(tmp_path, clock=clock)

        @pytest.fixture
        def process_spec(self, tmp_path):
            return ProcessSpec("mine", {"directory": str(tmp_path)})
"""

from agentstate.testing.conformance.atomicity import AtomicityTests, ClearTests, OrderTests
from agentstate.testing.conformance.cancellation import CancellationTests
from agentstate.testing.conformance.case import Damage, MakeNewer, MakeStorage, StorageCase
from agentstate.testing.conformance.checks import CheckTests
from agentstate.testing.conformance.contention import ContentionTests, LoopTests
from agentstate.testing.conformance.copies import CopyTests
from agentstate.testing.conformance.counters import CounterTests
from agentstate.testing.conformance.damage import DamageTests
from agentstate.testing.conformance.expiry import NativeExpiryTests, OwnExpiryTests, ScopeExpiryTests
from agentstate.testing.conformance.hostile import HostileIdTests
from agentstate.testing.conformance.journal import FailureTests, FeedTests, JournalTests
from agentstate.testing.conformance.killing import CrashTests, ProcessTests
from agentstate.testing.conformance.leases import LateHolderTests, LeaseTests, QueueTests, SharedTurnTests
from agentstate.testing.conformance.lifecycle import LifecycleTests, ReopenTests
from agentstate.testing.conformance.listing import ListingTests
from agentstate.testing.conformance.logs import LogEditTests, LogTests, UniqueItemTests
from agentstate.testing.conformance.model import ModelTests
from agentstate.testing.conformance.once import OnceTests, OutcomeTests
from agentstate.testing.conformance.reading import ReadTests
from agentstate.testing.conformance.sweeping import DropTests, SweepTests
from agentstate.testing.conformance.values import StampTests, ValueTests
from agentstate.testing.processes import ProcessSpec

__all__ = [
    "AtomicityTests",
    "CancellationTests",
    "CheckTests",
    "ClearTests",
    "ContentionTests",
    "CopyTests",
    "CounterTests",
    "CrashTests",
    "Damage",
    "DamageTests",
    "DropTests",
    "FailureTests",
    "FeedTests",
    "HostileIdTests",
    "JournalTests",
    "LateHolderTests",
    "LeaseTests",
    "LifecycleTests",
    "ListingTests",
    "LogEditTests",
    "LogTests",
    "LoopTests",
    "MakeNewer",
    "MakeStorage",
    "ModelTests",
    "NativeExpiryTests",
    "OnceTests",
    "OrderTests",
    "OutcomeTests",
    "OwnExpiryTests",
    "ProcessSpec",
    "ProcessTests",
    "QueueTests",
    "ReadTests",
    "ReopenTests",
    "ScopeExpiryTests",
    "SharedTurnTests",
    "StampTests",
    "StorageCase",
    "StorageConformance",
    "SweepTests",
    "UniqueItemTests",
    "ValueTests",
]


class StorageConformance(
    LifecycleTests,
    ValueTests,
    StampTests,
    ReadTests,
    CheckTests,
    OrderTests,
    ClearTests,
    AtomicityTests,
    CounterTests,
    CopyTests,
    LogTests,
    UniqueItemTests,
    LogEditTests,
    OwnExpiryTests,
    ScopeExpiryTests,
    NativeExpiryTests,
    DropTests,
    SweepTests,
    LeaseTests,
    LateHolderTests,
    QueueTests,
    SharedTurnTests,
    OnceTests,
    OutcomeTests,
    ListingTests,
    JournalTests,
    FeedTests,
    FailureTests,
    HostileIdTests,
    CancellationTests,
    ContentionTests,
    LoopTests,
    ModelTests,
    ReopenTests,
    ProcessTests,
    CrashTests,
    DamageTests,
):
    """The whole suite."""
