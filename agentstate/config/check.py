"""What is wrong with a configuration, and what could be better; all of it at once.

Errors are what a handler would meet at its first call. Warnings and hints change nothing.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from agentstate.config.blocks import PREFIX, RESERVED
from agentstate.config.handlers import state_section
from agentstate.config.layers import SPECIAL
from agentstate.config.scopes import scope_blocks
from agentstate.config.settings import SETTINGS
from agentstate.config.urls import is_secret, mask
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentstate.config.discovery import Configuration
    from agentstate.config.document import Document, Node
    from agentstate.config.effective import Effective
    from agentstate.config.layers import Backends

__all__ = ["Finding", "Handler", "Report", "check"]

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
LOCAL: Final = {"localhost", "127.0.0.1", "::1"}
TRUST: Final = (
    "Context ids are trusted as they come unless the host says who is asking: pass the principal "
    "(owner=, or an authenticating middleware), or make ids that can't be guessed."
)


class Handler(NamedTuple):
    """A handler that exists in the program: its possible names, and its decorator's arguments."""

    names: tuple[str, ...]
    given: Mapping[str, object]


class Finding(NamedTuple):
    """One thing to mend or to think about; ``message`` begins with where it is."""

    level: Literal["error", "warning", "hint"]
    message: str


class Report(NamedTuple):
    """The findings, the gravest first, and the settings that hold: each store is in it at least once."""

    findings: tuple[Finding, ...]
    effective: tuple[Effective, ...]


def check(configuration: Configuration, backends: Backends, handlers: Sequence[Handler] | None = None) -> Report:
    """Return all findings.

    Args:
        configuration: what to check.
        backends: the registry of backends.
        handlers: all handlers of the program; ``None`` when they aren't known, then blocks
            that nobody uses aren't reported.
    """
    blocks = [Handler(block.names[:1], {}) for block in configuration.blocks()]
    found: list[Finding] = []
    settled: list[Effective] = []
    for one in (Handler((), {}), *blocks, *(handlers or ())):
        effective, faults = configuration.settle(one.names, one.given, backends=backends)
        found += [Finding("error", str(fault)) for fault in faults]
        settled += [effective] if effective else []
    for kind in _kinds(configuration):
        effective, faults = configuration.settle(backends=backends, kind=kind)
        found += [Finding("error", str(fault)) for fault in faults]
        settled += [effective] if effective else []
    found += [finding for effective in settled for finding in _advice(effective)]
    found += _environment(backends)
    if configuration.document:
        found += _written_secrets(configuration, configuration.document)
        found += _names(configuration, configuration.document, handlers)
    found.append(Finding("hint", TRUST))
    order = ("error", "warning", "hint")
    return Report(tuple(sorted(dict.fromkeys(found), key=lambda one: order.index(one.level))), tuple(settled))


def _kinds(configuration: Configuration) -> tuple[str, ...]:
    try:
        return configuration.kinds()
    except ConfigError:  # said already, as an error
        return ()


def _advice(effective: Effective) -> Iterator[Finding]:
    rows = {row.key: row for row in effective.explain}
    backend, ttl = rows["backend"], rows["ttl"]
    if backend.value == "memory":
        yield Finding("hint", f"{backend.source}: memory forgets everything when the process ends.")
    name = backend.value
    if name in ("postgresql", "valkey"):
        yield from (
            Finding("warning", f"{backend.source}: {name} without an explicit {key}; {rows[key].value!r} is used.")
            for key in ("url", "key_prefix")
            if key in rows and rows[key].source == "default"
        )
        yield from _open_server(str(effective.settings.options.get("url", "")), effective, rows["url"].source)
        if ttl.value is None:
            yield Finding("hint", f"{backend.source}: no ttl, so states stay until they are cleaned up.")
    if isinstance(ttl.value, float) and not HOUR <= ttl.value <= DAY:
        yield Finding("hint", f"{ttl.source}: a ttl of {ttl.value:g} s; 1 to 24 hours (3600 to 86400) are usual.")


def _open_server(url: str, effective: Effective, source: str) -> Iterator[Finding]:
    try:
        parts = urlsplit(url)
        known = parts.password or effective.settings.options.get("password")
        host = parts.hostname
    except ValueError:  # what is wrong with the url is said by those who read it
        return
    if host and host not in LOCAL and not known:
        yield Finding("hint", f"{source}: {host} is used without a password; protect it by AUTH and a private network.")


def _environment(backends: Backends) -> Iterator[Finding]:
    settings = {*SETTINGS, *SPECIAL, *RESERVED}
    keys = {name: name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX)}
    if settings >= set(keys.values()):
        return
    options = (backends.options_of(name).model_fields for name in backends.backends())
    known = settings.union(*options)
    for name, key in keys.items():
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near and key not in known:
            yield Finding("warning", f"environment {name}: not ours. Did you mean {PREFIX}{near[0].upper()}?")


def _written_secrets(configuration: Configuration, document: Document) -> Iterator[Finding]:
    places = [(block.node, block.path) for block in configuration.blocks()]
    try:
        section = state_section(document)
    except ConfigError:  # said already, as an error
        section = None
    if section and _kinds(configuration):
        places += scope_blocks(document, *section).values()
    for node, path in [*places, *([section] if section else [])]:
        for key, child, where in _leaves(node, path):
            text = child.value
            if isinstance(text, str) and "${" not in text and (is_secret(key) or mask(text) != text):
                message = f"{document.origin(child, where).source}: a password in the file; use ${{VARIABLE}}."
                yield Finding("warning", message)


def _leaves(node: Node, path: str) -> Iterator[tuple[str, Node, str]]:
    for key, child in (node.mapping or {}).items():
        if key == "config":
            yield from _leaves(child, f"{path}.config")
        else:
            yield key, child, f"{path}.{key}"


def _names(configuration: Configuration, document: Document, handlers: Sequence[Handler] | None) -> Iterator[Finding]:
    blocks = configuration.blocks()
    for name in dict.fromkeys(name for block in blocks for name in block.names):
        places = {
            block.entry: document.origin(block.node, block.path).source for block in blocks if name in block.names
        }
        if len(places) > 1:
            yield Finding(
                "error", f"{' and '.join(places.values())}: both are for the handler {name!r}. Rename or join them."
            )
    if handlers is None:
        return
    for name, count in Counter(one.names[0] for one in handlers if one.names).items():
        if count > 1:
            yield Finding(
                "warning", f"{count} handlers of the program are called {name!r}; give them names of their own."
            )
    used = {name for one in handlers for name in one.names}
    for block in blocks:
        if used.isdisjoint(block.names):
            where = document.origin(block.node, block.path).source
            yield Finding("warning", f"{where}: no handler is called {' or '.join(map(repr, block.names))}.")
