"""What can be set about a Valkey storage, by keyword or in its URL.

``valkey://user:password@host:6379/2?max_connections=4`` says the same as the keywords
``username``, ``password``, ``db`` and ``max_connections``; a keyword wins over the URL.
``valkey+cluster://a:6379,b:6379`` names some nodes of a cluster, which know the others, and
``valkey+sentinel://a:26379,b:26379/name/2`` sentinels, which know where ``name`` is served.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError

__all__ = ["Address", "ValkeyOptions", "options_from", "shown"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
PLAIN_SCHEMES: Final = ("valkey", "redis")
TLS_SCHEMES: Final = ("valkeys", "rediss")
GROUPS: Final = ("cluster", "sentinel")
SERVERS: Final = (*PLAIN_SCHEMES, *TLS_SCHEMES)
SCHEMES: Final = (*SERVERS, "unix", *(f"{one}+{group}" for one in SERVERS for group in GROUPS))

Address = str | tuple[str, int]
"""The path of a Unix socket, or host and port."""


class ValkeyOptions(BaseModel, extra="forbid", frozen=True):
    """The settings of a `ValkeyStorage`.

    Attributes:
        url: ``valkey://``, ``redis://`` (plain), ``valkeys://``, ``rediss://`` (TLS), ``unix://path``,
            and with ``+cluster`` or ``+sentinel`` behind the scheme several servers, see above.
            Its password and query move to the fields they name.
        key_prefix: begins every key. No ``{`` or ``}``, since the partition in braces follows it.
        db: the database's number; a cluster has only 0.
        max_connections: at most so many connections per event loop. It needs one, and a second
            one to be woken when a turn becomes free (with ``1`` it only polls). The thread that
            renews leases has one more.
        retry_on_timeout: read once more when a reply takes longer than ``socket_timeout``.
            (After a broken connection it always does; a commit is never blindly repeated.)
        socket_keepalive: let the operating system find dead connections.
        socket_timeout: seconds without a reply after which a connection is given up.
        socket_connect_timeout: seconds that connecting and logging in may take.
        failover_timeout: seconds that calls wait, in a cluster and with sentinels, for another
            server to take over from one that has gone. A commit that may have been done before
            is asked about for at most 10.
        sentinel_username: for the sentinels, where they ask for one; so is ``sentinel_password``.
        durability: ``full`` demands ``appendonly yes`` and ``appendfsync always`` of the server, so
            that an acknowledged commit survives power loss. ``server`` takes the server as it is:
            with ``appendfsync everysec`` its crash may lose the last second or two of
            acknowledged commits, without an append-only file everything since its last snapshot.
        allow_eviction: open a server whose ``maxmemory-policy`` may drop states when memory is short.
        client_name: what ``CLIENT LIST`` shows.
    """

    url: str = "valkey://localhost:6379"
    key_prefix: str = "agentstate:"
    db: int = Field(default=0, ge=0)
    username: str | None = None
    password: SecretStr | None = None
    max_connections: int = Field(default=10, ge=1)
    retry_on_timeout: bool = False
    socket_keepalive: bool = True
    socket_timeout: float = Field(default=5.0, gt=0)
    socket_connect_timeout: float = Field(default=5.0, gt=0)
    failover_timeout: float = Field(default=15.0, ge=0)
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_check_hostname: bool = True
    durability: Literal["server", "full"] = "server"
    allow_eviction: bool = False
    client_name: str = Field(default="agentstate", pattern=r"^[!-~]+$")

    @model_validator(mode="before")
    @classmethod
    def _take_url_apart(cls, given: dict[str, Any]) -> dict[str, Any]:
        url = given.get("url", cls.model_fields["url"].default)
        if not isinstance(url, str):
            return given
        bare, found = _take_apart(url, cls.model_fields)
        return {**found, **given, "url": bare}

    @field_validator("key_prefix")
    @classmethod
    def _no_braces(cls, prefix: str) -> str:
        if "{" in prefix or "}" in prefix:
            raise ConfigError(
                f"key_prefix {prefix!r} holds a brace.", remedy="Braces mark the partition; use ':' or '/' instead."
            )
        return prefix

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.group == "cluster" and self.db:
            raise ConfigError(f"db {self.db} in a cluster.", remedy="A cluster has only the database 0.")
        if self.group == "sentinel" and not self.watched:
            raise ConfigError(
                f"{self.url} doesn't say what the sentinels watch.",
                remedy="Write the name they know it by behind them: valkey+sentinel://host:26379/name.",
            )
        return self

    @cached_property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme.partition("+")[0] in TLS_SCHEMES

    @cached_property
    def group(self) -> Literal["cluster", "sentinel"] | None:
        """What the url's addresses are of; ``None``: there is one server."""
        _, _, group = urlsplit(self.url).scheme.partition("+")
        return "cluster" if group == "cluster" else "sentinel" if group else None

    @cached_property
    def watched(self) -> str:
        """The name that the sentinels know the server by."""
        return unquote(urlsplit(self.url).path.strip("/")) if self.group == "sentinel" else ""

    @cached_property
    def addresses(self) -> tuple[Address, ...]:
        """The server's address; in a group those of the nodes or sentinels that are named."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return (unquote(parts.netloc + parts.path),)
        port = SENTINEL_PORT if self.group == "sentinel" else PORT
        return tuple(_host_and_port(one, port) for one in parts.netloc.split(","))

    @property
    def address(self) -> Address:
        """The first of them."""
        return self.addresses[0]

    @property
    def location(self) -> str:
        """The URL for people: with the database, without the password."""
        parts = urlsplit(self.url)
        user = f"{quote(self.username)}@" if self.username else ""
        if parts.scheme == "unix":
            return f"unix://{user}{parts.netloc}{parts.path}?db={self.db}"
        hosts = ",".join(shown(one) for one in self.addresses)
        watched = f"/{quote(self.watched)}" if self.watched else ""
        return f"{parts.scheme}://{user}{hosts}{watched}" + ("" if self.group == "cluster" else f"/{self.db}")


def options_from(url: str, settings: dict[str, Any]) -> ValkeyOptions:
    """Return the options that keywords and a url make.

    Raises:
        ConfigError: one is unknown or wrong.
    """
    for one in settings:
        if one not in ValkeyOptions.model_fields:
            raise ConfigError(f"{one!r} is no setting of Valkey.", remedy=nearest(one, ValkeyOptions.model_fields))
    try:
        return ValkeyOptions.model_validate({"url": url, **settings})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise ConfigError(f"The setting {at!r} of Valkey: {first['msg']}.") from None


def shown(address: Address) -> str:
    """Return an address as URLs write it."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or port


