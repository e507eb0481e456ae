"""A table of backends whose options are like the real ones, so that configuration is tested by itself."""

import os
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, SecretStr

from agentstate.config import Configuration, discovery
from agentstate.config.document import load
from agentstate.config.spelling import nearest
from agentstate.config.urls import mask, scheme
from agentstate.errors import UnknownBackendError


class Memory(BaseModel, extra="forbid", frozen=True):
    url: str = "memory://"


class File(BaseModel, extra="forbid", frozen=True):
    url: str | None = None
    storage_dir: str | None = None


class Sqlite(BaseModel, extra="forbid", frozen=True):
    url: str = "sqlite:///agentstate.db"
    durability: str = "full"


class Valkey(BaseModel, extra="forbid", frozen=True):
    url: str = "valkey://localhost:6379"
    key_prefix: str = "agentstate:"
    db: int | None = None
    max_connections: Annotated[int, Field(gt=0)] = 50
    retry_on_timeout: bool = False
    socket_keepalive: bool = True
    username: str | None = None
    password: SecretStr | None = None
    ssl_ca_certs: Path | None = None


MODELS = {"memory": Memory, "file": File, "sqlite": Sqlite, "valkey": Valkey}
SCHEMES = {**{name: name for name in MODELS}, "redis": "valkey", "valkeys": "valkey"}


class Table:
    def backends(self):
        return tuple(MODELS)

    def backend_named(self, name):
        if name not in MODELS:
            raise UnknownBackendError(f"There is no backend {name!r}.", remedy=nearest(name, MODELS))
        return name

    def backend_for_url(self, url):
        if scheme(url) not in SCHEMES:
            raise UnknownBackendError(f"No backend has the scheme of {mask(url)!r}.")
        return SCHEMES[scheme(url)]

    def options_of(self, backend):
        return MODELS[backend]


@pytest.fixture
def backends():
    return Table()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty working directory, an environment without our variables, no configuration yet."""
    for name in [one for one in os.environ if one.startswith("AGENTSTATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "_current", None)
    return tmp_path


@pytest.fixture
def configured(directory, backends):
    """Returns a function: the text of a YAML file to its configuration."""

    def write(text, name="agent_config.yaml"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return Configuration(load(path))

    return write


@pytest.fixture
def effective(configured, backends):
    """Returns a function: YAML text, handler names and arguments to effective settings."""

    def resolve(text, names=(), name="agent_config.yaml", **given):
        return configured(text, name).effective(names, given, backends=backends)

    return resolve
