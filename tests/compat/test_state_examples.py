"""Every example that AgentUp's users know runs as it is printed, on memory, file and Valkey.

Changed are imports, the addresses of storages, and nothing else; undefined names are supplied.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
import uuid
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import agentstate
from agentstate import config
from agentstate.compat import agentup
from agentstate.config import configure
from agentstate.storage import registry

EXAMPLES = Path(__file__).with_name("state_examples.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]*)\n\n```\w+\n(.*?)```", EXAMPLES, re.DOTALL | re.MULTILINE))
BACKENDS = ("memory", "file", "valkey")
FULL = "storage='valkey', url='valkey://localhost:6379', key_prefix='agentup:state:', ttl=3600"
IMPORTS = {"src.agent.context": "agentstate.compat.agentup", "src.agent.handlers": "agentstate.compat.agentup"}

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


class Agent:
    """An agent of a test: its directory, its backend, and a task for each message."""

    def __init__(self, backend, directory, url):
        self.backend = backend
        self.directory = directory
        self.url = url
        self.context_id = f"conversation {uuid.uuid4()}"

    @property
    def arguments(self):
        """The arguments of the decorator for this backend."""
        return {
            "memory": "storage='memory'",
            "file": f"storage='file', storage_dir='{self.directory}/conversation_states'",
            "valkey": FULL.replace("valkey://localhost:6379", self.url),
        }[self.backend]

    @property
    def state(self):
        """The state section for this backend."""
        return {
            "memory": {"backend": "memory"},
            "file": {"backend": "file", "storage_dir": "./conversation_states"},
            "valkey": {"backend": "valkey", "url": self.url, "key_prefix": "agentup:state:", "ttl": 3600},
        }[self.backend]

    def configured(self, text=None):
        """Write and read the configuration of the agent."""
        path = self.directory / "agent_config.yaml"
        path.write_text(yaml.safe_dump({"state": self.state}) if text is None else text)
        configure(path)

    def task(self, text=""):
        """Return a task as AgentUp's handlers get it."""
        message = SimpleNamespace(parts=[SimpleNamespace(text=text)])
        return SimpleNamespace(
            id=str(uuid.uuid4()), context_id=self.context_id, metadata={}, message=message, input=text
        )

    def run(self, name, **supplied):
        """Execute a block, and return its names."""
        code = source(name).replace(FULL, self.arguments).replace("storage='valkey')", f"storage='{self.backend}')")
        names = {"__name__": "example", "Task": SimpleNamespace, "stateful": agentup.stateful, **supplied}
        exec(compile(code, f"<{name}>", "exec"), names)
        return SimpleNamespace(**names)

    async def run_in(self, name, context):
        """Execute a block of bare statements with a context."""
        names = {"context": context, "context_id": self.context_id, "datetime": datetime}
        code = compile(source(name), f"<{name}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, names)
        return SimpleNamespace(**names)

    def manager(self):
        """Return a context on the agent's backend."""
        return agentup.get_context_manager(
            **{"storage_type" if k == "backend" else k: v for k, v in self.state.items()}
        )


def source(name):
    """Return the text of a block, its imports changed."""
    text = BLOCKS[name]
    for old, new in IMPORTS.items():
        text = text.replace(f"from {old} import", f"from {new} import")
    return text


def settings_of(*names):
    """Return the effective settings of a handler."""
    return config.current().effective(names, backends=registry).settings


@pytest.fixture(params=BACKENDS)
async def agent(request, tmp_path, monkeypatch):
    """An agent in an empty directory, on each backend."""
    url = request.getfixturevalue("valkey_server").url if request.param == "valkey" else ""
    monkeypatch.chdir(tmp_path)
    made = Agent(request.param, tmp_path, url)
    made.configured()
    yield made
    await agentstate.aclose()
    monkeypatch.undo()
    configure()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with a configuration."""
    monkeypatch.chdir(tmp_path)

    def load(text):
        path = tmp_path / "agent_config.yaml"
        path.write_text(text)
        configure(path)
        return yaml.safe_load(text)

    yield load
    monkeypatch.undo()
    configure()


# -- handlers ----------------------------------------------------------------------------------


async def test_a_skill(agent):
    """The first example stores a preference and both messages, for the next call to find."""
    example = agent.run("a skill", response="done")
    assert await example.my_stateful_skill(agent.task("hello")) == "done"
    await example.my_stateful_skill(agent.task("again"))
    history = await agent.manager().get_history(agent.context_id)
    assert [(one["role"], one["content"]) for one in history] == [
        ("user", "hello"),
        ("assistant", "done"),
        ("user", "again"),
        ("assistant", "done"),
    ]
    assert await agent.manager().get_variable(agent.context_id, "user_preference") == "dark_mode"


async def test_decorator_parameters(agent, tmp_path):
    """Each of the printed decorators gives its handler the backend that it names."""
    text = source("decorator parameters").replace("valkey://localhost:6379", agent.url or "valkey://localhost:6379")
    lines = [line for line in text.splitlines() if line.startswith("@")]
    found = []
    for line in lines:
        names = {"stateful": agentup.stateful}
        exec(
            f"{line}\nasync def handler(task, context, context_id):\n    return await context.get_history(context_id)",
            names,
        )
        found.append(names["handler"].binding.effective().settings)
        if found[-1].backend == agent.backend:
            assert await names["handler"](agent.task()) == []
    assert [one.backend for one in found] == ["valkey", "file", "memory"]
    assert found[0].ttl == 3600
    assert found[0].options["key_prefix"] == "agentup:state:"
    assert Path(found[1].options["storage_dir"]) == tmp_path / "conversation_states"


async def test_memory_assistant(agent):
    """The assistant counts its interactions and remembers, through its name in the registry too."""
    example = agent.run("memory assistant")
    assert "interaction #1" in await example.memory_assistant(agent.task("I like tea"))
    agent.run("memory assistant")  # the agent is started again
    answer = await agentstate.dispatch("memory_assistant", agent.task("Do you remember?"))
    assert answer == "I remember our conversation! Recently you asked about: I like tea"
    assert await agent.manager().get_variable(agent.context_id, "interaction_count") == 2
    assert datetime.fromisoformat(await agent.manager().get_metadata(agent.context_id, "last_interaction"))


async def test_preferences(agent):
    """What the assistant learned in one call it uses in the next."""
    example = agent.run("preferences", extract_user_message=agentup.extract_user_message)
    assert await example.learning_assistant(agent.task("hello")) == "How can I assist you today?"
    for text in ("I write Python", "anything"):
        assert "interested in programming" in await example.learning_assistant(agent.task(text))


async def test_long_running_task(agent):
    """A task goes on over calls, and over starts of the agent."""
    supplied = {"extract_user_message": agentup.extract_user_message, "uuid": uuid, "datetime": datetime}
    ask = "Say 'start task' to begin or 'next step' to continue."
    example = agent.run("long-running task", **supplied)
    assert await example.task_manager(agent.task("hello")) == ask
    assert (await example.task_manager(agent.task("Start task please"))).startswith("Started new task: ")
    assert await example.task_manager(agent.task("next step")) == "Advanced to step 2"
    example = agent.run("long-running task", **supplied)
    assert await example.task_manager(agent.task("next step")) == "Advanced to step 3"
    assert await example.task_manager(agent.task("next step")) == "Task completed!"
    stored = await agent.manager().get_variable(agent.context_id, "current_task")
    assert stored["status"] == "completed"


async def test_default_and_stateful_handler(agent):
    """One doesn't remember, the other does."""
    first, second = source("default and stateful handler").split("\n\n")
    names = {"Task": SimpleNamespace, "stateful": agentup.stateful}
    exec(first, names)
    assert await names["ai_assistant"](agent.task()) == "I don't remember conversations"
    exec(second.replace(FULL, agent.arguments), names)
    await agent.manager().add_to_history(agent.context_id, "user", "hello")
    assert await names["ai_assistant"](agent.task()) == "I remember our 1 previous interactions"


def test_imports():
    """The correct import is the one that works."""
    right, wrong = source("imports").split("\n\n")
    names = {}
    exec(right, names)
    assert names["stateful"] is agentup.stateful
    for line in wrong.splitlines()[1:]:
        with pytest.raises(ImportError):
            exec(line, {"__name__": "nowhere", "__package__": "nowhere"})


# -- operations --------------------------------------------------------------------------------


async def test_variables(agent):
    """Variables come back, nested ones too."""
    found = await agent.run_in("variables", agent.manager())
    assert (found.name, found.prefs) == ("Alice", {"theme": "dark", "language": "en"})


async def test_history(agent):
    """Messages come back as dicts, oldest first, with role, content and an ISO timestamp in UTC."""
    found = await agent.run_in("history", agent.manager())
    assert [type(message) for message in found.full_history] == [dict, dict]
    assert found.history == found.full_history
    assert (found.role, found.content) == ("assistant", "Hi there!")
    assert datetime.fromisoformat(found.timestamp).utcoffset().total_seconds() == 0


async def test_metadata(agent):
    """Metadata comes back."""
    found = await agent.run_in("metadata", agent.manager())
    assert found.user_id == "user_123"
    assert datetime.fromisoformat(found.start_time)


async def test_contexts(agent):
    """A context is made for its user and cleared; the old ones are counted."""
    context = agent.manager()
    found = await agent.run_in("contexts", context)
    assert (found.state.context_id, found.state.user_id) == (agent.context_id, "user_123")
    assert found.cleaned_count == 0
    assert not await context.exists(agent.context_id)


async def test_the_operations_in_a_handler(agent):
    """The same statements work on the context that a handler is given."""
    results = []

    @agentup.stateful(agent.backend, **{key: value for key, value in agent.state.items() if key != "backend"})
    async def handler(task, context, context_id):
        results.extend([await agent.run_in(name, context) for name in ("variables", "history", "metadata")])

    await handler(agent.task())
    assert results[0].name == "Alice"
    assert results[1].content == "Hi there!"
    assert await agent.manager().get_metadata(agent.context_id, "user_id") == "user_123"


async def test_unit_test(agent):
    """The unit test passes."""
    await agent.run("unit test").test_conversation_memory()


# -- scripts -----------------------------------------------------------------------------------


def test_validation_script(agent, capsys):
    """The script accepts a configuration of each backend."""
    assert agent.run("validation script").validate_state_config() is True
    assert f"✅ Backend: {agent.backend}" in capsys.readouterr().out


async def test_state_test_script(agent, capsys):
    """The script stores, reads and clears."""
    await agent.run("state test script").test_state()
    assert capsys.readouterr().out == "State test: success\n"
    assert not await agent.manager().exists("config_test")


async def test_debug_logging(agent, caplog):
    """With the logger at DEBUG each read and commit is a line, without values."""
    exec(source("debug logging").replace("'src.agent.context'", "'agentstate'"), {})
    try:
        await agent.manager().set_variable(agent.context_id, "name", "a secret value")
        async with agent.manager().turn(agent.context_id) as conversation:
            await conversation.set("name", "a secret value")
    finally:
        logging.getLogger("agentstate").setLevel(logging.NOTSET)
    assert agent.context_id in caplog.text
    assert "a secret value" not in caplog.text


# -- configuration -----------------------------------------------------------------------------


def test_valkey_is_configured_by_the_state_section(here):
    """backend, url, key_prefix and ttl are those of state, not of services."""
    here(source("valkey"))
    found = settings_of("any")
    assert (found.backend, found.ttl) == ("valkey", 3600)
    assert (found.options["url"], found.options["key_prefix"]) == ("valkey://localhost:6379", "agentup:state:")


def test_production_addresses_come_from_the_environment(here, monkeypatch):
    """Defaults hold where a variable is unset; the first colon splits."""
    for name in ("VALKEY_STATE_URL", "STATE_KEY_PREFIX", "VALKEY_URL", "VALKEY_KEY_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    here(source("valkey in production"))
    found = settings_of()
    assert (found.options["url"], found.options["key_prefix"]) == ("valkey://valkey-state:6379", "agentup:state:")
    assert found.ttl == 7200
    monkeypatch.setenv("VALKEY_STATE_URL", "valkey://elsewhere:7000")
    monkeypatch.setenv("STATE_KEY_PREFIX", "mine:")
    found = settings_of()
    assert (found.options["url"], found.options["key_prefix"]) == ("valkey://elsewhere:7000", "mine:")
    here(source("production"))
    assert settings_of().options["url"] == "valkey://valkey-server:6379"


def test_several_valkeys(here):
    """The state's server is the one of the state section."""
    here(source("several valkeys"))
    assert settings_of().options["url"] == "valkey://persistent-valkey:6379"
    assert settings_of().ttl == 86400


@pytest.mark.parametrize(
    ("name", "backend", "directory"),
    [
        ("file", "file", "agent_state"),
        ("development", "file", "dev_conversations"),
        ("memory", "memory", None),
        ("testing", "memory", None),
    ],
)
async def test_local_backends(here, tmp_path, name, backend, directory):
    """File and memory are configured in two lines; a handler keeps its state there."""
    here(source(name))
    assert settings_of().backend == backend

    @agentup.stateful()
    async def handler(task, context, context_id):
        await context.add_to_history(context_id, "user", "hi")
        return len(await context.get_history(context_id))

    task = {"context_id": f"{uuid.uuid4()}"}
    assert [await handler(task), await handler(task)] == [1, 2]
    assert directory is None or (tmp_path / directory).is_dir()
    await agentstate.aclose()


async def test_on_a_real_server(here, valkey_server, monkeypatch):
    """The Valkey configurations, pointed at a server, keep a handler's state on it."""
    for name in ("valkey", "several valkeys", "valkey in production", "production"):
        monkeypatch.setenv("VALKEY_STATE_URL", valkey_server.url)
        monkeypatch.setenv("VALKEY_URL", valkey_server.url)
        here(re.sub(r"valkey://(localhost|persistent-valkey):6379", valkey_server.url, source(name)))

        @agentup.stateful()
        async def handler(task, context, context_id):
            await context.set_variable(context_id, "n", await context.get_variable(context_id, "n", 0) + 1)
            return await context.get_variable(context_id, "n")

        task = {"context_id": f"{uuid.uuid4()}"}
        assert [await handler(task), await handler(task)] == [1, 2]
        await agentstate.aclose()
    assert valkey_server.ask("KEYS", "agentup:state:*")


def test_insufficient_and_correct(here):
    """The url and prefix that are said to be required have defaults; a check recommends to give them."""
    insufficient, correct = source("insufficient and correct").split("\n\n")
    here(insufficient)
    assert settings_of().options.get("url", "valkey://localhost:6379") == "valkey://localhost:6379"
    here(correct)
    assert settings_of().options["key_prefix"] == "agentup:state:"


@pytest.mark.parametrize(("name", "backend"), [("memory to file", "file"), ("file to valkey", "valkey")])
def test_moving_to_another_backend(here, name, backend):
    """The configuration and the decorator of the new backend both say where state goes."""
    text, line = source(name).split("\n\n# Update handlers\n")
    here(text)
    assert settings_of().backend == backend
    names = {"stateful": agentup.stateful}
    exec(f"{line}\nasync def handler(task, context, context_id): ...", names)
    assert names["handler"].binding.effective().settings.backend == backend


def test_every_block_is_used():
    """No example is left out."""
    tests = [one for name, one in globals().items() if name.startswith("test_")]
    text = "\n".join(inspect.getsource(one) for one in tests) + str([getattr(one, "pytestmark", "") for one in tests])
    assert [name for name in BLOCKS if f'"{name}"' not in text and f"'{name}'" not in text] == []
