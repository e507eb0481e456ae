"""What calls on states return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate.manager.parents import parent_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.scope import StateScope
    from agentstate.storage.protocol import Snapshot, Stamp

__all__ = ["ANY_VERSION", "AnyVersion", "Listing", "StateInfo", "Versioned", "info_of"]


class AnyVersion:
    """The type of `ANY_VERSION`."""


ANY_VERSION: Final = AnyVersion()
"""Stands for 'whatever version it has'."""


class Versioned(NamedTuple):
    """A value and its version.

    Attributes:
        version: give it to ``set(..., expected=version)``; ``None``: the value is absent.
    """

    value: Any
    version: Stamp | None


class StateInfo(NamedTuple):
    """What is known of a state beside its entries. Times are seconds since the epoch."""

    scope: StateScope
    version: int
    owner: str | None
    parent: StateScope | None
    created_at: float
    updated_at: float
    expires_at: float | None
    labels: Mapping[str, str]


class Listing(dict[str, Any]):
    """A page of entries in the order of their keys.

    Attributes:
        cursor: pass it for the next page; ``None`` on the last.
    """

    def __init__(self, values: Mapping[str, Any], cursor: str | None) -> None:
        """Hold the entries of a page."""
        super().__init__(values)
        self.cursor = cursor


def info_of(scope: StateScope, found: Snapshot) -> StateInfo:
    """Return what is known of a state that is there."""
    assert found.stamp is not None
    return StateInfo(
        scope,
        found.stamp.version,
        found.owner,
        parent_of(scope, found.parent),
        found.created_at,
        found.updated_at,
        found.expires_at,
        dict(found.labels),
    )
