"""What can be set, and what is refused before a server is asked."""

import pytest

from agentstate.errors import ConfigError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.mongodb import MongodbOptions, MongodbStorage
from agentstate.testing.turns import EVERYTHING
from tests.servers import free_port


async def test_nobody_there():
    """A server that can't be reached is a typed error that names it without the password."""
    port = free_port()
    storage = MongodbStorage(f"mongodb://me:secret@127.0.0.1:{port}", connect_timeout=0.2)
    with pytest.raises(StorageUnavailableError, match=f"127.0.0.1:{port}") as caught:
        await storage.read(StateScope.conversation("c-1"), EVERYTHING)
    assert "secret" not in str(caught.value)
    await storage.close()


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://",
        "mongo://host",
        "mongodb://host?retryWrites=true",
        "mongodb://host?w=0",
        "mongodb://host/a b",
        "mongodb://host?durability=some",
    ],
)
def test_wrong_urls(url):
    """A URL that can't be right, or that would weaken what is promised, is refused at once."""
    with pytest.raises(ConfigError):
        MongodbStorage(url)


@pytest.mark.parametrize("wrong", [5, "replicaSet", {"retryReads": "false"}])
def test_wrong_server_options(wrong):
    """What is no connection setting of MongoDB's is refused."""
    with pytest.raises(ConfigError):
        MongodbStorage(server_options=wrong)


def test_what_a_url_says():
    """User, password, database, options of ours and of MongoDB's own are taken from the URL."""
    made = registry.create(
        "mongodb", {"url": "mongodb://ada:p%40ss@one:1,two:2/agents?replicaSet=rs0&authsource=admin&socket_timeout=2"}
    )
    assert isinstance(made, MongodbStorage)
    options = made.options
    assert options.password is not None
    assert (options.username, options.password.get_secret_value()) == ("ada", "p@ss")
    assert (options.database, options.socket_timeout) == ("agents", 2.0)
    same = MongodbOptions.model_validate({**options.model_dump(), "server_options": dict(options.server_options)})
    assert hash(same) == hash(options), "stores are told apart by their options"
    assert options.client_url() == "mongodb://one:1,two:2/?replicaSet=rs0&authSource=admin"
    assert made.location == "mongodb://ada@one:1,two:2/agents"
    assert registry.backend_for_url("mongodb+srv://cluster.example") == "mongodb"
