"""Settings of the SQLite backend."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict
from urllib.parse import unquote

from pydantic import BaseModel, Field, field_validator

__all__ = ["DEFAULT_PATH", "MoreOptions", "SqliteOptions"]

DEFAULT_PATH = "agentstate.db"
URL_START = "sqlite:///"


class MoreOptions(TypedDict, total=False):
    """The options beside the file, as keyword arguments."""

    durability: Literal["full", "normal"]
    cache_size: int
    page_cache_size: int
    allow_network_fs: bool


class SqliteOptions(BaseModel, extra="forbid", frozen=True):
    """Settings of the SQLite backend.

    Attributes:
        url: ``sqlite:///relative.db`` (from the working directory) or ``sqlite:////absolute.db``.
        durability: ``full``: an acknowledged commit survives power loss; ``normal``: the death
            of the process.
        cache_size: bytes of decoded states that this process keeps, so that reading a state that nobody
            has changed since costs neither a thread nor a statement; 0 keeps none.
        page_cache_size: bytes of the file's pages that SQLite keeps for each of its two connections.
        allow_network_fs: don't refuse a file on a network file system.
    """

    url: str = URL_START + DEFAULT_PATH
    durability: Literal["full", "normal"] = "full"
    cache_size: int = Field(default=16 * 1024 * 1024, ge=0)
    page_cache_size: int = Field(default=8 * 1024 * 1024, ge=0)
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
