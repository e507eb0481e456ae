"""Which state is above another one.

The parent that is stored with a state counts; without one it is the workflow for a step, and the
global state for everything else.
"""

from __future__ import annotations

from agentstate.scope import StateScope


def parent_of(scope: StateScope, stored: str | None) -> StateScope | None:
    """Return the state above, ``None`` above the global one."""
    if stored is not None:
        return StateScope.parse(stored)
    if scope.kind == "step":
        return StateScope.workflow(scope.ids[0], tenant=scope.tenant)
    return None if scope.kind == "global" else StateScope.make("global", tenant=scope.tenant)
