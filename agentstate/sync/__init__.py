"""The state manager for threads and scripts: the same calls, which block.

::

    from agentstate.sync import StateManager

    manager = StateManager("sqlite:///state.db")
    manager.set(StateScope.agent("writer"), "model", "small")
    with manager.transaction() as tx:
        tx.increment(StateScope.team("red"), "tasks")

One background loop per process does the work, whichever thread calls. A call on a thread that runs an event
loop raises `TurnError`, since it would block that loop. A forked child has a loop of its own.
"""

from agentstate.sync.blocking import finish
from agentstate.sync.contents import AgentScope, ConversationScope, GlobalScope, TeamScope, WorkflowScope
from agentstate.sync.faces import BoundState, ScopedState, StateManager, Transaction
from agentstate.sync.named import (
    BaseStateManager,
    GlobalStateManager,
    InMemoryStateManager,
    PostgresStateManager,
    RedisStateManager,
    SQLiteStateManager,
)

__all__ = [
    "AgentScope",
    "BaseStateManager",
    "BoundState",
    "ConversationScope",
    "GlobalScope",
    "GlobalStateManager",
    "InMemoryStateManager",
    "PostgresStateManager",
    "RedisStateManager",
    "SQLiteStateManager",
    "ScopedState",
    "StateManager",
    "TeamScope",
    "Transaction",
    "WorkflowScope",
    "finish",
]
