"""The pytest plugin: states, clocks and faults as fixtures. Loads nothing but pytest until used.

::

    async def test_it_remembers(agentstate_context):
        await agentstate_context.set_variable("c-1", "name", "Ada")
        assert await agentstate_context.get_variable("c-1", "name") == "Ada"

``--agentstate-backend`` runs the same tests on another backend, a mark chooses for one::

    @pytest.mark.agentstate("sqlite")

When a test that uses these fixtures fails, its report says which entries and messages it
changed. After a conformance run a table says what was skipped, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from agentstate.context import ConversationContext
    from agentstate.testing.clock import FakeClock
    from agentstate.testing.faults import FaultyStorage

STORAGE = "agentstate_storage"
REASONS = ("not declared:", "not offered:", "declared:")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--agentstate-backend``."""
    parser.getgroup("agentstate").addoption(
        "--agentstate-backend",
        default="memory",
        metavar="NAME|URL",
        help="where agentstate_storage keeps states: memory, file, sqlite, valkey, or a URL (default: memory)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", "agentstate(backend): run this test on that backend (a name or a URL)")


@pytest.fixture
def agentstate_clock() -> FakeClock:
    """Return a clock that moves only when the test calls ``advance(seconds)``."""
    from agentstate.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def agentstate_storage(request: pytest.FixtureRequest, agentstate_clock: FakeClock) -> Iterator[FaultyStorage]:
    """Return a fresh storage on the chosen backend and the fake clock; closed after the test."""
    from agentstate.testing.fresh import close, fresh_storage

    mark = request.node.get_closest_marker("agentstate")
    backend = str(mark.args[0] if mark is not None else request.config.getoption("--agentstate-backend"))
    storage = fresh_storage(backend, agentstate_clock, request)
    yield storage
    close(storage)


@pytest.fixture
def agentstate_context(agentstate_storage: FaultyStorage, agentstate_clock: FakeClock) -> ConversationContext:
    """Return a `ConversationContext` over ``agentstate_storage``."""
    from agentstate.context import ConversationContext
    from agentstate.state.store import Store

    return ConversationContext(Store(agentstate_storage, clock=agentstate_clock))


@pytest.fixture
def fail_at(agentstate_storage: FaultyStorage) -> Callable[..., None]:
    """Return the function that lets a coming read or commit fail: ``fail_at(commit=2)``.

    See `agentstate.testing.FaultyStorage.fail_at`.
    """
    return agentstate_storage.fail_at


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Say in the report of a failed test what it changed."""
    storage: FaultyStorage | None = getattr(item, "funcargs", {}).get(STORAGE)
    if storage is None:
        return (yield)
    from agentstate.testing.fresh import look

    before = look(storage)
    try:
        return (yield)
    except BaseException:
        from agentstate.testing.statediff import diff

        item.add_report_section("call", "agentstate", diff(before, look(storage)) or "no state was changed")
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which cases of the conformance suite were skipped, and why."""
    counts: dict[tuple[str, str], int] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        where = cast("object", report.longrepr)
        reason = cast("tuple[str, int, str]", where)[2].removeprefix("Skipped: ") if isinstance(where, tuple) else ""
        if reason.startswith(REASONS):
            suite = report.nodeid.rpartition("::")[0].rpartition("::")[2]
            counts[suite, reason] = counts.get((suite, reason), 0) + 1
    if not counts:
        return
    terminalreporter.section("agentstate conformance: skipped cases")
    for (suite, reason), count in sorted(counts.items()):
        terminalreporter.line(f"{count:5}  {suite}: {reason}")
