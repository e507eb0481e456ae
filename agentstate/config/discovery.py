"""Where the configuration is found, and the one that is in force in this process.

The file is looked for once, at first use, and read by whoever comes first; `configure` looks
again. The environment is read each time settings are asked for. A `Configuration` never changes,
so whoever keeps what it said compares it with `current()` by identity.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentstate.config.blocks import PREFIX, Reader
from agentstate.config.document import Document, load
from agentstate.config.handlers import HandlerBlock, blocks_for, handler_blocks, repeated_keys, state_section
from agentstate.config.layers import Backends, merge
from agentstate.config.scopes import scope_blocks
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentstate.config.effective import Effective

__all__ = ["FILES", "Configuration", "configure", "current"]

FILES: Final = ("agent_config.yaml", "agentup.yml", "agent_config.toml")


@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """What the file says, or that there is none (``document`` is ``None``)."""

    document: Document | None

    def blocks(self) -> tuple[HandlerBlock, ...]:
        """Return the blocks that handlers have in the file."""
        return handler_blocks(self.document) if self.document else ()

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of scopes that have settings of their own.

        Raises:
            ConfigError: a name is no kind of scope, or there are two sections.
        """
        section = state_section(self.document) if self.document else None
        return tuple(scope_blocks(self.document, *section)) if self.document and section else ()

    def effective(
        self,
        names: Sequence[str] = (),
        given: Mapping[str, object] | None = None,
        *,
        backends: Backends,
        source: str = "decorator",
        kind: str = "",
    ) -> Effective:
        """Return the settings of a handler, and where each comes from.

        Args:
            names: the names the handler may have in the file, the likeliest first; none: the
                settings for all handlers.
            given: settings that are stronger than the file: the decorator's arguments.
            backends: the registry of backends.
            source: what to call ``given`` in messages.
            kind: the kind of scope, for its block in the state section.

        Raises:
            ConfigError: a setting is wrong; it names the file, the line and the key.
        """
        effective, faults = self.settle(names, given, backends=backends, source=source, kind=kind)
        if effective is None:
            raise faults[0]
        return effective

    def settle(
        self,
        names: Sequence[str] = (),
        given: Mapping[str, object] | None = None,
        *,
        backends: Backends,
        source: str = "decorator",
        kind: str = "",
    ) -> tuple[Effective | None, list[ConfigError]]:
        """Do what `effective` does, but return all errors instead of raising the first."""
        from agentstate.config.effective import settle

        reader = Reader(self.document, os.environ, backends)
        layers = [reader.arguments(given or {}, source)]
        try:
            if self.document:
                reader.faults += repeated_keys(self.document)
                layers += [reader.block(block.node, block.path) for block in blocks_for(self.document, names)]
                section = state_section(self.document)
                if section:
                    own = scope_blocks(self.document, *section).get(kind)
                    layers += [reader.block(*own)] if own else []
                    layers.append(reader.block(*section))
        except ConfigError as error:
            reader.faults.append(error)
        layers.append(reader.environment())
        if reader.faults:
            return None, reader.faults
        return settle(merge(layers, backends), backends)


_lock = threading.Lock()
_current: Configuration | None = None


def configure(path: str | os.PathLike[str] | None = None) -> Configuration:
    """Read the configuration now, and use it from now on.

    Args:
        path: the file; without it, the one that ``AGENTSTATE_CONFIG`` names, else the one in
            the working directory, else none.

    Raises:
        ConfigError: the file is missing or can't be parsed, or two stand side by side.
    """
    global _current  # noqa: PLW0603 - the process has one configuration
    found = Path(path) if path is not None else _find()
    configuration = Configuration(load(found) if found else None)
    with _lock:
        _current = configuration
    return configuration


def current() -> Configuration:
    """Return the configuration in force, reading it at first use."""
    return _current or configure()


def _find() -> Path | None:
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        return Path(named)
    found = [name for name in FILES if Path(name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            f"{' and '.join(found)} stand side by side in {Path.cwd()}.",
            remedy=f"Keep one, or name the one that counts in {PREFIX}CONFIG.",
        )
    return Path(found[0]) if found else None
