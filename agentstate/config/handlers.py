"""Finds the blocks of the file that are ours: the state section, and one block per handler.

::

    state: {…}                                  # or state_management:
    handlers: {NAME: {state: {…}}}
    skills: [{skill_id: NAME, state: {…}}]
    plugins: [{plugin_id: NAME, state_override: {…}, capabilities: [{capability_id: NAME, state_override: {…}}]}]

Lists may also be mappings by name, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agentstate.config.document import Document, Node
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SECTIONS", "HandlerBlock", "blocks_for", "handler_blocks", "repeated_keys", "state_section"]

SECTIONS: Final = ("state", "state_management")
HOLDERS: Final = ("handlers", "skills", "plugins")
BLOCKS: Final = ("state", "state_override", "capabilities")


@dataclass(frozen=True, slots=True)
class HandlerBlock:
    """One handler's own settings.

    Attributes:
        names: the names it is for; the first is the one to show.
        entry: the handler, skill or plugin it stands in. Two blocks for one name may only
            stand in one entry: a capability's, then its plugin's.
        path: the dotted path of the block.
    """

    names: tuple[str, ...]
    entry: str
    path: str
    node: Node


def state_section(document: Document) -> tuple[Node, str] | None:
    """Return the section for all handlers, and its name.

    Raises:
        ConfigError: both names are used.
    """
    root = document.root.mapping or {}
    found = [(root[name], name) for name in SECTIONS if name in root]
    if len(found) > 1:
        places = " and ".join(document.origin(node, name).source for node, name in found)
        raise ConfigError(f"{places}: two sections for the same settings.", remedy="Keep 'state'.")
    return found[0] if found else None


def repeated_keys(document: Document) -> list[ConfigError]:
    """Return an error for each section, handler or block that the file holds twice; the first would be lost."""
    root = document.root
    found = [(key, line) for key, line in root.repeated if key in {*SECTIONS, *HOLDERS, "services"}]
    for section in HOLDERS:
        holder = (root.mapping or {}).get(section) or Node(0)
        found += [(f"{section}.{key}", line) for key, line in holder.repeated]
        for path, _, entry in _entries(root, section, ()):
            found += [(f"{path}.{key}", line) for key, line in entry.repeated if key in BLOCKS]
    return [
        ConfigError(f"{document.origin(Node(line), key).where}: the key stands twice.", remedy="Join the two.")
        for key, line in found
    ]


def handler_blocks(document: Document) -> tuple[HandlerBlock, ...]:
    """Return all blocks of handlers, in the file's order; a capability's before its plugin's."""
    found: list[HandlerBlock] = []
    for section, keys in (("handlers", ("name",)), ("skills", ("skill_id", "name"))):
        for entry, names, node in _entries(document.root, section, keys):
            block = (node.mapping or {}).get("state")
            if block and names:
                found.append(HandlerBlock(names, entry, f"{entry}.state", block))
    for entry, names, node in _entries(document.root, "plugins", ("plugin_id", "name", "package")):
        found += _plugin(entry, names, node)
    return tuple(found)


def _plugin(entry: str, names: tuple[str, ...], node: Node) -> Iterator[HandlerBlock]:
    inner: list[str] = []
    for path, capability, child in _entries(node, "capabilities", ("capability_id",)):
        inner += capability
        block = (child.mapping or {}).get("state_override")
        if block and capability:
            yield HandlerBlock(capability, entry, f"{entry}.{path}.state_override", block)
    block = (node.mapping or {}).get("state_override")
    if block and (names or inner):
        yield HandlerBlock((*names, *inner), entry, f"{entry}.state_override", block)


def _entries(parent: Node, section: str, keys: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Node]]:
    """Yield path, names and node of each element of a list or mapping."""
    node = (parent.mapping or {}).get(section) or Node(0)
    for index, child in enumerate(node.sequence):
        yield f"{section}[{index}]", _names(child, keys), child
    for key, child in (node.mapping or {}).items():
        yield f"{section}.{key}", tuple(dict.fromkeys((key, *_names(child, keys)))), child


def _names(node: Node, keys: tuple[str, ...]) -> tuple[str, ...]:
    found = (node.text(key) for key in keys)
    return tuple(dict.fromkeys(name for name in found if name))


def blocks_for(document: Document, names: Sequence[str]) -> list[HandlerBlock]:
    """Return the blocks of the first of ``names`` that has any, strongest first.

    Raises:
        ConfigError: two handlers in the file have that name.
    """
    blocks = handler_blocks(document)
    for name in names:
        matches = [block for block in blocks if name in block.names]
        entries = {block.entry for block in matches}
        if len(entries) > 1:
            places = " and ".join(document.origin(block.node, block.path).source for block in matches)
            raise ConfigError(f"{places}: both are for the handler {name!r}.", remedy="Rename or join them.")
        if matches:
            return matches
    return []
