"""The decorator's other faces: siblings, handlers one can't edit, owners, dispatch, an absent store."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

from agentstate import (
    Conversation,
    ConversationContext,
    aclose,
    apply_state,
    configure,
    current,
    dispatch,
    register_handler,
    stateful,
    stateful_conversation,
    stateful_session,
    stateful_user,
    with_state,
)
from agentstate.dispatching import handlers
from agentstate.errors import (
    ConfigError,
    ContextIdError,
    ContextNotFoundError,
    HandlerSignatureError,
    StorageUnavailableError,
)
from agentstate.handling import ran_without
from agentstate.principal import ANONYMOUS, principal
from agentstate.scope import StateScope
from tests.servers import free_port


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A directory and a configuration of the test's own."""
    monkeypatch.chdir(tmp_path)
    configure()
    yield
    asyncio.run(aclose())


async def test_stateful_conversation_prefers_the_conversation_id(memory):
    """metadata conversation_id, else context_id, else the task's id."""

    @stateful_conversation(storage=memory)
    async def handler(task, context, context_id):
        return context_id

    assert await handler({"metadata": {"conversation_id": "a"}, "context_id": "b", "id": "c"}) == "a"
    assert await handler({"context_id": "b", "id": "c"}) == "b"
    assert await handler({"id": "c"}) == "c"


async def test_stateful_session_is_per_session(memory):
    """One state per session_id, apart from conversations of the same id."""

    @stateful_session(storage=memory)
    async def handler(task, context, context_id):
        return await context.increment(context_id, "n")

    task = {"metadata": {"session_id": "s-1"}, "context_id": "c-1"}
    assert [await handler(task), await handler({**task, "context_id": "c-2"})] == [1, 2]
    assert (await ConversationContext(memory).list_contexts()).ids == []
    with pytest.raises(ContextIdError, match="session_id"):
        await handler({"context_id": "c-1"})


async def test_stateful_user_is_per_owner_and_refuses_anonymous_callers(memory):
    """One state per user; nobody in particular has none."""

    @stateful_user(storage=memory)
    async def handler(task, context, context_id):
        return context_id, await context.increment(context_id, "n")

    token = principal.set("alice")
    try:
        assert await handler({"context_id": "c-1"}) == ("alice", 1)
        assert await handler({"context_id": "c-2"}) == ("alice", 2)
        principal.set(ANONYMOUS)
        with pytest.raises(ContextIdError, match="owner"):
            await handler({"context_id": "c-1"})
    finally:
        principal.reset(token)


async def test_owner_is_stored_at_first_use_and_checked(memory):
    """Another principal gets what an unknown id gets, in every kind of turn."""

    @stateful(storage=memory, owner=lambda task: task["user"])
    async def handler(task, conversation: Conversation):
        return await conversation.increment("n")

    @stateful(storage=memory, owner=lambda task: task["user"], turns="read")
    async def look(task, conversation: Conversation):
        return await conversation.get("n")

    assert await handler({"context_id": "c", "user": "alice"}) == 1
    for other in ("bob", ANONYMOUS):
        with pytest.raises(ContextNotFoundError):
            await handler({"context_id": "c", "user": other})
        with pytest.raises(ContextNotFoundError):
            await look({"context_id": "c", "user": other})
    assert await handler({"context_id": "c", "user": "alice"}) == 2


async def test_a_handler_lists_only_its_callers_conversations(memory):
    """The injected context asks as the caller does."""

    @stateful(storage=memory, owner=lambda task: task["user"])
    async def handler(task, context, context_id):
        await context.set_variable(context_id, "x", 1)
        return (await context.list_contexts()).ids

    await handler({"context_id": "of-bob", "user": "bob"})
    await handler({"context_id": "of-alice", "user": "alice"})
    assert await handler({"context_id": "of-alice", "user": "alice"}) == ["of-alice"]


