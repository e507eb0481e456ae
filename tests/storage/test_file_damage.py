"""Files that aren't what was written: said, left as they are, kept aside, and never built upon."""

import os

import orjson
import pytest

from agentstate.errors import DamagedStateError, NewerFormatError
from agentstate.scope import StateScope
from agentstate.storage.file import FileStorage
from agentstate.storage.file import scope as file_scope
from agentstate.storage.file import write as file_write
from agentstate.storage.file.lines import read_lines, seal
from agentstate.storage.protocol import Append, Part, Put, ScopeQuery, Wants
from tests.storage.filedisks import UnsyncedDisk

SCOPE, OTHER = StateScope.conversation("one"), StateScope.conversation("other")


@pytest.fixture
async def home(tmp_path, monkeypatch):
    """Return the directory of a state that has every kind of file, in a store with another state."""
    monkeypatch.setattr("agentstate.storage.file.storage.Disk", UnsyncedDisk)
    monkeypatch.setattr(file_scope, "ROTATE_BYTES", 900)
    monkeypatch.setattr(file_write, "ROTATE_BYTES", 900)
    storage = FileStorage(tmp_path)
    for number in range(1, 10):
        await put(storage, SCOPE, number)
    await storage.close()
    (found,) = tmp_path.glob("scopes/*/*/*")
    storage = FileStorage(tmp_path)
    await put(storage, OTHER, 1)
    await storage.close()
    assert {path.name.partition("-")[0] for path in found.iterdir()} == {"log.jsonl", "state.json", "items", "journal"}
    return found


async def put(storage, scope, number):
    """Commit a number as a variable and an item."""
    part = Part(
        scope=scope,
        puts=[Put("variables", "n", b"%d" % number)],
        appends=[Append("history", f"m{number}", b'"' + b"word " * 20 + b'"', unique=True)],
        record=b"{}",
    )
    return await storage.commit([part], commit_id=number)


async def picture(storage, scope=SCOPE):
    """Return everything that can be read of a state."""
    found = await storage.read(scope, Wants())
    found.now = 0
    return found, await storage.read_log(scope, "history"), await storage.journal(scope)


def name_of(path):
    """Return a file's name without its number."""
    return path.name.partition("-")[0].partition(".")[0]


async def damage_said(storage, before):
    """Return the error with which reading is refused; ``None`` when everything reads as before."""
    try:
        assert await picture(storage) == before
    except DamagedStateError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["log", "state", "items", "journal"])
@pytest.mark.parametrize("how", ["flip", "nul", "cut", "double"])
async def test_damage_anywhere(home, tmp_path, kind, how):
    """A byte changed, lost or doubled anywhere in any file of a state is damage, or changes nothing."""
    intact = FileStorage(tmp_path)
    before = await picture(intact)
    await intact.close()
    path = next(path for path in sorted(home.iterdir()) if name_of(path) == kind)
    data = path.read_bytes()
    damaged = 0
    for at in range(0, len(data), 41 if kind != "journal" else 97):
        changed = {
            "flip": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
            "nul": data[:at] + b"\0" + data[at + 1 :],
            "cut": data[:at] + data[at + 1 :],
            "double": data[: at + 1] + data[at:],
        }[how]
        path.write_bytes(changed)
        storage = FileStorage(tmp_path)
        said = await damage_said(storage, before)
        if said is not None:
            damaged += 1
            assert str(home) in str(said)
            assert said.remedy
            if kind != "journal":
                with pytest.raises(DamagedStateError):
                    await put(storage, SCOPE, 100 + at)
        assert path.read_bytes() == changed
        await storage.close()
    assert damaged > 5
    path.write_bytes(data)
    storage = FileStorage(tmp_path)
    assert await picture(storage) == before
    assert (await put(storage, OTHER, 2))[0].stamp.version == 2
    copies = list((tmp_path / "quarantine").iterdir())
    assert len(copies) == damaged
    assert all((copy / path.name).exists() for copy in copies)
    await storage.close()


@pytest.mark.parametrize("name", ["log.jsonl", "state.json", "items"])
async def test_a_missing_file(home, tmp_path, name):
    """A file that is gone is damage, not an older state."""
    path = next(path for path in home.iterdir() if path.name.startswith(name))
    path.rename(tmp_path / "away")
    storage = FileStorage(tmp_path)
    for call in (picture(storage), put(storage, SCOPE, 50)):
        with pytest.raises(DamagedStateError):
            await call
    (tmp_path / "away").rename(path)
    assert (await put(storage, SCOPE, 51))[0].stamp.version == 10
    await storage.close()


@pytest.mark.parametrize("name", ["log.jsonl", "state.json"])
async def test_an_older_file_put_back(home, tmp_path, name):
    """A single file from an older copy doesn't fit the others, and is damage."""
    old = (home / name).read_bytes()
    storage = FileStorage(tmp_path)
    for number in range(10, 20):
        await put(storage, SCOPE, number)
    await storage.close()
    (home / name).write_bytes(old)
    storage = FileStorage(tmp_path)
    with pytest.raises(DamagedStateError):
        await picture(storage)
    await storage.close()


async def test_another_states_files(home, tmp_path):
    """The files of another state in this one's place are damage: the address stands inside."""
    (other,) = (path for path in tmp_path.glob("scopes/*/*/*") if path != home)
    for path in home.iterdir():
        path.unlink()
    for path in other.iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    storage = FileStorage(tmp_path)
    with pytest.raises(DamagedStateError, match="belongs to conversation:other"):
        await picture(storage)
    await storage.close()


async def test_damage_while_it_is_cached(home, tmp_path):
    """A file changed under a running process is noticed at the next read."""
    storage = FileStorage(tmp_path)
    await picture(storage)
    path = home / "log.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:50] + b"!" + data[51:])
    os.utime(path, ns=(1, 1))
    with pytest.raises(DamagedStateError):
        await picture(storage)
    path.write_bytes(data)
    await picture(storage)
    await storage.close()


async def test_damage_leaves_the_listing_alone(home, tmp_path):
    """A damaged state stays listed, and nobody else's listing or feed suffers."""
    path = home / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"op"', b'"po"', 1))
    storage = FileStorage(tmp_path)
    with pytest.raises(DamagedStateError):
        await picture(storage)
    assert {info.scope for info in (await storage.scopes(ScopeQuery())).items} == {SCOPE, OTHER}
    assert len(await storage.feed(0)) == 10
    await storage.close()


@pytest.mark.parametrize("name", ["log.jsonl", "state.json"])
async def test_a_later_format(home, tmp_path, name):
    """A file of a later format is refused for this state only, and not copied or changed."""
    path = home / name
    lines, after, data = read_lines(path.read_bytes(), ""), "", b""
    for number, line in enumerate(lines):
        body = {key: value for key, value in line.body.items() if key not in ("sum", "len")}
        sealed, after = seal(orjson.dumps({**body, "format": 2} if number == 0 else body), after)
        data += sealed
    path.write_bytes(data)
    storage = FileStorage(tmp_path)
    for call in (picture(storage), put(storage, SCOPE, 50)):
        with pytest.raises(NewerFormatError):
            await call
    await picture(storage, OTHER)
    assert path.read_bytes() == data
    assert not list((tmp_path / "quarantine").iterdir())
    await storage.close()
