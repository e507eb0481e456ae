"""Durations and moments as people type them: ``24h``, ``1d12h``, ``2025-01-31T12:00Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import typer

__all__ = ["ago", "duration"]

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WHOLE: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    compact = text.replace(" ", "").lower()
    if not _WHOLE.fullmatch(compact):
        raise typer.BadParameter(f"{text!r} is no duration; write it like 30m, 24h, 7d or 1d12h.")
    return sum(float(number) * UNITS[unit] for number, unit in _PART.findall(compact))


def ago(text: str, now: float) -> float:
    """Return a moment in seconds since the epoch: a duration counts back from ``now``.

    Raises:
        typer.BadParameter: it is neither a duration nor an ISO 8601 date.
    """
    if _WHOLE.fullmatch(text.replace(" ", "").lower()):
        return now - duration(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no moment; write a duration (24h) or a date (2025-01-31T12:00Z)."
        raise typer.BadParameter(message) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
