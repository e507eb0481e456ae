"""``${VAR}`` and ``${VAR:default}`` in settings; nothing else is ever expanded.

The first colon splits, so a default may hold colons; it may be empty, and may itself hold
``${…}``. What comes from the environment is data and is not expanded again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["expand"]

MAX_DEPTH: Final = 20
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(text: str, environ: Mapping[str, str], where: str) -> str:
    """Return ``text`` with its variables filled in.

    Args:
        text: what stands in the file or the decorator.
        environ: the variables.
        where: file, line and key, for the error message.

    Raises:
        ConfigError: a variable is unset and has no default, or the braces don't match.
    """
    return _expand(text, environ, where, 0)


def _expand(text: str, environ: Mapping[str, str], where: str, depth: int) -> str:
    if "${" not in text:
        return text
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: ${{…}} is nested more than {MAX_DEPTH} deep.")
    pieces: list[str] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        end = _closing(text, start + 2)
        if end < 0:
            raise ConfigError(f"{where}: '${{' is never closed.", remedy="Write ${NAME} or ${NAME:default}.")
        pieces += (text[position:start], _value(text[start + 2 : end], environ, where, depth))
        position = end + 1
    pieces.append(text[position:])
    return "".join(pieces)


def _closing(text: str, position: int) -> int:
    """Return where the brace that is open at ``position`` closes, or -1. Braces in a default must match."""
    level = 1
    for index in range(position, len(text)):
        level += (text[index] == "{") - (text[index] == "}")
        if level == 0:
            return index
    return -1


def _value(body: str, environ: Mapping[str, str], where: str, depth: int) -> str:
    name, colon, default = body.partition(":")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is no variable name.", remedy="Write ${NAME} or ${NAME:default}.")
    if name in environ:
        return environ[name]
    if not colon:
        raise ConfigError(
            f"{where}: the environment variable {name} is not set.",
            remedy=f"Set it, or give a default: ${{{name}:default}}.",
        )
    return _expand(default, environ, where, depth + 1)
