"""What can be set about a MongoDB storage, by keyword or in its URL.

``mongodb://user:password@host:27017/mydb?replicaSet=rs0&socket_timeout=2`` names server and
database, hands MongoDB's own connection settings to the driver, and sets an option of ours. A
keyword wins over the URL.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError

__all__ = ["MongodbOptions", "options_from"]

SCHEMES: Final = ("mongodb", "mongodb+srv")
DATABASE: Final = "agentstate"
# MongoDB's own settings that may stand in a URL. What decides how we read, write or retry isn't among them.
SERVER_OPTIONS: Final = (
    "appName",
    "authMechanism",
    "authMechanismProperties",
    "authSource",
    "compressors",
    "directConnection",
    "heartbeatFrequencyMS",
    "maxIdleTimeMS",
    "replicaSet",
    "serverMonitoringMode",
    "srvMaxHosts",
    "srvServiceName",
    "tls",
    "tlsAllowInvalidCertificates",
    "tlsAllowInvalidHostnames",
    "tlsCAFile",
    "tlsCertificateKeyFile",
    "tlsCertificateKeyFilePassword",
    "tlsDisableOCSPEndpointCheck",
    "tlsInsecure",
    "zlibCompressionLevel",
)
_BY_LOWER: Final = {one.lower(): one for one in SERVER_OPTIONS}


class MongodbOptions(BaseModel, extra="forbid", frozen=True):
    """The settings of a `MongodbStorage`.

    Attributes:
        url: ``mongodb://host:port/database`` or ``mongodb+srv://…``. Its user, password, database
            and query move to the fields they name.
        database: the database's name.
        collection_prefix: begins the names of the five collections.
        server_options: MongoDB's own connection settings, given as ``{"replicaSet": "rs0"}``.
        max_connections: at most so many connections per event loop.
        socket_timeout: seconds without a reply after which a connection is given up.
        connect_timeout: seconds that finding and reaching a server may take.
        durability: ``full`` lets every commit wait for the server's journal (``j: true``), so that
            it survives power loss. ``server`` takes the server as it is.
        cache_bytes: how much of the states used last is kept per event loop. It is never stale:
            what is kept counts only if nothing was added to the state since.
    """

    url: str = "mongodb://localhost:27017"
    username: str | None = None
    password: SecretStr | None = None
    database: str = Field(default=DATABASE, pattern=r"^[A-Za-z0-9_-]{1,63}$")
    collection_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,100}$")
    server_options: tuple[tuple[str, str], ...] = ()
    max_connections: int = Field(default=20, ge=1)
    socket_timeout: float = Field(default=5.0, gt=0)
    connect_timeout: float = Field(default=5.0, gt=0)
    durability: Literal["server", "full"] = "server"
    cache_bytes: int = Field(default=16 * 2**20, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _take_url_apart(cls, given: dict[str, Any]) -> dict[str, Any]:
        url = given.get("url", cls.model_fields["url"].default)
        if not isinstance(url, str):
            return given
        bare, found = _take_apart(url, cls.model_fields)
        merged = {**found, **given, "url": bare}
        asked: Any = merged.get("server_options") or ()
        try:
            chosen: dict[Any, Any] = dict(asked)
        except (TypeError, ValueError):
            raise ConfigError(f"server_options is {asked!r}.", remedy="Say {'replicaSet': 'rs0'}.") from None
        for name in [name for name in merged if name.lower() in _BY_LOWER]:
            chosen[_BY_LOWER[name.lower()]] = merged.pop(name)
        if unknown := [str(name) for name in chosen if name not in SERVER_OPTIONS]:
            raise ConfigError(
                f"{unknown[0]!r} is no connection setting of MongoDB.", remedy=nearest(unknown[0], SERVER_OPTIONS)
            )
        return {**merged, "server_options": tuple((str(name), str(value)) for name, value in chosen.items())}

    @property
    def location(self) -> str:
        """The URL for people: with the database, without the password."""
        parts = urlsplit(self.url)
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        return f"{parts.scheme}://{user}{parts.netloc}/{self.database}"

    def client_url(self) -> str:
        """Return the URL as the driver takes it. It holds no password."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in self.server_options)
        return f"{self.url}/?{query}" if query else f"{self.url}/"

    def client_settings(self) -> dict[str, Any]:
        """Return what else the driver is told."""
        login: dict[str, Any] = {}
        if self.username is not None:
            login["username"] = self.username
            if self.password is not None:
                login["password"] = self.password.get_secret_value()
        return {
            **login,
            "maxPoolSize": self.max_connections,
            "socketTimeoutMS": int(self.socket_timeout * 1000),
            "connectTimeoutMS": int(self.connect_timeout * 1000),
            "serverSelectionTimeoutMS": int(self.connect_timeout * 1000),
            "w": "majority",
            **({"journal": True} if self.durability == "full" else {}),
            # A lost write is settled here, by what it wrote; the driver's repetition would hide whose it was.
            "retryWrites": False,
        }


def options_from(url: str, settings: dict[str, Any]) -> MongodbOptions:
    """Return the options that keywords and a url make.

    Raises:
        ConfigError: one is unknown or wrong.
    """
    known = (*MongodbOptions.model_fields, *SERVER_OPTIONS)
    for one in settings:
        if one not in known:
            raise ConfigError(f"{one!r} is no setting of MongoDB.", remedy=nearest(one, known))
    try:
        return MongodbOptions.model_validate({"url": url, **settings})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise ConfigError(f"The setting {at!r} of MongoDB: {first['msg']}.") from None


def _take_apart(url: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{parts.scheme or 'Nothing'!r} is no URL scheme of MongoDB.", remedy=nearest(parts.scheme, SCHEMES)
        )
    found = _query(parts.query, known)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    if at:
        user, colon, password = userinfo.partition(":")
        found |= {"username": unquote(user)} if user else {}
        found |= {"password": unquote(password)} if colon and password else {}
    if not hosts:
        raise ConfigError(f"{parts.scheme}:// without a host.", remedy="Say mongodb://localhost:27017.")
    if parts.path.strip("/"):
        found["database"] = unquote(parts.path.strip("/"))
    return f"{parts.scheme}://{hosts}", found


def _query(query: str, known: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "url" or (name not in known and name.lower() not in _BY_LOWER):
            raise ConfigError(
                f"{name!r} in the URL's query is no setting of MongoDB.",
                remedy=nearest(name, (*known, *SERVER_OPTIONS)),
            )
        found[name] = value
    return found
