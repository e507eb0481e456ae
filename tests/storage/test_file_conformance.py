"""The file backend keeps the contract of storages."""

import random
from pathlib import Path

import orjson
import pytest

from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file.lines import read_lines, seal
from agentstate.storage.file.root import name_of
from agentstate.testing import Damage, MakeNewer, MakeStorage, ProcessSpec, StorageConformance


class TestFile(StorageConformance):
    """Files: one directory, shared by the processes of one machine, durable."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Return the state directory of this test."""
        return tmp_path / "states"

    @pytest.fixture
    def make_storage(self, directory: Path) -> MakeStorage:
        """Return a maker of storages on this test's directory."""
        return lambda clock: FileStorage(directory, clock=clock)

    @pytest.fixture
    def process_spec(self, directory: Path) -> ProcessSpec:
        """Return how worker processes open this test's directory."""
        return ProcessSpec("file", {"storage_dir": str(directory)}, ("agentstate.storage.file",))

    @pytest.fixture
    def damage(self, directory: Path) -> Damage:
        """Change or cut one byte of a file that belongs to a state."""

        def spoil(scope: StateScope, how: str, seed: int) -> str:
            chance = random.Random(seed)
            path = chance.choice(sorted(_home(directory, scope).iterdir()))
            data = bytearray(path.read_bytes())
            at = chance.randrange(len(data))
            if how == "cut":
                # What a crash leaves of the last line is no damage: cut out of the middle.
                del data[at : at + 1]
            else:
                data[at] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            return f"{how} byte {at} of {path.name}"

        return spoil

    @pytest.fixture
    def make_newer(self, directory: Path) -> MakeNewer:
        """Give the log of a state a header of a later format."""

        def raise_format(scope: StateScope) -> None:
            path = _home(directory, scope) / "log.jsonl"
            header, *lines = read_lines(path.read_bytes(), "")
            line, after = seal(orjson.dumps({**header.body, "format": 99}))
            data = [line]
            for one in lines:
                line, after = seal(orjson.dumps({k: v for k, v in one.body.items() if k not in ("sum", "len")}), after)
                data.append(line)
            path.write_bytes(b"".join(data))

        return raise_format


def _home(directory: Path, scope: StateScope) -> Path:
    name = name_of(scope)
    return directory / "scopes" / name[0] / name[1] / name
