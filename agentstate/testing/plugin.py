"""The pytest plugin: states, clocks and faults as fixtures. Loads nothing but pytest until used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentstate.testing.clock import FakeClock


@pytest.fixture
def agentstate_clock() -> FakeClock:
    """Return a clock that moves only when the test calls ``advance(seconds)``."""
    from agentstate.testing.clock import FakeClock

    return FakeClock()
