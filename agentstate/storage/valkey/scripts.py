"""The Lua scripts. The first line of each names the parts that go in front of it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "script"]


class Script(NamedTuple):
    """A script and the digest the server knows it by."""

    digest: str
    body: bytes


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    folder = files("agentstate.storage.valkey") / "lua"
    own = (folder / f"{name}.lua").read_bytes()
    needs, _, _ = own.removeprefix(b"-- Needs: ").partition(b"\n")
    body = b"\n".join([*((folder / f"{part}.lua").read_bytes() for part in needs.decode().split()), own])
    return Script(hashlib.sha1(body, usedforsecurity=False).hexdigest(), body)