async def test_the_principal_of_an_a2a_call(memory):
    """The user of an A2A call context is the principal; its message can't say otherwise."""

    class User:
        is_authenticated = True
        user_name = "alice"

    class CallContext:
        user = User()

    class Request:
        context_id = "c"
        call_context = CallContext()
        metadata = {"user_id": "mallory"}  # noqa: RUF012

    @stateful(storage=memory)
    async def handler(request, conversation: Conversation):
        await conversation.set("x", 1)

    await handler(Request())
    snapshot = await memory.read(StateScope.conversation("c"), ConversationContext(memory).store.wants(
        ConversationContext(memory).settings, ""))  # fmt: skip
    assert snapshot.owner == "alice"


async def test_with_state_for_handlers_one_cannot_edit(memory):
    """A handler without injected parameters gets its state by current()."""

    async def untouched(task):
        return await current().increment("n")

    handler = with_state({"storage": memory})(untouched)
    assert [await handler({"context_id": "c"}), await handler({"context_id": "c"})] == [1, 2]


async def test_apply_state_from_the_configuration_file(tmp_path):
    """Handlers that the file names become stateful; others, and disabled ones, stay."""
    (tmp_path / "agent_config.yaml").write_text(
        "state: {backend: memory}\nhandlers:\n  echo: {state: {ttl: 60}}\n  off: {state: {enabled: false}}\n"
    )
    configure()

    async def echo(task, context, context_id):
        return await context.increment(context_id, "n")

    async def off(task): ...
    async def other(task): ...

    table = {"echo": echo, "off": off, "other": other}
    assert apply_state(table) == ["echo"]
    assert [await table["echo"]({"context_id": "c"}) for _ in range(2)] == [1, 2]
    assert table["off"] is off
    assert table["echo"].bound.settings.ttl == 60


async def test_register_and_dispatch_in_either_order(memory):
    """The registered handler is the stateful one, whichever decorator stands on top."""

    @register_handler("outer-first")
    @stateful(storage=memory)
    async def one(task, context, context_id):
        return await context.increment(context_id, "n")

    @stateful(storage=memory)
    @register_handler("inner-first")
    async def two(task, context, context_id):
        return await context.increment(context_id, "n")

    assert await dispatch("outer-first", {"context_id": "c"}) == 1
    assert await dispatch("inner-first", {"context_id": "c"}) == 2
    assert one.binding.names[0] == "outer-first"
    assert two.binding.names[0] == "inner-first"
    with pytest.raises(ConfigError, match="outer-first"):
        await dispatch("outer-frist", {})
    with pytest.raises(ConfigError, match="Two handlers"):
        register_handler("outer-first")(lambda task: None)
    assert {"outer-first", "inner-first"} <= set(handlers())


async def test_decorating_opens_nothing(tmp_path):
    """A module with a stateful handler imports with the server down and nothing installed."""

    @stateful(storage="valkey", url=f"valkey://127.0.0.1:{free_port()}", key_prefix="x:", ttl=3600)
    async def handler(task, context, context_id): ...

    @stateful(storage="file", storage_dir=str(tmp_path / "states"))
    async def other(task, context, context_id): ...

    assert not (tmp_path / "states").exists()
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1"):
        await handler({"context_id": "c"})


async def test_run_without_when_declared(caplog):
    """on_unavailable='run_without' runs on a state that is forgotten, warns and counts."""
    before = ran_without()

    @stateful(storage="valkey", url=f"valkey://127.0.0.1:{free_port()}", on_unavailable="run_without")
    async def handler(task, context, context_id):
        assert not context.persistent
        return await context.increment(context_id, "n")

    assert [await handler({"context_id": "c"}) for _ in range(2)] == [1, 1]
    assert ran_without() == before + 2
    assert "runs without its state" in caplog.text


def test_a_handler_that_takes_no_state_is_an_error_with_the_line_to_write():
    """Forgetting the parameters is found at decoration."""
    with pytest.raises(HandlerSignatureError, match=r"async def handler\(task, context, context_id\)"):

        @stateful
        async def handler(task): ...


