"""Finds the blocks that kinds of scopes have in the state section.

::

    state:
      scopes:
        workflow: {url: "valkey://…", on_end: "expire:3600"}
        global: {backend: sqlite}

Each is stronger than the section it stands in, for the states of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError
from agentstate.scope import KINDS

if TYPE_CHECKING:
    from agentstate.config.document import Document, Node

__all__ = ["SCOPES", "scope_blocks"]

SCOPES: Final = "scopes"
ALIASES: Final = {"guild": "team"}


def scope_blocks(document: Document, section: Node, path: str) -> dict[str, tuple[Node, str]]:
    """Return the blocks by kind, each with its path.

    Raises:
        ConfigError: a name is no kind of scope, or stands twice.
    """
    node = (section.mapping or {}).get(SCOPES)
    if node is None:
        return {}
    where = f"{path}.{SCOPES}"
    if node.mapping is None:
        raise ConfigError(f"{document.origin(node, where).where}: must be a mapping of kinds to settings.")
    found: dict[str, tuple[Node, str]] = {}
    for name, child in node.mapping.items():
        kind = ALIASES.get(name, name)
        here = f"{where}.{name}"
        if kind not in KINDS:
            raise ConfigError(
                f"{document.origin(child, here).where}: there is no kind of scope {name!r}.",
                remedy=nearest(name, [*KINDS, *ALIASES]),
            )
        if kind in found or name in dict(node.repeated):
            raise ConfigError(f"{document.origin(child, here).where}: the kind stands twice.", remedy="Join the two.")
        found[kind] = (child, here)
    return found
