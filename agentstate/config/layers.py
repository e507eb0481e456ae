"""How the layers of configuration become one: the stronger value wins, and connections stay whole.

When a stronger layer names another backend, the connection settings of the weaker ones (url,
prefix, directory, driver options) fall away; everything else merges. What came with a URL, in
its query or from a service, goes when a stronger layer brings a URL of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from agentstate.config.document import Origin
from agentstate.config.spelling import nearest
from agentstate.config.values import Value
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import BaseModel

__all__ = ["DEFAULT_BACKEND", "SPECIAL", "Backends", "Layer", "Merged", "merge"]

DEFAULT_BACKEND: Final = "sqlite"
SPECIAL: Final = ("backend", "config", "service", "url")
UNDECIDED: Final = ""


class Backends(Protocol):
    """What configuration asks about backends; the module `agentstate.storage.registry` answers."""

    def backends(self) -> tuple[str, ...]:
        """Return the names of all backends."""
        ...

    def backend_named(self, name: str, /) -> str:
        """Return the name if a backend has it, else raise `UnknownBackendError`."""
        ...

    def backend_for_url(self, url: str, /) -> str:
        """Return which backend a URL is for, else raise `UnknownBackendError`."""
        ...

    def options_of(self, backend: str, /) -> type[BaseModel]:
        """Return the model of a backend's options."""
        ...


@dataclass(slots=True)
class Layer:
    """One layer, sorted out.

    Attributes:
        settings: the handler's settings.
        options: the connection: ``url`` and the backend's other options.
        backend: which backend the layer names itself; `UNDECIDED` when its URL can't be read.
        own_storage: the backend is an object that was handed in, and takes no options.
        lenient: names that no backend knows may be somebody else's (the environment).
    """

    settings: dict[str, Value] = field(default_factory=dict[str, Value])
    options: dict[str, Value] = field(default_factory=dict[str, Value])
    backend: Value | None = None
    own_storage: bool = False
    lenient: bool = False

    @property
    def name(self) -> str:
        """The name of the backend that this layer names; `UNDECIDED` when it names none."""
        return str(self.backend.value) if self.backend else UNDECIDED

    def known(self, backends: Backends) -> frozenset[str]:
        """Return the options of the backend that this layer names."""
        if self.own_storage or self.name == UNDECIDED:
            return frozenset()
        return frozenset(backends.options_of(self.name).model_fields)


@dataclass(slots=True)
class Merged:
    """All layers in one. ``faults`` are the errors found on the way, the strongest layer's first."""

    backend: Value
    settings: dict[str, Value]
    options: dict[str, Value]
    own_storage: bool
    faults: list[ConfigError]


def merge(layers: Sequence[Layer], backends: Backends) -> Merged:
    """Return the merge of ``layers``, which come strongest first."""
    default = Layer(backend=Value(DEFAULT_BACKEND, Origin("default", "default: backend", Path.cwd())))
    named, named_at = default, len(layers)
    settings: dict[str, Value] = {}
    options: dict[str, tuple[int, Value]] = {}
    for rank in reversed(range(len(layers))):
        layer = layers[rank]
        settings |= layer.settings
        if layer.backend:
            if named is not default and named.name != layer.name:
                options.clear()
            named, named_at = layer, rank
        if "url" in layer.options:
            options = {key: item for key, item in options.items() if not item[1].bound}
        options |= {key: (rank, value) for key, value in layer.options.items()}
    faults = [fault for layer in layers if layer.backend for fault in _misfits(layer.options, layer, layer, backends)]
    merged = Merged(cast("Value", named.backend), settings, {}, named.own_storage, faults)
    for key, (rank, value) in options.items():
        if key in named.known(backends):
            merged.options[key] = value
        elif layers[rank].backend is None:
            strays = _misfits({key: value}, layers[rank], named, backends)
            merged.faults += [fault for fault in strays if rank < named_at or isinstance(fault, UnknownSettingError)]
    merged.faults += [one.fault for one in (merged.backend, *settings.values(), *merged.options.values()) if one.fault]
    return merged


class UnknownSettingError(ConfigError):
    """No setting has that name."""


def _misfits(options: Mapping[str, Value], layer: Layer, named: Layer, backends: Backends) -> Iterator[ConfigError]:
    """Yield an error for each option of ``layer`` that the backend of ``named`` doesn't take."""
    if named.name == UNDECIDED:
        return
    for key in [one for one in options if one not in named.known(backends)]:
        where = options[key].origin.where
        owners = [name for name in backends.backends() if key in backends.options_of(name).model_fields]
        if owners:
            origin = cast("Value", named.backend).origin
            yield ConfigError(
                f"{where}: {key!r} can't apply to the backend {named.name!r} ({origin.source}).",
                remedy=f"It belongs to {' and '.join(owners)}.",
            )
        elif not layer.lenient:
            from agentstate.config.settings import SETTINGS

            known = {*SETTINGS, *SPECIAL, *named.known(backends)}
            yield UnknownSettingError(f"{where}: unknown setting {key!r}.", remedy=nearest(key, known))
