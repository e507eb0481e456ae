"""From a block of the file, the environment or the decorator's arguments to a `Layer`.

All three hold the same names; ``storage`` is another one for ``backend``. Here variables are
filled in, ``config:`` is unfolded, a URL's query and a named service become options, and the
backend is told from the URL's scheme.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from agentstate.config.document import Document, Node, Origin
from agentstate.config.handlers import SECTIONS
from agentstate.config.layers import UNDECIDED, Backends, Layer
from agentstate.config.scopes import SCOPES
from agentstate.config.spelling import nearest
from agentstate.config.urls import mask, split_query
from agentstate.config.values import Raw, Value, filled_in, kind_of, plain, text_of
from agentstate.errors import ConfigError, UnknownBackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PREFIX", "Reader"]

PREFIX: Final = "AGENTSTATE_"
RESERVED: Final = frozenset({"config", "debug"})


class Reader:
    """Reads the layers of one file and one environment.

    ``faults`` collects the errors of form (no mapping, a key twice); they count whichever layer wins.
    """

    def __init__(self, document: Document | None, environ: Mapping[str, str], backends: Backends) -> None:
        self._document = document
        self._environ = environ
        self._backends = backends
        self.faults: list[ConfigError] = []

    def arguments(self, given: Mapping[str, object], source: str) -> Layer:
        """Return the layer of a call's arguments; ``storage`` may be a storage itself."""
        raw = dict[str, Raw]()
        own = given.get("storage")
        for key, value in given.items():
            if key != "storage" or value is not own or isinstance(own, str):
                origin = Origin(source, f"{source}: {key}", Path.cwd())
                self._add(raw, key, value, origin)
        layer = self._layer(raw, self._environ)
        if own is not None and not isinstance(own, str):
            origin = Origin(source, f"{source}: storage", Path.cwd())
            layer.backend = Value(getattr(own, "name", type(own).__name__), origin)
            layer.own_storage = True
        return layer

    def block(self, node: Node, path: str) -> Layer:
        """Return the layer of a block in the file."""
        return self._layer(self._flatten(node, path, {}), self._environ)

    def environment(self) -> Layer:
        """Return the layer of the ``AGENTSTATE_…`` variables; an empty one counts as unset."""
        raw = dict[str, Raw]()
        for name, value in self._environ.items():
            key = name.removeprefix(PREFIX).lower()
            if name.startswith(PREFIX) and value and key not in RESERVED:
                self._add(raw, key, value, Origin(f"environment {name}", f"environment: {name}", Path.cwd()))
        layer = self._layer(raw, None)
        layer.lenient = True
        return layer

    def _flatten(self, node: Node, path: str, into: dict[str, Raw]) -> dict[str, Raw]:
        document = cast("Document", self._document)
        children = node.mapping
        if children is None:
            where = document.origin(node, path).where
            self._fault(f"{where}: must be a mapping of settings, not {kind_of(node.value)}.")
            return into
        for key, line in node.repeated:
            self._fault(f"{document.origin(Node(line), f'{path}.{key}').where}: the key stands twice.")
        for key, child in children.items():
            if key == "config":
                self._flatten(child, f"{path}.config", into)
            elif key != SCOPES or path not in SECTIONS:
                self._add(into, key, child, document.origin(child, f"{path}.{key}"))
        return into

    def _add(self, into: dict[str, Raw], key: str, value: object, origin: Origin) -> None:
        if key == "config" and isinstance(value, dict):
            for inner, one in cast("dict[str, object]", value).items():
                self._add(into, inner, one, origin)
            return
        key = "backend" if key == "storage" else key
        try:
            written = plain(value)
        except ValueError as error:
            self._fault(f"{origin.where}: {error}.")
            return
        if key in into and into[key].value != written:
            self._fault(f"{origin.where}: disagrees with {into[key].origin.source}.", "Keep one of them.")
        into[key] = Raw(written, origin)

    def _fault(self, message: str, remedy: str = "") -> None:
        self.faults.append(ConfigError(message, remedy=remedy))

    def _layer(self, raw: dict[str, Raw], environ: Mapping[str, str] | None) -> Layer:
        from agentstate.config.settings import SETTINGS

        backend, service = raw.pop("backend", None), raw.pop("service", None)
        layer = Layer()
        for key, one in raw.items():
            if key in SETTINGS:
                layer.settings[key] = filled_in(one, environ)
            elif one.value is not None:
                layer.options[key] = filled_in(one, environ)
        try:
            if service and service.value is not None:
                self._add_service(layer, filled_in(service, environ))
            _unfold_query(layer)
            self._name_backend(layer, backend, environ)
        except ConfigError as error:
            self.faults.append(error)
        return layer

    def _add_service(self, layer: Layer, service: Value) -> None:
        """Take url and options from ``services.NAME.config`` (or ``services.NAME``), where not given beside it."""
        name = text_of(service)
        if "url" in layer.options:
            other = layer.options["url"].origin.source
            raise ConfigError(f"{service.origin.where}: a service and a url ({other}).", remedy="Keep one of them.")
        path, node = self._service(name, service.origin)
        document, children = cast("Document", self._document), node.mapping or {}
        if not node.text("url"):
            raise ConfigError(f"{document.origin(node, path).where}: has no url, which {service.origin.source} needs.")
        url = self._servicefilled_in(children["url"], f"{path}.url")
        layer.options["url"] = url
        if url.fault is None:
            fields = self._backends.options_of(self._scheme_backend(url)).model_fields
            for key in children.keys() & fields.keys() - layer.options.keys():
                layer.options[key] = self._servicefilled_in(children[key], f"{path}.{key}")

    def _service(self, name: str, origin: Origin) -> tuple[str, Node]:
        root = self._document.root.mapping if self._document else None
        services = ((root or {}).get("services") or Node(0)).mapping or {}
        if name not in services:
            raise ConfigError(f"{origin.where}: there is no service {name!r}.", remedy=nearest(name, services))
        node = services[name]
        config = (node.mapping or {}).get("config")
        return (f"services.{name}.config", config) if config and config.mapping else (f"services.{name}", node)

    def _servicefilled_in(self, node: Node, path: str) -> Value:
        origin = cast("Document", self._document).origin(node, path)
        try:
            written = plain(node)
        except ValueError as error:
            raise ConfigError(f"{origin.where}: {error}.") from None
        return filled_in(Raw(written, origin), self._environ)._replace(bound=True)

    def _scheme_backend(self, url: Value) -> str:
        try:
            return self._backends.backend_for_url(text_of(url))
        except UnknownBackendError as error:
            raise UnknownBackendError(f"{url.origin.where}: {error}") from None

    def _name_backend(self, layer: Layer, raw: Raw | None, environ: Mapping[str, str] | None) -> None:
        url = layer.options.get("url")
        if url:
            name = UNDECIDED if url.fault else self._scheme_backend(url)
            layer.backend = Value(name, url.origin, fault=url.fault)
        if raw is None or raw.value is None:
            return
        named = filled_in(raw, environ)
        if named.fault:
            layer.backend = layer.backend or Value(UNDECIDED, named.origin, fault=named.fault)
            return
        try:
            name = self._backends.backend_named(text_of(named))
        except UnknownBackendError as error:
            raise UnknownBackendError(f"{named.origin.where}: {error}") from None
        if url and layer.name not in {UNDECIDED, name}:
            raise ConfigError(
                f"{named.origin.where}: {name!r} disagrees with the url {mask(text_of(url))!r} ({url.origin.source}).",
                remedy="Leave the backend out: the url says it.",
            )
        layer.backend = named._replace(value=name)


def _unfold_query(layer: Layer) -> None:
    """Make options of the url's query. They belong to the url: with another one they go."""
    url = layer.options.get("url")
    if url is None or url.fault:
        return
    bare, query = split_query(text_of(url))
    layer.options["url"] = url._replace(value=bare)
    for key, value in query.items():
        beside = layer.options.get(key)
        if beside and str(beside.value) != value:
            raise ConfigError(
                f"{beside.origin.where}: disagrees with the query of the url.", remedy="Keep one of them."
            )
        layer.options.setdefault(key, url._replace(value=value, bound=True))
