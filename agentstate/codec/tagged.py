"""Values that plain JSON can't carry, as JSON with tags that user data can't forge.

Every JSON array is ``[tag, …]``: a list is ``["list", …]``, a date ``["date", "2026-01-31"]``.
Every JSON object is a dict with text keys, whatever its keys are. So no dict and no list of a
user's can pass for a tag. A tag is looked up in fixed tables and in the application's
registry, never imported.
"""

from __future__ import annotations

import struct
import zoneinfo
from typing import Any, Final, NoReturn

import orjson

from agentstate.codec import remedies
from agentstate.codec.exact import MAX_DEPTH, kind_of, spend
from agentstate.codec.registry import Binding, binding_named, binding_of
from agentstate.codec.scalars import SCALARS, Refused
from agentstate.errors import (
    DamagedStateError,
    NewerFormatError,
    StateError,
    UnsupportedValueError,
    ValueTooLargeError,
)

__all__ = ["is_builtin", "read", "write"]

_CONTAINERS: Final[dict[type[Any], str]] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAKERS: Final[dict[str, type[Any]]] = {tag: cls for cls, tag in _CONTAINERS.items()}
_LOADERS: Final = {scalar.tag: scalar.load for scalar in SCALARS.values()}
_REGISTERED: Final = "as"
_DICT: Final = "dict"
_JSON_INT: Final = range(-(2**63), 2**64)


def is_builtin(cls: type[Any]) -> bool:
    """Return whether instances of exactly this type are stored without being registered."""
    return cls in SCALARS or cls in _CONTAINERS or cls is dict or cls is bool or cls is type(None)


def write(value: Any, budget: int) -> Any:
    """Return ``value`` as tagged JSON nodes, at most ``budget`` of them.

    Raises:
        UnsupportedValueError: something in it would come back different; names the place.
        ValueTooLargeError: it is too large or too deep.
    """
    return _Writer(budget).node(value)


def read(node: Any) -> Any:
    """Return the value that ``node`` stands for.

    Raises:
        DamagedStateError: no writer wrote this.
        NewerFormatError: it holds a tag of a newer release.
        UnsupportedValueError: it holds a type that isn't registered, or that refuses it.
    """
    return _read(node, 0)


class _Writer:
    """Walks one value; remembers where it stands, for the error."""

    __slots__ = ("_budget", "_open", "_steps", "_verify")

    def __init__(self, budget: int, *, verify: bool = True) -> None:
        self._budget = budget
        self._verify = verify
        self._open: set[int] = set()
        self._steps: list[str] = []

    def node(self, value: Any) -> Any:
        kind = kind_of(value)
        self._budget = spend(self._budget, 1)
        if value is None or kind is bool or (kind is str and _is_text(value)) or (kind is int and value in _JSON_INT):
            return value
        if kind is float and value - value == 0.0:  # only finite numbers cancel out
            return value
        scalar = SCALARS.get(kind)
        if scalar is not None:
            try:
                return [scalar.tag, *scalar.dump(value)]
            except Refused as refused:
                self._refuse(f"{kind.__qualname__} {refused.args[0]}", refused.args[1])
        return self._container(kind, value)

    def _container(self, kind: type[Any], value: Any) -> Any:
        mark = id(value)
        if mark in self._open:
            self._refuse("container holds itself", "Store a value without cycles.")
        if len(self._open) >= MAX_DEPTH:
            raise ValueTooLargeError(
                f"The value at {self._path()} is nested deeper than {MAX_DEPTH}.", remedy="Store a flatter value."
            )
        self._open.add(mark)
        if kind is dict:
            node = self._dict(value)
        elif kind in _CONTAINERS:
            node = self._items(kind, value)
        else:
            node = self._registered(kind, value)
        self._open.discard(mark)
        return node

    def _dict(self, value: dict[Any, Any]) -> Any:
        if all(type(key) is str and _is_text(key) for key in value):
            nodes: dict[str, Any] = {}
            for key, item in value.items():
                self._steps.append(remedies.step(key))
                nodes[key] = self.node(item)
                self._steps.pop()
            return nodes
        pairs: list[Any] = [_DICT]
        for key, item in value.items():
            self._steps.append(remedies.step(key))
            pairs += (self.node(key), self.node(item))
            self._steps.pop()
        return pairs

    def _items(self, kind: type[Any], value: Any) -> list[Any]:
        nodes: list[Any] = []
        ordered = kind is list or kind is tuple
        for index, item in enumerate(value):
            self._steps.append(f"[{index}]" if ordered else "{*}")
            nodes.append(self.node(item))
            self._steps.pop()
        if not ordered:
            nodes.sort(key=orjson.dumps)  # so that equal sets have equal bytes
        return [_CONTAINERS[kind], *nodes]

    def _registered(self, kind: type[Any], value: Any) -> list[Any]:
        binding = binding_of(kind)
        if binding is None:
            self._refuse(f"value of type {kind.__qualname__} would not come back the same", remedies.remedy(value))
        node = self.node(self._dumped(binding, value))
        if self._verify:
            self._check_copy(binding, value, node)
        return [_REGISTERED, binding.name, node]

    def _check_copy(self, binding: Binding, value: Any, node: Any) -> None:
        kind = binding.cls
        try:
            copy = binding.load(_read(node, 0))
            good = kind_of(copy) is kind and self._is_copy(binding, copy, value, node)
        except Exception as error:
            reason = type(error).__name__
            raise UnsupportedValueError(
                f"The {kind.__qualname__} at {self._path()} can't be made again from what it dumps ({reason}).",
                path=self._path(),
                remedy="Let its fields say all that it needs, or register it with dump= and load=.",
            ) from error
        if not good:
            self._refuse(
                f"value of registered type {kind.__qualname__} comes back different",
                "Let its fields say all that it is, or register it with dump= and load=.",
            )

    def _dumped(self, binding: Binding, value: Any) -> Any:
        try:
            return binding.dump(value)
        except Exception as error:
            raise UnsupportedValueError(
                f"The {binding.cls.__qualname__} at {self._path()} can't be dumped ({type(error).__name__}).",
                path=self._path(),
                remedy="Mend its dump, or store a plain value made from it.",
            ) from error

    def _is_copy(self, binding: Binding, copy: Any, value: Any, node: Any) -> bool:
        if binding.by_equality:
            return bool(copy == value)
        again = _Writer(self._budget, verify=False)  # what stands inside was verified already
        return orjson.dumps(again.node(binding.dump(copy))) == orjson.dumps(node)

    def _path(self) -> str:
        return "$" + "".join(self._steps)

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        path = self._path()
        raise UnsupportedValueError(f"At {path}, a {what}.", path=path, remedy=remedy)


