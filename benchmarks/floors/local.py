"""Floors in this process: a dict, and a file with one synced append per turn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.workload import TAIL, TEXT, message

if TYPE_CHECKING:
    from pathlib import Path


class DictFloor:
    """References in a dict."""

    name = "floor: dict"

    def __init__(self) -> None:
        self.states: dict[str, tuple[list[Any], dict[str, Any]]] = {}

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        self.states.clear()

    async def seed(self, conversation: str, messages: int) -> None:
        self.states[conversation] = [message(n) for n in range(messages)], {"other": TEXT}

    async def turn(self, conversation: str) -> None:
        history, variables = self.states[conversation]
        _ = history[-TAIL:], variables.get("other")
        count = variables.get("count", 0)
        history += (message(count), message(count, "assistant"))
        variables["count"] = count + 1


class JsonlFloor(DictFloor):
    """The same, and a line in a file, synced: what must be written, and no more."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__()
        self.name = f"floor: one append{' + fsync' if synced else ''}"
        self.synced = synced
        self.file = os.open(directory / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    async def close(self) -> None:
        os.close(self.file)

    async def turn(self, conversation: str) -> None:
        await super().turn(conversation)
        history, variables = self.states[conversation]
        os.write(self.file, orjson.dumps([conversation, history[-2:], variables["count"]]) + b"\n")
        if self.synced:
            os.fdatasync(self.file)
