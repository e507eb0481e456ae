"""YAML with line numbers: safe types only, aliases and ``<<`` merges without blow-up."""

from __future__ import annotations

from typing import Any, Final

import yaml

from agentstate.config.document import Node, Unreadable
from agentstate.errors import ConfigError

__all__ = ["parse"]

_MERGE: Final = "tag:yaml.org,2002:merge"


def parse(raw: bytes, name: str) -> Node:
    """Return the tree of a YAML file.

    Raises:
        ConfigError: it isn't YAML, or holds several documents.
    """
    try:
        loader = yaml.SafeLoader(raw)
        try:
            root = loader.get_single_node()
            return Node(1) if root is None else _Tree(loader).node(root, root.start_mark.line + 1)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{place}: not valid YAML: {_problem(error)}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply.") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    return (
        f"{error.context} {problem}" if error.context and problem.startswith("but ") else problem or str(error.context)
    )


class _Tree:
    """Turns composed nodes into a tree; each composed node once, however often it is referred to."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader: Any = loader  # its stubs leave the arguments untyped
        self._children: dict[int, Node] = {}

    def node(self, source: yaml.Node, line: int) -> Node:
        known = self._children.get(id(source))
        if known is None:
            known = self._children[id(source)] = Node(line)
            self._fill(known, source)
        return known if known.line == line else Node(line, known.value, known.repeated)

    def _fill(self, into: Node, source: yaml.Node) -> None:
        if isinstance(source, yaml.MappingNode):
            into.value = children = dict[str, Node]()
            self._fill_mapping(into, children, source)
        elif isinstance(source, yaml.SequenceNode):
            into.value = elements = list[Node]()
            elements.extend(self.node(one, one.start_mark.line + 1) for one in source.value)
        else:
            into.value = self._scalar(source)

    def _fill_mapping(self, into: Node, children: dict[str, Node], source: yaml.MappingNode) -> None:
        inherited: list[dict[str, Node]] = []
        for key_node, value_node in source.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                inherited += self._merged(value_node, line)
                continue
            key = str(self._scalar(key_node)) if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in children:
                into.repeated.append((key, line))
            children[key] = self.node(value_node, line)
        for one in inherited:
            for key, child in one.items():
                children.setdefault(key, child)

    def _merged(self, source: yaml.Node, line: int) -> list[dict[str, Node]]:
        node = self.node(source, line)
        return [one.mapping or {} for one in (node.sequence or [node])]

    def _scalar(self, source: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(source)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
            return Unreadable(problem or str(error))
