"""Which storage a command works on: the options for it, and opening and closing it."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from agentstate.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agentstate.storage.protocol import Storage

__all__ = ["AsJson", "Backend", "ConfigFile", "Target", "Tenant", "Url", "is_missing"]

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
    async def opened(self, *, create: bool = False) -> "AsyncGenerator[Storage]":
        """Open the storage for a block.

        Args:
            create: make it when it is missing.

        Raises:
            StorageUnavailableError: nothing was ever stored there; looking doesn't create it.
        """
        storage = self.storage()
        if not create and is_missing(storage):
            raise StorageUnavailableError(
                f"There is no state in {storage.location} yet.", remedy="Name another place by --url or --config."
            )
        try:
            await storage.open()
            yield storage
        finally:
            await storage.close()

    def storage(self) -> "Storage":
        """Return the storage, not yet open."""
        from agentstate import config
        from agentstate.storage import registry

        given = {key: value for key, value in (("url", self.url), ("backend", self.backend)) if value is not None}
        found = config.configure(self.config).effective((), given, backends=registry, source="command line")
        return registry.create(found.settings.backend, found.settings.options)


def is_missing(storage: "Storage") -> bool:
    """Whether nothing was ever stored there, as far as that is seen without opening it."""
    place = Path(storage.location)
    if storage.name == "file":
        place /= "store.json"  # the directory may be another system's
    return storage.name in {"sqlite", "file", "rocksdb"} and not place.exists()
