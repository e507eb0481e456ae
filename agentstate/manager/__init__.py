"""One face of all states, of every kind of scope: `StateManager`, its transactions and its locks."""

from agentstate.manager.accessors import Accessors
from agentstate.manager.agentfields import AgentFields
from agentstate.manager.bound import BoundState
from agentstate.manager.contents import AgentScope, ConversationScope, GlobalScope, Progress, TeamScope, WorkflowScope
from agentstate.manager.results import Listing, StateInfo, Versioned
from agentstate.manager.scoped import ScopedState
from agentstate.manager.states import StateManager, StatePage, Swept
from agentstate.manager.transaction import Transaction

__all__ = [
    "Accessors",
    "AgentFields",
    "AgentScope",
    "BoundState",
    "ConversationScope",
    "GlobalScope",
    "Listing",
    "Progress",
    "ScopedState",
    "StateInfo",
    "StateManager",
    "StatePage",
    "Swept",
    "TeamScope",
    "Transaction",
    "Versioned",
    "WorkflowScope",
]
