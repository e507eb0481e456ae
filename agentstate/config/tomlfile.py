"""TOML with line numbers, which the standard parser doesn't give.

The values come from `tomllib`. The lines come from a second look at the text, header by header
and key by key; what isn't found there (the inside of an inline table) has its parent's line.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final, cast

from agentstate.config.document import Node
from agentstate.errors import ConfigError

__all__ = ["parse"]

Path = tuple[str | int, ...]
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def parse(raw: bytes, name: str) -> Node:
    """Return the tree of a TOML file.

    Raises:
        ConfigError: it isn't TOML.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: not valid TOML: not UTF-8.") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        raise ConfigError(f"{name}:{line}: not valid TOML: {_PLACE.sub('', str(error))}.") from error
    except RecursionError:
        raise ConfigError(f"{name}: not valid TOML: nested too deeply.") from None
    return _tree(data, (), 1, _lines(text))


def _tree(data: object, path: Path, line: int, lines: dict[Path, int]) -> Node:
    line = lines.get(path, line)
    if isinstance(data, dict):
        table = cast("dict[str, object]", data)
        return Node(line, {key: _tree(value, (*path, key), line, lines) for key, value in table.items()})
    if isinstance(data, list):
        array = cast("list[object]", data)
        return Node(line, [_tree(value, (*path, index), line, lines) for index, value in enumerate(array)])
    return Node(line, data)


def _lines(text: str) -> dict[Path, int]:
    """Return the line of each header and key."""
    lines: dict[Path, int] = {}
    lengths: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            keys = _keys(stripped)
            if keys is None:
                continue
            table = _located(keys, lengths, element=stripped.startswith("[["))
            lines.setdefault(table, number)
        else:
            keys = _keys(stripped.partition("=")[0] + "= 0")
            if keys:
                lines.setdefault((*table, *keys), number)
    return lines


def _keys(fragment: str) -> tuple[str, ...] | None:
    """Return the dotted key of a header or an assignment, if that is what the fragment is."""
    try:
        data: object = tomllib.loads(fragment)
    except tomllib.TOMLDecodeError:
        return None
    keys: list[str] = []
    while isinstance(data, dict) and len(cast("dict[str, object]", data)) == 1:
        ((key, data),) = cast("dict[str, object]", data).items()
        keys.append(key)
    return tuple(keys)


def _located(keys: tuple[str, ...], lengths: dict[Path, int], *, element: bool) -> Path:
    """Return the path of a header; a name that stands for an array means its last element."""
    path: Path = ()
    for position, key in enumerate(keys):
        path = (*path, key)
        if element and position == len(keys) - 1:
            lengths[path] = lengths.get(path, 0) + 1
        if path in lengths:
            path = (*path, lengths[path] - 1)
    return path
