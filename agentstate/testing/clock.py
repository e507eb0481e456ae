"""A clock that tests move by hand, so that nothing about time needs a sleep."""

from __future__ import annotations

import time

__all__ = ["FakeClock"]


class FakeClock:
    """A clock for ``Storage(clock=...)``: call it for the time, `advance` it to let time pass.

    It starts at the present second unless told otherwise: an engine that forgets by its own
    clock would take an earlier date for long expired.
    """

    def __init__(self, start: float | None = None) -> None:
        """Begin at ``start``, in seconds since the epoch."""
        self._now = float(int(time.time())) if start is None else float(start)

    def __call__(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Let ``seconds`` pass and return the new time. A negative number turns the clock back."""
        self._now += seconds
        return self._now

    def __repr__(self) -> str:
        return f"FakeClock({self._now!r})"
