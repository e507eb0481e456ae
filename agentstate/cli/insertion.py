"""Adds one entry to a section of a configuration file as text, so that all else stays byte for byte.

Afterwards the new text must mean what the old one did, and the entry. Where it doesn't (a
section in braces, unusual indentation), the caller is told what to write himself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import yaml

from agentstate.config import tomlfile, yamlfile
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentstate.config.document import Node

__all__ = ["INDENT", "Entry", "with_entry"]

INDENT: Final = "  "


class Entry(NamedTuple):
    """One entry of a section: an element of a list that a key names, or a value in a mapping by name.

    Attributes:
        key: the naming key, as in ``skill_id``.
        name: its value.
        lines: the rest of the entry as YAML, not indented.
    """

    key: str
    name: str
    lines: list[str]

    @property
    def value(self) -> dict[str, Any]:
        """What the lines say."""
        value: dict[str, Any] = _plain(yamlfile.parse("\n".join(self.lines).encode(), self.name))
        return value

    @property
    def element(self) -> dict[str, Any]:
        """The element of a list."""
        return {self.key: self.name, **self.value}

    def listed(self) -> list[str]:
        """Return the lines of an element of a list."""
        return [f"- {self.key}: {_word(self.name)}", *_indented(self.lines, INDENT)]

    def mapped(self) -> list[str]:
        """Return the lines of a value in a mapping."""
        return [f"{_word(self.name)}:", *_indented(self.lines, INDENT)]


class _Place(NamedTuple):
    """A section's value in YAML: what to cut (empty brackets), where it ends, and how it is written."""

    cut: slice
    end: int
    column: int = len(INDENT)
    mapping: bool = False


def with_entry(text: str, section: str, entry: Entry, name: str) -> str:
    """Return the text of a file with one entry more in a top-level section, which is added if it is absent.

    Args:
        text: of the file: TOML if its name says so, else YAML.
        section: the section's key.
        entry: what to add.
        name: of the file.

    Raises:
        ConfigError: the file can't be parsed, or nothing can be added without touching the rest.
    """
    parse = tomlfile.parse if name.endswith(".toml") else yamlfile.parse
    before = cast("dict[str, Any]", _plain(parse(text.encode(), name)) or {})
    if type(before) is not dict:
        raise ConfigError(f"{name}: is no mapping.", remedy="A configuration file holds sections by name.")
    newline = "\r\n" if "\r\n" in text else "\n"
    if parse is tomlfile.parse:
        new = _appended(
            text, [f"[[{section}]]", *(f"{key} = {_toml(one)}" for key, one in entry.element.items())], newline
        )
    elif (place := _find(text, section)) is None:
        new = _appended(text, [f"{section}:", *_indented(entry.listed(), INDENT)], newline)
    else:
        new = _inserted(text, place, entry.mapped() if place.mapping else entry.listed(), newline)
    try:
        after = _plain(parse(new.encode(), name))
    except ConfigError:
        after = None
    if repr(after) != repr(_added(before, section, entry)):  # as text, since nan isn't nan
        raise ConfigError(
            f"{name}: nothing can be added to {section!r} without touching what stands there.",
            remedy=f"Add this element yourself: {json.dumps(entry.element, ensure_ascii=False)}",
        )
    return new


def _word(text: str) -> str:
    """Return a text as YAML, quoted if it would mean something else, as ``yes`` does."""
    return text if yaml.safe_load(text) == text else json.dumps(text)


def _indented(lines: list[str], by: str) -> list[str]:
    return [by + line if line else line for line in lines]


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in (node.mapping or {}).items()}
    return [_plain(child) for child in node.sequence] if isinstance(node.value, list) else node.value


def _added(before: dict[str, Any], section: str, entry: Entry) -> dict[str, Any]:
    old: Any = before.get(section) or []
    if isinstance(old, dict):
        return {**before, section: {**old, entry.name: entry.value}}
    return {**before, section: [*old, entry.element]}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in pairs) + " }"
    return json.dumps(value)


def _appended(text: str, lines: list[str], newline: str) -> str:
    apart = (newline if text.endswith("\n") else newline * 2) if text else ""
    return text + apart + newline.join(lines) + newline


def _find(text: str, section: str) -> _Place | None:
    """Return the place of a top-level section's value; none when the file has no such section."""
    events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))  # its stubs leave marks half typed
    for event in events:
        if isinstance(event, yaml.MappingStartEvent):
            break
        if isinstance(event, yaml.NodeEvent):  # no mapping at all
            return None
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            break
        _skip(key, events)
        value = next(events)
        end = _skip(value, events)
        if isinstance(key, yaml.ScalarEvent) and key.value == section:
            return _place(text, value, end)
    return None


def _place(text: str, value: Any, end: int) -> _Place:
    start = value.start_mark
    if isinstance(value, yaml.CollectionStartEvent) and not value.flow_style:
        return _Place(slice(end, end), end, start.column, isinstance(value, yaml.MappingStartEvent))
    empty = text[start.index : end].strip("[]{} ") == ""
    return _Place(slice(start.index, end) if empty else slice(end, end), end)


def _skip(event: Any, events: Iterator[Any]) -> int:
    """Pass over a node, and return where its last word ends."""
    end: int = event.end_mark.index
    if not isinstance(event, yaml.CollectionStartEvent):
        return end
    flow = event.flow_style
    for child in events:
        if isinstance(child, yaml.CollectionEndEvent):
            closing: Any = child
            return closing.end_mark.index if flow else end
        end = _skip(child, events)
    return end


def _inserted(text: str, place: _Place, lines: list[str], newline: str) -> str:
    """Return the text with lines after a section's value, and after the comments that belong to it."""
    index = place.end
    if index and text[index - 1] != "\n":
        index = _next_line(text, index)
    while _is_comment(text[index:].partition("\n")[0], place.column):
        index = _next_line(text, index)
    head = text[: place.cut.start] + text[place.cut.stop : index]
    if not head.endswith("\n"):
        head += newline
    return head + newline.join(_indented(lines, " " * place.column)) + newline + text[index:]


def _next_line(text: str, index: int) -> int:
    return text.find("\n", index) + 1 or len(text)


def _is_comment(line: str, column: int) -> bool:
    return line.lstrip().startswith("#") and len(line) - len(line.lstrip()) > column
