"""State managers by the names that other projects' documents gave them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from agentstate.sync.faces import StateManager

if TYPE_CHECKING:
    from agentstate.manager.face import AnyScope
    from agentstate.storage.protocol import Storage
    from agentstate.sync.contents import ConversationScope, GlobalScope, TeamScope, WorkflowScope

__all__ = [
    "BaseStateManager",
    "GlobalStateManager",
    "InMemoryStateManager",
    "PostgresStateManager",
    "RedisStateManager",
    "SQLiteStateManager",
]


@runtime_checkable
class BaseStateManager(Protocol):
    """The least that a state manager offers; every one here does."""

    def get(self, scope: AnyScope, key: str) -> Any:
        """Return a value, ``None`` when there is none."""
        ...

    def set(self, scope: AnyScope, key: str, value: Any) -> None:
        """Set a value."""
        ...

    def delete(self, scope: AnyScope, key: str) -> Any:
        """Delete a value."""
        ...

    def list(self, scope: AnyScope, prefix: str | None = None) -> dict[str, Any]:
        """Return the values whose keys begin with a prefix."""
        ...


class InMemoryStateManager(StateManager):
    """A manager whose states are forgotten with it."""

    def __init__(self) -> None:
        """Begin empty."""
        from agentstate.storage.memory import MemoryStorage

        super().__init__(MemoryStorage())


class SQLiteStateManager(StateManager):
    """A manager over a SQLite file."""

    def __init__(self, path: str | os.PathLike[str] = "agentstate.db") -> None:
        """Keep the states in the file at ``path``."""
        super().__init__(f"sqlite:///{os.fspath(path)}")


class RedisStateManager(StateManager):
    """A manager over a Valkey or Redis server."""

    def __init__(self, redis_url: str) -> None:
        """Keep the states on the server at ``redis_url``."""
        super().__init__(redis_url)


class PostgresStateManager(StateManager):
    """A manager over a PostgreSQL database."""

    def __init__(self, postgres_url: str) -> None:
        """Keep the states in the database at ``postgres_url``."""
        super().__init__(postgres_url)


class GlobalStateManager(StateManager):
    """The manager that the whole process shares.

    Attributes:
        place: where its states lie; ``None``: where the configuration says.
    """

    place: Storage | str | None = None
    _instance: ClassVar[GlobalStateManager | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def get_instance(cls, storage: Storage | str | None = None) -> Self:
        """Return the process's manager; the first caller says where its states lie.

        Raises:
            ValueError: another caller said something else before.
        """
        with cls._lock:
            if cls._instance is None:
                cls._instance = cls(storage)
                cls._instance.place = storage
            elif storage is not None and storage != cls._instance.place:
                raise ValueError("the process's manager has another storage; call reset_instance() first")
            found = cls._instance
        assert isinstance(found, cls)
        return found

    @classmethod
    def reset_instance(cls) -> None:
        """Let the next `get_instance` make another one."""
        with cls._lock:
            cls._instance = None

    def get_conversation_state(self, session_id: str) -> ConversationScope:
        """Return the state of a conversation."""
        return self.conversation(session_id)

    def get_workflow_state(self, workflow_id: str) -> WorkflowScope:
        """Return the state of a workflow."""
        return self.workflow(workflow_id)

    def get_team_state(self, team_id: str) -> TeamScope:
        """Return the state of a team."""
        return self.team(team_id)

    def get_global_state(self) -> GlobalScope:
        """Return the state that all share."""
        return self.global_state


def _begin_anew_in_child() -> None:
    GlobalStateManager._lock = threading.Lock()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_begin_anew_in_child)
