"""Settings of the SQLite backend."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import BaseModel, field_validator

__all__ = ["DEFAULT_PATH", "SqliteOptions"]

DEFAULT_PATH = "agentstate.db"
URL_START = "sqlite:///"


class SqliteOptions(BaseModel, extra="forbid", frozen=True):
    """Settings of the SQLite backend.

    Attributes:
        url: ``sqlite:///relative.db`` (from the working directory) or ``sqlite:////absolute.db``.
        durability: ``full``: an acknowledged commit survives power loss; ``normal``: the death
            of the process.
        allow_network_fs: don't refuse a file on a network file system.
    """

    url: str = URL_START + DEFAULT_PATH
    durability: Literal["full", "normal"] = "full"
    allow_network_fs: bool = False

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        path = url.removeprefix(URL_START)
        if path == url or not path or path.endswith("/") or "?" in path or "#" in path or "\0" in unquote(path):
            raise ValueError(f"{url!r} is no SQLite URL: write sqlite:///state.db, or sqlite:////abs/state.db")
        if path == ":memory:":
            raise ValueError("sqlite:///:memory: would be forgotten: use memory:// instead")
        return url

    @property
    def path(self) -> Path:
        """The file that the URL names."""
        return Path(unquote(self.url.removeprefix(URL_START)))
