"""What states of some kinds usually hold, blocking; see `agentstate.manager.contents`."""

from __future__ import annotations

from agentstate.manager import contents
from agentstate.sync.blocking import blocking
from agentstate.sync.scoped import ScopedState

__all__ = ["AgentScope", "ConversationScope", "GlobalScope", "TeamScope", "WorkflowScope"]


class ConversationScope(ScopedState):
    """A conversation."""

    add_message = blocking(contents.ConversationScope.add_message)
    add_tool_result = blocking(contents.ConversationScope.add_tool_result)
    tool_results = blocking(contents.ConversationScope.tool_results)
    history = blocking(contents.ConversationScope.history)


class WorkflowScope(ScopedState):
    """A workflow."""

    def step(self, name: str) -> ScopedState:
        """Return the state of a step."""
        return ScopedState(self.target.step(name), self.loop)

    set_status = blocking(contents.WorkflowScope.set_status)
    status = blocking(contents.WorkflowScope.status)
    statuses = blocking(contents.WorkflowScope.statuses)
    set_result = blocking(contents.WorkflowScope.set_result)
    result = blocking(contents.WorkflowScope.result)
    results = blocking(contents.WorkflowScope.results)
    set_progress = blocking(contents.WorkflowScope.set_progress)
    progress = blocking(contents.WorkflowScope.progress)


class TeamScope(ScopedState):
    """A team."""

    post = blocking(contents.TeamScope.post)
    unread = blocking(contents.TeamScope.unread)
    mark_read = blocking(contents.TeamScope.mark_read)
    cursor = blocking(contents.TeamScope.cursor)
    history = blocking(contents.TeamScope.history)
    share = blocking(contents.TeamScope.share)
    shared = blocking(contents.TeamScope.shared)
    shared_context = blocking(contents.TeamScope.shared_context)


class GlobalScope(ScopedState):
    """What all share."""

    setting = blocking(contents.GlobalScope.setting)
    set_setting = blocking(contents.GlobalScope.set_setting)
    settings = blocking(contents.GlobalScope.settings)
    cached = blocking(contents.GlobalScope.cached)
    cache = blocking(contents.GlobalScope.cache)


class AgentScope(ScopedState):
    """An agent."""

    save = blocking(contents.AgentScope.save)
    load = blocking(contents.AgentScope.load)
    add_message = blocking(contents.AgentScope.add_message)
    history = blocking(contents.AgentScope.history)
    count_tool = blocking(contents.AgentScope.count_tool)
