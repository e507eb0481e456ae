"""Which backends there are, and the one door through which they are made.

Naming a backend imports nothing, loading one imports its module, and only using it imports its
driver. Backends of other packages register under the entry point group ``agentstate.storage``
with their name, which is their URL's scheme, too; they can't replace a built-in one.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, cast

from pydantic import BaseModel, ValidationError

from agentstate.config.spelling import nearest
from agentstate.config.urls import is_secret, mask, scheme, split_query
from agentstate.errors import ConfigError, MissingDependencyError, UnknownBackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from agentstate.storage.protocol import Storage

__all__ = ["Backend", "backend_for_url", "backend_named", "backends", "create", "driver", "load", "options_of"]

GROUP: Final = "agentstate.storage"
BUILT_IN: Final = {
    "file": "agentstate.storage.file:FileStorage",
    "memory": "agentstate.storage.memory:MemoryStorage",
    "mongodb": "agentstate.storage.mongodb:MongodbStorage",
    "postgresql": "agentstate.storage.postgresql:PostgresqlStorage",
    "rocksdb": "agentstate.storage.rocksdb:RocksdbStorage",
    "sqlite": "agentstate.storage.sqlite:SqliteStorage",
    "valkey": "agentstate.storage.valkey:ValkeyStorage",
}
SCHEMES: Final = {
    **{name: name for name in BUILT_IN},
    "postgres": "postgresql",
    **dict.fromkeys(("valkeys", "redis", "rediss", "valkey+cluster", "valkey+sentinel", "unix"), "valkey"),
    "mongodb+srv": "mongodb",
}
ADVICE: Final = {
    "sled": "Sled has no maintained Python binding: use sqlite (sqlite:///state.db) or rocksdb (rocksdb:///states).",
    "redis": "Redis is spoken to by the backend valkey, also with a redis:// url.",
}


class Backend(Protocol):
    """What a backend's class offers."""

    Options: ClassVar[type[BaseModel]]

    @classmethod
    def from_options(cls, options: Any, *, clock: Callable[[], float] | None = None) -> Self:
        """Return the storage that the options describe, not yet open."""
        ...


def backends() -> tuple[str, ...]:
    """Return the names of all backends, built in and installed."""
    return tuple(sorted({*BUILT_IN, *_installed()}))


def backend_named(name: str) -> str:
    """Return ``name`` if a backend has it.

    Raises:
        UnknownBackendError: none has; the remedy names the nearest.
    """
    if name in BUILT_IN or name in _installed():
        return name
    raise UnknownBackendError(
        f"There is no backend {name!r}.", remedy=ADVICE.get(name.lower()) or nearest(name, backends())
    )


def backend_for_url(url: str) -> str:
    """Return which backend a URL is for: its scheme says so.

    Raises:
        UnknownBackendError: no backend has that scheme.
    """
    name = scheme(url)
    if name in SCHEMES:
        return SCHEMES[name]
    base = name.partition("+")[0]
    if base in _installed():
        return base
    known = (f"{one}://" for one in {*SCHEMES, *_installed()})
    raise UnknownBackendError(
        f"No backend has the scheme of the url {mask(url)!r}.",
        remedy=ADVICE.get(name) or nearest(f"{name}://" if name else url, known),
    )


def load(name: str) -> type[Backend]:
    """Return the class of a backend. Its driver need not be installed.

    Raises:
        UnknownBackendError: there is none of that name.
    """
    name = backend_named(name)
    if name not in BUILT_IN:
        return cast("type[Backend]", _installed()[name].load())
    module, _, attribute = BUILT_IN[name].partition(":")
    return cast("type[Backend]", getattr(importlib.import_module(module), attribute))


def options_of(backend: str) -> type[BaseModel]:
    """Return the model of a backend's options."""
    return load(backend).Options


def create(
    backend: str, options: Mapping[str, object] | None = None, clock: Callable[[], float] | None = None
) -> Storage:
    """Return a storage, not yet open.

    Args:
        backend: its name.
        options: its options; those in the query of ``url`` count where not given beside it.
        clock: returns seconds since the epoch, for tests.

    Raises:
        ConfigError: an option is unknown or wrong.
    """
    chosen = load(backend)
    values = dict(options or {})
    if isinstance(values.get("url"), str):
        bare, query = split_query(str(values["url"]))
        values = {**query, **values, "url": bare}
    try:
        checked = chosen.Options.model_validate(values)
    except ValidationError as error:
        raise _wrong_option(backend, chosen.Options, error) from None
    return cast("Storage", chosen.from_options(checked, clock=clock))


def driver(module: str, *, extra: str) -> ModuleType:
    """Import a driver on its first use; ``extra`` is what installs it.

    Raises:
        MissingDependencyError: it isn't installed. A driver that is there but broken raises
            its own ImportError.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"The driver {error.name!r} is not installed.", remedy=f"Run: pip install 'agentstate-suite[{extra}]'"
        ) from error


def _wrong_option(backend: str, model: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False, include_context=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"The backend {backend!r} has no option {key!r}.", remedy=nearest(key, model.model_fields))
    problem = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = "" if is_secret(key) or not key else f" (it is {mask(str(first['input']))!r})"
    return ConfigError(f"The option {key!r} of the backend {backend!r}: {problem}{shown}.")


@cache
def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {one.name: one for one in entry_points(group=GROUP) if one.name not in BUILT_IN}
