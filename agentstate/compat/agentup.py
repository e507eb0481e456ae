"""AgentUp's names and signatures, so that a handler file written for it runs after changing its imports.

::

    # from agent.state.context import stateful
    from agentstate.compat.agentup import stateful

What is the same: the decorators and their arguments, the injected ``context`` and ``context_id``,
the context's methods, ``get_history`` as a list of plain dicts.

What is better, and therefore different:

* A handler runs in a turn: what it changes is stored when it has succeeded, all of it or, when it
  raises, nothing. AgentUp stored each call at once, and a crash half-way left the user's message
  without its answer, a counter without what it counts. ``@stateful(..., commit="immediate")`` is
  that mode: each call is a commit of its own, and what came before a crash stays, what should
  have come after it is missing.
* A handler that raises is not called a second time, and errors of the storage are raised.
* Each handler has the backend that it asks for, also when another one asked first. Without
  ``storage=`` it is what the configuration file says, else SQLite instead of memory.
* Histories are not cut at 100 messages; values come back with their types.
* ``stateful_user`` takes the user whom the host has authenticated, never ``metadata["user_id"]``
  of the message, and refuses callers who aren't, who all shared one state.

Records that AgentUp itself wrote are not read in passing. A state that has such a record and
isn't imported raises, naming the command that imports it, and nothing is overwritten.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC
from typing import TYPE_CHECKING, Any

from agentstate import decorator
from agentstate.binding import Binding
from agentstate.compat.agentup_context import ConversationContext, ConversationState
from agentstate.compat.agentup_import import import_agentup
from agentstate.conversation import Conversation
from agentstate.dispatching import register_handler
from agentstate.dispatching import wrapped as registered_as
from agentstate.errors import UnsupportedError
from agentstate.state.turn import current
from agentstate.storage import file, memory, valkey
from agentstate.text import message_text as extract_user_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "ConversationContext",
    "ConversationState",
    "FileStorage",
    "InMemoryStorage",
    "StateStorage",
    "ValkeyStorage",
    "extract_user_message",
    "get_context_manager",
    "import_agentup",
    "register_handler",
    "stateful",
    "stateful_conversation",
    "stateful_session",
    "stateful_user",
    "with_state",
]


class StateStorage(ABC):  # noqa: B024 - only there to be asked for, and to refuse
    """What AgentUp's storages are instances of; so are this library's."""

    def __init_subclass__(cls) -> None:
        """Refuse.

        Raises:
            UnsupportedError: always: whole states that are read and written back lose others' changes.
        """
        raise UnsupportedError(
            f"{cls.__name__} has AgentUp's get, set, delete and list_contexts, over which no commit can be atomic.",
            remedy="Implement agentstate.storage.protocol.Storage, and test it with agentstate.testing.",
        )


class InMemoryStorage(memory.MemoryStorage):
    """States in this process, until it ends."""


class FileStorage(file.FileStorage):
    """States in a directory."""

    def __init__(self, storage_dir: str = "./conversation_states") -> None:
        """Name the directory."""
        super().__init__(storage_dir)


class ValkeyStorage(valkey.ValkeyStorage):
    """States on a Valkey server. ``ttl``: how many seconds a state lives after its last change."""

    def __init__(
        self,
        url: str = "valkey://localhost:6379",
        key_prefix: str = "agentup:state:",
        ttl: float | None = 3600,
    ) -> None:
        """Describe where the states are; nothing is connected before the first use."""
        super().__init__(url, key_prefix=key_prefix)
        self.ttl = ttl


for _storage in (memory.MemoryStorage, file.FileStorage, valkey.ValkeyStorage):
    StateStorage.register(_storage)


def get_context_manager(
    storage_type: str = "memory", *, force_new: bool = False, **settings: Any
) -> ConversationContext:
    """Return a context on a backend; its settings count at every call, not only at the first.

    Args:
        storage_type: ``memory``, ``file``, ``valkey``, or any other backend's name.
        force_new: for memory: a context that shares its states with no other.
        settings: ``url``, ``key_prefix``, ``ttl``, ``storage_dir``, …

    Raises:
        ConfigError: one of them is wrong.
    """
    if force_new and storage_type == "memory":
        return ConversationContext(InMemoryStorage())
    bound = Binding((), {"storage": storage_type, **settings}).resolve()
    return ConversationContext(bound.store, settings=bound.settings)


def stateful(storage: Any = None, **settings: Any) -> Any:
    """Run a handler in a turn on the state of its task's context.

    Args:
        storage: the backend's name, or a storage; without it the configuration file says.
        settings: ``url``, ``key_prefix``, ``ttl``, ``storage_dir``, ``commit="immediate"``, and all else
            that `agentstate.stateful` takes.
    """
    return _decorated(decorator.stateful, storage, settings)


def stateful_conversation(backend: Any = None, **settings: Any) -> Any:
    """Like `stateful`, with the id from metadata ``conversation_id`` first."""
    return _decorated(decorator.stateful_conversation, backend, settings)


def stateful_session(backend: Any = None, **settings: Any) -> Any:
    """Like `stateful`, with one state per ``session_id``."""
    return _decorated(decorator.stateful_session, backend, settings)


def stateful_user(backend: Any = None, **settings: Any) -> Any:
    """Like `stateful`, with one state per user, whom the host has authenticated or ``owner=`` names."""
    return _decorated(decorator.stateful_user, backend, settings)


def with_state(state_configs: Sequence[Mapping[str, Any]]) -> Callable[[Any], Any]:
    """Return a decorator that applies the first of these configurations, unless it is not enabled.

    Args:
        state_configs: ``{"enabled": True, "backend": "file", "config": {"storage_dir": "./states"}}``.
    """

    def apply(func: Any) -> Any:
        if not state_configs or not state_configs[0].get("enabled", True):
            return func
        first = state_configs[0]
        given = {key: value for key, value in first.items() if key not in ("enabled", "backend", "config")}
        return stateful(first.get("backend"), **given, **first.get("config", {}))(func)

    return apply


def _decorated(native: Any, storage: Any, settings: dict[str, Any]) -> Any:
    if inspect.isroutine(storage):  # used without parentheses
        return _decorated(native, None, settings)(storage)

    def apply(func: Callable[..., Any]) -> Any:
        given = settings if storage is None else {"storage": storage, **settings}
        handler = native(**given)(_adapted(func))
        registered_as(func, handler)
        return handler

    return apply


def _adapted(func: Callable[..., Any]) -> Any:
    """Return a handler that gets AgentUp's context, and of both parameters those that it has, like there."""
    if not inspect.iscoroutinefunction(func):
        return func  # AgentUp had no others
    signature = inspect.signature(func)
    wanted = [name for name in ("context", "context_id") if name in signature.parameters]

    @functools.wraps(func)
    async def handler(*args: Any, agentstate_conversation: Conversation, **kwargs: Any) -> Any:
        frame = current.get()
        assert frame is not None
        context = ConversationContext(
            frame.turn.store, settings=frame.turn.settings, principal=frame.turn.principal, frame=frame
        )
        given = {"context": context, "context_id": agentstate_conversation.id}
        return await func(*args, **{name: given[name] for name in wanted} | kwargs)

    own = inspect.Parameter("agentstate_conversation", inspect.Parameter.KEYWORD_ONLY, annotation=Conversation)
    kept = [one for name, one in signature.parameters.items() if name not in wanted]
    rest = [kept.pop()] if kept and kept[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    shown: Any = handler
    shown.__signature__ = signature.replace(parameters=[*kept, own, *rest])
    shown.__annotations__ = {name: hint for name, hint in func.__annotations__.items() if name not in wanted}
    shown.__annotations__[own.name] = Conversation
    return shown