async def test_two_handlers_really_use_two_backends(tmp_path):
    """Each has its own; equal settings share one store."""

    @stateful(storage="memory")
    async def one(task, context, context_id):
        return await context.increment(context_id, "n")

    @stateful(storage="sqlite", url=f"sqlite:///{tmp_path}/a.db")
    async def two(task, context, context_id):
        return await context.increment(context_id, "n")

    @stateful(url=f"sqlite:///{tmp_path}/a.db")
    async def three(task, context, context_id):
        return await context.increment(context_id, "n")

    task = {"context_id": "c"}
    assert [await one(task), await two(task), await three(task)] == [1, 1, 2]
    assert two.bound.store is three.bound.store
    assert one.bound.store is not two.bound.store


async def test_the_default_is_a_sqlite_file_here(tmp_path):
    """Bare @stateful needs no configuration and no server."""

    @stateful
    async def handler(task, context, context_id):
        return await context.increment(context_id, "n")

    assert await handler({"context_id": "c"}) == 1
    assert (tmp_path / "agentstate.db").is_file()


async def test_log_lines_say_who_and_where_and_never_what(memory, caplog):
    """One line per read and commit at DEBUG, with handler, scope, turn and correlation id."""

    @stateful(storage=memory)
    async def handler(task, conversation: Conversation):
        await conversation.set("secret-key", "secret-value")

    with caplog.at_level(logging.DEBUG, logger="agentstate"):
        await handler({"context_id": "c-1", "text": "secret-text"})
    lines = [record.getMessage() for record in caplog.records if record.name == "agentstate.turn"]
    assert [line.split()[0] for line in lines] == ["event='read'", "event='commit'"]
    for line in lines:
        assert "handler='handler' scope='conversation:c-1' turn=" in line
        assert "correlation_id=" in line
        assert "secret" not in line


async def test_a_handlers_own_events_carry_the_keys(memory):
    """The application's structlog events have them as context variables; nested turns share the correlation id."""
    import structlog

    seen = []

    @stateful(storage=memory)
    async def inner(task, conversation: Conversation):
        seen.append(structlog.contextvars.get_contextvars())

    @stateful(storage=memory)
    async def outer(task, conversation: Conversation):
        seen.append(structlog.contextvars.get_contextvars())
        await inner({"context_id": "c-2"})

    await outer({"context_id": "c-1"})
    assert [one["scope"] for one in seen] == ["conversation:c-1", "conversation:c-2"]
    assert seen[0]["correlation_id"] == seen[1]["correlation_id"] == seen[0]["turn"]
    assert structlog.contextvars.get_contextvars() == {}


async def test_a_rerun_of_a_partly_committed_once_turn_adds_no_message_twice(storage):
    """Message ids derive from the key: what was published before the crash isn't added again."""
    fail = [True]

    @stateful(storage=storage, once=lambda task: task["id"])
    async def handler(task, conversation: Conversation):
        await conversation.add("user", "question")
        await conversation.commit()
        if fail.pop():
            raise RuntimeError
        await conversation.add("assistant", "answer")
        return "done"

    fail[:] = [False, True]
    with pytest.raises(RuntimeError):
        await handler({"context_id": "c", "id": "t-1"})
    assert await handler({"context_id": "c", "id": "t-1"}) == "done"
    history = await ConversationContext(storage).get_history("c")
    assert [message.content for message in history] == ["question", "answer"]


def test_a_forked_child_waits_for_nobody_of_its_parent(tmp_path):
    """A child forked in the middle of a turn takes turns of its own, with its own storage."""

    @stateful(storage="memory")
    async def handler(task, conversation: Conversation):
        child = os.fork()
        if child == 0:
            os._exit(_child(handler))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(handler({"context_id": "c"})) == 0


def _child(handler):
    line = handler.bound.store._line
    return 0 if line.take(StateScope.conversation("c"), "child") is not None else 1


async def test_a_missing_server_leaves_no_noise_behind(caplog):
    """What can't be given back is nobody's unretrieved exception."""
    import gc

    @stateful(storage="valkey", url=f"valkey://127.0.0.1:{free_port()}")
    async def handler(task, context, context_id): ...

    with pytest.raises(StorageUnavailableError):
        await handler({"context_id": "c"})
    await asyncio.sleep(0)
    gc.collect()
    assert "never retrieved" not in caplog.text
