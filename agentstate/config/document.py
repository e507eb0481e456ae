"""A configuration file as a tree that remembers its lines, whichever format it is written in.

The file belongs to the agent: nothing here judges what the agent wrote elsewhere in it. A value
that can't be read (an unknown YAML tag, say) is only an error once somebody asks for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

from agentstate.errors import ConfigError

__all__ = ["Document", "Node", "Origin", "Unreadable", "load"]


class Unreadable(NamedTuple):
    """Stands for a value that can't be read, and says why."""

    problem: str


@dataclass(slots=True)
class Node:
    """One value, and the line its key (or, in a list, it itself) stands in; 0 when unknown.

    Attributes:
        value: a scalar, `Unreadable`, or the children: ``dict[str, Node]`` or ``list[Node]``.
        repeated: keys that this mapping holds twice, with the line of the second.
    """

    line: int
    value: object = None
    repeated: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    @property
    def mapping(self) -> dict[str, Node] | None:
        """The children by key; none for an empty value, ``None`` when this is no mapping."""
        value = self.value
        if value is None:
            return {}
        return cast("dict[str, Node]", value) if isinstance(value, dict) else None

    @property
    def sequence(self) -> list[Node]:
        """The children in order; none when this is no list."""
        value = self.value
        return cast("list[Node]", value) if isinstance(value, list) else []

    def text(self, key: str) -> str | None:
        """Return the child ``key`` if it is a text that isn't empty."""
        child = (self.mapping or {}).get(key)
        return child.value if child and isinstance(child.value, str) and child.value else None


class Origin(NamedTuple):
    """Where a value was written: as a source, as the start of an error message, and what its paths count from."""

    source: str
    where: str
    base: Path


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file."""

    path: Path
    root: Node

    @property
    def name(self) -> str:
        """The file as it is shown: relative to the working directory when it lies in it."""
        return _shown(self.path)

    def origin(self, node: Node, key: str) -> Origin:
        """Return where ``node`` stands; ``key`` is its dotted path."""
        place = f"{self.name}:{node.line}" if node.line else self.name
        return Origin(f"{place} {key}", f"{place}: {key}", self.path.parent)


def load(path: Path) -> Document:
    """Read and parse a file: TOML by its suffix, else YAML.

    Raises:
        ConfigError: it can't be read or parsed; the message names the file and the line.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, and move relative paths
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{_shown(path)}: can't be read: {error.strerror}.", remedy="Check the path and its permissions."
        ) from error
    if path.suffix.lower() == ".toml":
        from agentstate.config.tomlfile import parse
    else:
        from agentstate.config.yamlfile import parse
    return Document(path, parse(raw, _shown(path)))


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
