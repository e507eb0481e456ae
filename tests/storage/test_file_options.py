"""What the file backend can be told, and what it says of itself."""

import os
from pathlib import Path

import pytest

from agentstate.errors import ConfigError, StorageClosedError, StorageUnavailableError, UnsupportedError
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.file import FileStorage
from agentstate.storage.protocol import Part, Put, Storage, Wants

SCOPE = StateScope.conversation("one")


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        ({}, "conversation_states"),
        ({"storage_dir": "there"}, "there"),
        ({"url": "file:///var/states"}, "/var/states"),
        ({"url": "file://localhost/var/states"}, "/var/states"),
        ({"url": "file://./states"}, "states"),
        ({"url": "file://../states"}, "../states"),
        ({"url": "file:///with%20space"}, "/with space"),
        ({"url": "file://"}, "conversation_states"),
        ({"url": "file://", "storage_dir": "there"}, "there"),
        ({"url": "file:///var/states", "storage_dir": "/var/states"}, "/var/states"),
    ],
)
def test_where_the_files_are(options, directory):
    """The directory comes from the url or storage_dir, relative ones count from the working directory."""
    storage = registry.create("file", options)
    assert Path(storage.location) == Path(os.path.abspath(directory))  # noqa: PTH100 - as it is written


@pytest.mark.parametrize(
    "options",
    [
        {"storage_dir": ""},
        {"url": "file:///one", "storage_dir": "/two"},
        {"url": "file://host/states"},
        {"url": "http:///states"},
        {"durability": "none"},
        {"nonsense": 1},
    ],
)
def test_options_that_make_no_sense(options):
    """An option that is wrong, unknown or contradicts another is a configuration error."""
    with pytest.raises(ConfigError):
        registry.create("file", options)


def test_making_one_touches_nothing(tmp_path):
    """A storage that isn't used yet makes no directory."""
    FileStorage(tmp_path / "states")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("durability", "promise"), [("full", "power"), ("normal", "process")])
def test_what_it_promises(durability, promise):
    """Capabilities say what the durability asked for means."""
    storage = FileStorage(durability=durability)
    assert isinstance(storage, Storage)
    found = storage.capabilities
    assert (found.durability, found.shared, found.leases) == (promise, True, "machine")
    assert (found.atomic_scopes, found.partitions) == (False, 1)


async def test_several_states_in_one_commit(tmp_path):
    """A commit of several states is refused before anything is stored."""
    storage = FileStorage(tmp_path)
    parts = [Part(scope=StateScope.conversation(name), puts=[Put("s", "k", b"1")]) for name in "ab"]
    for given in (parts, []):
        with pytest.raises(UnsupportedError):
            await storage.commit(given, commit_id=1)
    assert (await storage.read(parts[0].scope, Wants())).stamp is None
    await storage.close()


async def test_a_closed_storage(tmp_path):
    """After closing, calls are refused and leaving is no error; closing again is none either."""
    storage = FileStorage(tmp_path)
    await storage.read(SCOPE, Wants())
    await storage.close()
    await storage.close()
    with pytest.raises(StorageClosedError):
        await storage.read(SCOPE, Wants())
    await storage.leave(SCOPE, 1)


async def test_a_directory_that_vanishes(tmp_path):
    """When its directory is taken away, a ping says so."""
    storage = FileStorage(tmp_path / "states")
    await storage.ping()
    (tmp_path / "states").rename(tmp_path / "gone")
    with pytest.raises(StorageUnavailableError, match="gone"):
        await storage.ping()
    await storage.close()


async def test_strange_files_are_left_alone(tmp_path):
    """What somebody else keeps in the directory is neither read nor changed."""
    (tmp_path / "context-1.json").write_text('{"context_id": "context-1"}')
    storage = FileStorage(tmp_path)
    await storage.commit([Part(scope=SCOPE, puts=[Put("s", "k", b"1")])], commit_id=1)
    await storage.close()
    assert (tmp_path / "context-1.json").read_text() == '{"context_id": "context-1"}'


def test_ids_are_never_part_of_a_path(tmp_path):
    """Whatever an id is, its files lie where its hash says, and its text stands inside."""
    import asyncio

    ids = ["../../escape", "/etc/passwd", "a\\b", "con", "." * 255, "x" * 512, "\U0001f600", "a b*?{}:"]

    async def write():
        storage = FileStorage(tmp_path / "states")
        for one in ids:
            await storage.commit([Part(scope=StateScope.user(one), puts=[Put("s", "k", b"1")])], commit_id=1)
        await storage.close()

    asyncio.run(write())
    assert [path.name for path in tmp_path.iterdir()] == ["states"]
    homes = list(tmp_path.glob("states/scopes/*/*/*"))
    assert len(homes) == len(ids)
    for home in homes:
        assert len(home.name) == 40
        assert home.name.startswith(home.parent.parent.name + home.parent.name)
