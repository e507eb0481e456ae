"""The closed list of an application's own types that may be stored.

It is filled by code only, at import time. Stored bytes name a type; they never load one.
Registering is safe from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, Flag
from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Binding", "binding_named", "binding_of", "register_type"]

Dump = Callable[[Any], Any]
Load = Callable[[Any], Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Binding:
    """How one registered type is stored.

    Attributes:
        dump: makes a storable value of an instance.
        load: makes an instance of what ``dump`` returned.
        by_equality: a copy is as good as the original when both are equal; else when both
            dump to the same bytes.
        mutable: instances can change.
    """

    cls: type[Any]
    name: str
    dump: Dump
    load: Load
    by_equality: bool
    mutable: bool


_by_type: dict[type[Any], Binding] = {}
_by_name: dict[str, Binding] = {}
_lock = threading.Lock()


def register_type(
    cls: type[T],
    name: str | None = None,
    *,
    aliases: Iterable[str] = (),
    dump: Callable[[T], Any] | None = None,
    load: Callable[[Any], T] | None = None,
) -> type[T]:
    """Let instances of ``cls`` be stored as they are, and return ``cls`` (so it works as a decorator).

    Enums are kept by member name, dataclasses by field, pydantic models by ``model_dump`` and
    ``model_validate``. Any other class needs ``dump`` and ``load``. Subclasses are types of
    their own. A model's set of explicitly given fields isn't kept.

    Args:
        cls: the class.
        name: what stands in the stored bytes; the class's qualified name unless given. Keep it
            when the class is renamed.
        aliases: names that older stored values bear.
        dump: makes a storable value of an instance; it must say everything about it.
        load: makes an instance of what ``dump`` returned.

    Raises:
        ConfigError: the name belongs to another class, the type can be stored anyway, or there
            is no way to dump it.
    """
    from agentstate.codec.tagged import is_builtin

    if is_builtin(cls):
        raise ConfigError(f"{cls.__qualname__} can be stored without registering it.")
    binding = _bind(cls, name or cls.__qualname__, dump, load)
    with _lock:
        names = (binding.name, *aliases)
        for one in names:
            other = _by_name.get(one)
            if other is not None and _place(other.cls) != _place(cls):
                raise ConfigError(
                    f"The type name {one!r} belongs to {_place(other.cls)} already.",
                    remedy=f"Register {_place(cls)} under another: register_type(cls, name=...).",
                )
        _by_type[cls] = binding
        _by_name.update(dict.fromkeys(names, binding))
    return cls


def binding_of(cls: type[Any]) -> Binding | None:
    """Return how instances of exactly this type are stored."""
    return _by_type.get(cls)


def binding_named(name: str) -> Binding | None:
    """Return how values stored under this name or alias are loaded."""
    return _by_name.get(name)


def _place(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _bind(cls: type[Any], name: str, dump: Dump | None, load: Load | None) -> Binding:
    if dump is not None and load is not None:
        return Binding(cls, name, dump, load, by_equality=False, mutable=True)
    if dump is not None or load is not None:
        raise ConfigError(f"{cls.__qualname__} has only one of dump= and load=.", remedy="Give both.")
    if issubclass(cls, Enum):
        dump, load = (_flag_names, _flag_loader(cls)) if issubclass(cls, Flag) else (_member_name, cls.__getitem__)
        return Binding(cls, name, dump, load, by_equality=True, mutable=False)
    if hasattr(cls, "model_dump") and hasattr(cls, "model_validate"):
        return Binding(cls, name, _dump_model, _model_loader(cls), by_equality=True, mutable=True)
    if is_dataclass(cls):
        return Binding(cls, name, _dump_fields, _field_loader(cls), by_equality=False, mutable=True)
    raise ConfigError(
        f"{cls.__qualname__} is no enum, dataclass or pydantic model.",
        remedy="Say how it is stored: register_type(cls, dump=..., load=...).",
    )


def _member_name(member: Enum) -> str:
    return member.name


def _flag_names(flag: Flag) -> list[str | None]:
    return [member.name for member in flag]


def _flag_loader(cls: type[Flag]) -> Load:
    def load(names: Iterable[str]) -> Flag:
        flag = cls(0)
        for name in names:
            flag |= cls[name]
        return flag

    return load


def _dump_model(model: Any) -> Any:
    return model.model_dump(round_trip=True, by_alias=False, warnings="error")


def _model_loader(cls: Any) -> Load:
    def load(data: Any) -> Any:
        return cls.model_validate(data, by_alias=False, by_name=True)

    return load


def _dump_fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _field_loader(cls: Any) -> Load:
    derived = [field.name for field in fields(cls) if not field.init]

    def load(data: dict[str, Any]) -> Any:
        given = dict(data)
        after = {name: given.pop(name) for name in derived}
        made = cls(**given)
        for name, value in after.items():
            object.__setattr__(made, name, value)
        return made

    return load