def _is_text(value: str) -> bool:
    """Return whether UTF-8 can express it: no unpaired surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(node: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _damaged("is nested too deep")
    if kind_of(node) is dict:
        found: dict[str, Any] = {}
        for key, item in node.items():
            found[key] = _read(item, depth + 1)
        return found
    if kind_of(node) is not list:
        return node
    if not node or kind_of(node[0]) is not str:
        raise _damaged("has an array without a tag")
    tag: str = node[0]
    load = _LOADERS.get(tag)
    if load is None:
        return _read_container(tag, node, depth)
    try:
        return load(*node[1:])
    except zoneinfo.ZoneInfoNotFoundError:
        raise UnsupportedValueError(
            "A stored time has a time zone that this machine doesn't know.", remedy="Run: pip install tzdata"
        ) from None
    except NotImplementedError:
        raise UnsupportedValueError(
            "A stored path is one of another operating system.", remedy="Store a PurePath or text instead."
        ) from None
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, struct.error):
        raise _damaged(f"has a broken {tag}") from None


def _read_container(tag: str, node: list[Any], depth: int) -> Any:
    if tag == _REGISTERED:
        return _read_registered(node, depth)
    if tag != _DICT and tag not in _MAKERS:
        raise NewerFormatError(
            f"A stored value has the tag {tag[:40]!r}, which this release doesn't know.", remedy="Upgrade agentstate."
        )
    items: list[Any] = []
    for item in node[1:]:
        items.append(_read(item, depth + 1))  # noqa: PERF401 - a comprehension costs one more stack frame a level
    try:
        made: Any = dict(zip(items[::2], items[1::2], strict=True)) if tag == _DICT else _MAKERS[tag](items)
    except (TypeError, ValueError):
        raise _damaged(f"has a broken {tag}") from None
    if len(made) != (len(items) // 2 if tag == _DICT else len(items)):
        raise _damaged(f"has a {tag} with equal members")
    return made


def _read_registered(node: list[Any], depth: int) -> Any:
    match node:
        case [_, str(name), payload]:
            binding = binding_named(name)
        case _:
            raise _damaged("has a broken registered type")
    if binding is None:
        raise UnsupportedValueError(
            f"A stored value is of type {name[:80]!r}, which isn't registered.",
            remedy="Import the module that registers it; for a renamed class: register_type(cls, aliases=[...]).",
        )
    data = _read(payload, depth + 1)
    try:
        return binding.load(data)
    except StateError:
        raise
    except Exception as error:
        raise UnsupportedValueError(
            f"{binding.cls.__qualname__} refuses what is stored as {name!r} ({type(error).__name__}).",
            remedy="Give new fields a default, or register it with a load= that knows the old form.",
        ) from error


def _damaged(what: str) -> DamagedStateError:
    return DamagedStateError(f"A stored value {what}.", remedy="Restore it from a backup, or delete the entry.")