def _take_apart(url: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{parts.scheme or url!r} is no URL scheme of Valkey.", remedy=nearest(parts.scheme, SCHEMES))
    found = _query(parts.query, known)
    userinfo, at, host = parts.netloc.rpartition("@")
    if at:
        user, colon, password = userinfo.partition(":")
        found |= {"username": unquote(user)} if user else {}
        found |= {"password": unquote(password)} if colon and password else {}
    path = parts.path
    if parts.scheme != "unix":
        for one in host.split(","):
            try:
                _host_and_port(one, PORT)
            except ValueError:
                raise ConfigError(f"The port in {parts.scheme}://{host} is no port.", remedy=f"Say :{PORT}.") from None
        path = path.strip("/")
        if parts.scheme.endswith("+sentinel"):
            path, _, db = path.partition("/")
            found |= {"db": db} if db else {}
            path = f"/{path}"
        elif path:
            found["db"], path = path, ""
    elif not path:
        raise ConfigError("unix:// without a path.", remedy="Say unix:///run/valkey.sock.")
    return f"{parts.scheme}://{host}{path}", found


def _query(query: str, known: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name == "url":
            raise ConfigError(f"{name!r} in the URL's query is no setting of Valkey.", remedy=nearest(name, known))
        found[name] = value
    return found
