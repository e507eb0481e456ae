"""Which storage a command works on: the options for it, and opening and closing it."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from agentstate.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agentstate.storage.protocol import Storage

__all__ = ["AsJson", "Backend", "ConfigFile", "Target", "Tenant", "Url"]

Url = Annotated[str | None, typer.Option("--url", help="The storage's URL, as in sqlite:///state.db.")]
Backend = Annotated[str | None, typer.Option("--backend", help="The storage's backend, as in file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The configuration file.", show_default=False)]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose data.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Target(NamedTuple):
    """The storage that the options and the configuration name."""

    url: str | None
    backend: str | None
    config: Path | None

    @asynccontextmanager
    async def opened(self) -> "AsyncGenerator[Storage]":
        """Open the storage for a block.

        Raises:
            StorageUnavailableError: nothing was ever stored there; looking doesn't create it.
        """
        storage = self._storage()
        _refuse_empty(storage)
        try:
            await storage.open()
            yield storage
        finally:
            await storage.close()

    def _storage(self) -> "Storage":
        from agentstate import config
        from agentstate.storage import registry

        given = {key: value for key, value in (("url", self.url), ("backend", self.backend)) if value is not None}
        found = config.configure(self.config).effective((), given, backends=registry, source="command line")
        return registry.create(found.settings.backend, found.settings.options)


def _refuse_empty(storage: "Storage") -> None:
    if storage.name in {"sqlite", "file"} and not Path(storage.location).exists():
        raise StorageUnavailableError(
            f"There is no state in {storage.location} yet.", remedy="Name another place by --url or --config."
        )
