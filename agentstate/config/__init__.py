"""Configuration: decorator arguments, handler block, state section, environment, defaults.

``configure(path=…)`` reads a file, ``current().effective(names, arguments, backends=registry)``
says what a handler runs with and why. Importing this loads neither YAML nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentstate.config.discovery import Configuration, configure, current

if TYPE_CHECKING:
    from agentstate.config.effective import Effective, Setting
    from agentstate.config.settings import HandlerSettings

__all__ = ["Configuration", "Effective", "HandlerSettings", "Setting", "configure", "current"]


def __getattr__(name: str) -> Any:
    if name in {"Effective", "Setting"}:
        from agentstate.config import effective

        return getattr(effective, name)
    if name == "HandlerSettings":
        from agentstate.config.settings import HandlerSettings

        return HandlerSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
