"""``agentstate import-agentup`` on what AgentUp wrote, to real storages."""

import asyncio
import json
import shlex

import pytest

from agentstate import ConversationContext, stateful
from agentstate.errors import UnsupportedError
from agentstate.storage import registry

AWARE = "2025-07-01T10:00:00+00:00"


def record(name):
    said = {"role": "user", "content": "hello", "timestamp": AWARE, "metadata": {}}
    fields = {"context_id": name, "user_id": None, "created_at": AWARE, "updated_at": AWARE}
    return json.dumps(fields | {"metadata": {}, "variables": {"name": "Ada"}, "history": [said]})


@pytest.fixture
def source(directory):
    """A directory that AgentUp wrote to."""
    made = directory / "conversation_states"
    made.mkdir()
    for name in ("c-1", "c-2"):
        (made / f"{name}.json").write_text(record(name))
    return made


def test_into_another_storage(agentstate, source, url):
    """A dry run counts and makes nothing; the import stores; a second one adds nothing."""
    dry = agentstate("import-agentup", source, "--url", url, "--dry-run")
    assert dry.out == "2 conversations with 2 messages would be imported.\n"
    if not url.startswith(("valkey", "postgresql")):
        assert agentstate("ls", "--url", url).code == 69
    done = agentstate("import-agentup", source, "--url", url)
    assert (done.code, done.out) == (0, "2 conversations with 2 messages imported.\n")
    again = agentstate("import-agentup", source, "--url", url, "--json").json
    assert again == {"conversations": 0, "messages": 0, "skipped": ["c-1", "c-2"], "dry_run": False}
    assert agentstate("show", "c-1", "--url", url, "--json").json["sections"] == {"variables": {"name": "Ada"}}
    assert agentstate("import-agentup", source, "--url", url).out.endswith("2 skipped (there already, or expired).\n")


def test_what_exists_is_not_overwritten(agentstate, source, url, writer):
    """A conversation that goes on here already stays as it is."""
    writer.put("conversation:c-1", name="Bob")
    assert agentstate("import-agentup", source, "--url", url).out.startswith("1 conversation with")
    assert agentstate("show", "c-1", "--url", url, "--json").json["sections"] == {"variables": {"name": "Bob"}}


@pytest.mark.parametrize("backend", ["file", "valkey"])
def test_the_command_in_the_error_works(agentstate, request, source, backend):
    """A handler that meets a record prints a command; that command, typed as it is, lets it go on."""
    if backend == "valkey":
        server = request.getfixturevalue("valkey_server")
        settings = {"url": server.url, "key_prefix": "agentup:it's mine:"}
        server.ask("SET", "agentup:it's mine:c-1", record("c-1"))
    else:
        settings = {"storage_dir": str(source)}

    async def visit():
        storage = registry.create(backend, settings)

        @stateful(storage=storage)
        async def handler(task, context, context_id):
            return await context.get_variable(context_id, "name")

        try:
            return await handler({"context_id": "c-1"})
        finally:
            await storage.close()

    with pytest.raises(UnsupportedError) as caught:
        asyncio.run(visit())
    assert "\n" not in str(caught.value)
    program, *arguments = shlex.split(caught.value.remedy.partition("once: ")[2])
    assert program == "agentstate"
    assert agentstate("show", "c-1", *arguments[1:]).err.endswith(f"{caught.value.remedy}\n")
    assert agentstate(*arguments, "--dry-run").code == 0
    assert agentstate(*arguments).code == 0
    assert asyncio.run(visit()) == "Ada"


def test_looking_makes_nothing_in_agentups_directory(agentstate, source):
    """Neither a dry run nor ``ls`` leaves a file of ours beside AgentUp's."""
    before = sorted(source.iterdir())
    url = source.as_uri()
    assert agentstate("import-agentup", "--url", url, "--dry-run").out.startswith("2 conversations")
    assert agentstate("ls", "--url", url).code == 69
    assert sorted(source.iterdir()) == before
    assert agentstate("import-agentup", "--url", url).out.startswith("2 conversations")
    assert agentstate("ls", "--url", url, "--json").json["count"] == 3  # the third notes what was imported


def test_a_prefix_in_the_url_counts(agentstate, valkey_server, directory):
    """The prefix comes from the option, else the URL, else AgentUp's default."""
    for prefix in ("agentup:state:", "mine:", "yours:"):
        valkey_server.ask("SET", f"{prefix}{prefix}1", record(f"{prefix}1"))
    for arguments, name in (
        ((f"{valkey_server.url}?key_prefix=mine:",), "mine:1"),
        ((valkey_server.url, "--key-prefix", "yours:"), "yours:1"),
        ((valkey_server.url,), "agentup:state:1"),
    ):
        run = agentstate("import-agentup", *arguments, "--url", f"sqlite:///{directory}/state.db")
        assert run.out.startswith("1 conversation with"), run.err
        assert agentstate("show", name, "--url", f"sqlite:///{directory}/state.db").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("absent",), 69, "Name the directory that AgentUp wrote to."),
        (("broken",), 65, "broken.json: is no record of AgentUp's. Mend it or move it away"),
        (("valkey://127.0.0.1:1",), 69, "127.0.0.1:1"),
        (("mongodb://x",), 78, "mongodb"),
        ((), 78, "AgentUp never wrote to sqlite. Name its directory or its Valkey URL."),
        (("conversation_states", "--url", "mysql://x"), 78, "mysql"),
        (("conversation_states", "--tenant", "\0"), 64, "tenant"),
    ],
)
def test_what_cant_work_is_said_in_a_line(agentstate, source, arguments, code, said):
    """Each with what, where and how to mend it."""
    broken = source.parent / "broken"
    broken.mkdir()
    (broken / "broken.json").write_text("{")
    rest = () if "--url" in arguments else ("--url", f"sqlite:///{source.parent}/state.db")
    run = agentstate("import-agentup", *arguments, *rest)
    assert (run.code, run.out, run.err.count("\n")) == (code, "", 1)
    assert said in run.err


def test_siblings_become_users(agentstate, source, url):
    """With --siblings what AgentUp kept as user:ada is the user ada's."""
    (source / "user:ada.json").write_text(record("user:ada"))
    agentstate("import-agentup", source, "--url", url, "--siblings", "--tenant", "acme")
    assert agentstate("show", "user:ada", "--url", url, "--tenant", "acme").code == 0

    async def owner():
        storage = registry.create(registry.backend_for_url(url), {"url": url})
        try:
            return await ConversationContext(storage, tenant="acme").exists("c-1")
        finally:
            await storage.close()

    assert asyncio.run(owner())
