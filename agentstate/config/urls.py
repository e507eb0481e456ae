"""What configuration needs to know about URLs: scheme, query, relative paths, and what must not be shown.

A URL's query carries options (``valkey://host?max_connections=5``). ``sqlite:///state.db``,
``rocksdb:///states`` and ``file://./states`` are relative to the configuration file that names them;
``sqlite:////var/state.db`` and ``file:///var/states`` are absolute.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote

from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["anchor", "is_secret", "mask", "scheme", "split_query"]

_USERINFO: Final = re.compile(r"(?<=://)[^/?#]*@")
_SECRET: Final = re.compile(r"pass(word|wd|phrase)|secret|token|credential", re.IGNORECASE)
_SECRET_PARAMETER: Final = re.compile(r"([?&][^=&#]*(?:pass|secret|token|credential)[^=&#]*=)[^&#]*", re.IGNORECASE)
_RELATIVE: Final = re.compile(r"(?:sqlite|rocksdb):///(?=[^/:])|file://(?=\.\.?(?:/|$))", re.IGNORECASE)


def scheme(url: str) -> str:
    """Return what stands before ``://`` (or the first colon), in lower case; ``""`` if nothing does."""
    name, colon, _ = url.partition(":")
    return name.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", name) else ""


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without its query, and the options in the query.

    Raises:
        ConfigError: an option stands in the query twice, or without a value.
    """
    bare, mark, query = url.partition("?")
    if not mark:
        return url, {}
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in options:
            raise ConfigError(f"The option {key!r} stands twice in the query of {mask(bare)}.")
        options[key] = value
    return bare, options


def mask(url: str) -> str:
    """Return the URL as it may be shown: without its password."""
    shown = _USERINFO.sub(_mask_userinfo, url)
    return _SECRET_PARAMETER.sub(r"\1***", shown)


def _mask_userinfo(match: re.Match[str]) -> str:
    user, colon, _ = match.group()[:-1].partition(":")
    return f"{user}:***@" if colon else f"{user}@"


def is_secret(option: str) -> bool:
    """Return whether an option of this name must not be shown."""
    return _SECRET.search(option) is not None


def anchor(url: str, base: Path) -> str:
    """Return the URL with a relative file path made absolute, counted from ``base``."""
    match = _RELATIVE.match(url)
    if match is None:
        return url
    absolute = os.path.abspath(base / unquote(url[match.end() :]))  # noqa: PTH100 - resolve() would follow links
    return match.group() + quote(absolute)
