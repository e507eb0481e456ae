"""The accessors: each state by the name of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentstate.manager.contents import AgentScope, ConversationScope, GlobalScope, TeamScope, WorkflowScope
from agentstate.manager.face import Operations
from agentstate.manager.scoped import ScopedState
from agentstate.scope import StateScope

if TYPE_CHECKING:
    from agentstate.manager.face import AnyScope

__all__ = ["Accessors"]


class Accessors(Operations):
    """Calls on any state, and the states themselves by kind and id.

    ``parent=`` is stored with the state before its first use through the accessor.
    """

    def at(self, scope: AnyScope, *, parent: StateScope | ScopedState | None = None) -> ScopedState:
        """Return a state of any kind."""
        return ScopedState(self, self.resolve(scope), parent)

    def conversation(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ConversationScope:  # noqa: A002
        """Return the state of a conversation."""
        return ConversationScope(self, self.resolve(StateScope.conversation(id)), parent)

    def workflow(self, id: str, *, parent: StateScope | ScopedState | None = None) -> WorkflowScope:  # noqa: A002
        """Return the state of a workflow."""
        return WorkflowScope(self, self.resolve(StateScope.workflow(id)), parent)

    def team(self, id: str, *, parent: StateScope | ScopedState | None = None) -> TeamScope:  # noqa: A002
        """Return the state of a team."""
        return TeamScope(self, self.resolve(StateScope.team(id)), parent)

    def guild(self, id: str, *, parent: StateScope | ScopedState | None = None) -> TeamScope:  # noqa: A002
        """Return the state of a team, under its other name."""
        return self.team(id, parent=parent)

    def agent(self, id: str, *, parent: StateScope | ScopedState | None = None) -> AgentScope:  # noqa: A002
        """Return the state of an agent."""
        return AgentScope(self, self.resolve(StateScope.agent(id)), parent)

    def session(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:  # noqa: A002
        """Return the state of a session."""
        return self.at(StateScope.session(id), parent=parent)

    def user(self, id: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:  # noqa: A002
        """Return the state of a user."""
        return self.at(StateScope.user(id), parent=parent)

    def step(self, workflow_id: str, step_name: str) -> ScopedState:
        """Return the state of a step; its workflow is its parent."""
        return self.at(StateScope.step(workflow_id, step_name))

    def custom(self, namespace: str, *, parent: StateScope | ScopedState | None = None) -> ScopedState:
        """Return a state of your own kind."""
        return self.at(StateScope.custom(namespace), parent=parent)

    @property
    def global_state(self) -> GlobalScope:
        """The state that all share."""
        return GlobalScope(self, self.resolve(StateScope.GLOBAL))
