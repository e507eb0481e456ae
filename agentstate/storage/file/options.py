"""What the file backend can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, model_validator

__all__ = ["DIRECTORY", "Durability", "FileOptions"]

DIRECTORY: Final = "./conversation_states"

Durability = Literal["full", "normal"]


class FileOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the file backend.

    Attributes:
        url: ``file:///absolute/directory`` or ``file://./relative``, instead of ``storage_dir``.
        storage_dir: the directory, made when it is missing; ``./conversation_states`` by default.
        durability: ``full``: a commit survives a loss of power; ``normal``: the death of the process.
        allow_network_fs: don't refuse a network file system. Right only for one process.
    """

    url: str | None = None
    storage_dir: str | None = None
    durability: Durability = "full"
    allow_network_fs: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.storage_dir == "":
            raise ValueError("storage_dir is empty")
        named = _directory(self.url) if self.url is not None else None
        if named and self.storage_dir and Path(named).absolute() != Path(self.storage_dir).absolute():
            raise ValueError("url and storage_dir name two directories; give one of them")
        return self

    @property
    def directory(self) -> str:
        """The directory that these options name."""
        return (_directory(self.url) if self.url is not None else "") or self.storage_dir or DIRECTORY


def _directory(url: str) -> str:
    """Return the directory in a URL, ``""`` when it names none (``file://``)."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.query or parts.fragment:
        raise ValueError("a url for files is file:///directory")
    if parts.netloc in (".", ".."):
        return parts.netloc + unquote(parts.path)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{parts.netloc!r} is a host; a local directory has three slashes: file:///directory")
    return unquote(parts.path) if parts.path.strip("/") else ""
