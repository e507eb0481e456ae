"""The Lua scripts. The first line of each names the parts that go in front of it; others say where parts go."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "script"]


class Script(NamedTuple):
    """A script and the digest the server knows it by."""

    digest: str
    body: bytes


_FOLDER = files("agentstate.storage.valkey") / "lua"
_MARK = re.compile(rb"^ *-- (?:Needs|Here): (.+)$", re.MULTILINE)


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    body = _MARK.sub(_parts, f"-- Needs: {name}".encode())
    return Script(hashlib.sha1(body, usedforsecurity=False).hexdigest(), body)


def _parts(mark: re.Match[bytes]) -> bytes:
    """Return the parts that a line asks for, with those that they ask for."""
    bodies = ((_FOLDER / f"{part}.lua").read_bytes() for part in mark[1].decode().split())
    return b"\n".join(_MARK.sub(_parts, body) for body in bodies)
