"""What can be set about a Valkey storage, by keyword or in its URL.

``valkey://user:password@host:6379/2?max_connections=4`` says the same as the keywords
``username``, ``password``, ``db`` and ``max_connections``; a keyword wins over the URL.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError

__all__ = ["ValkeyOptions", "options_from"]

PORT: Final = 6379
PLAIN_SCHEMES: Final = ("valkey", "redis")
TLS_SCHEMES: Final = ("valkeys", "rediss")
SCHEMES: Final = (*PLAIN_SCHEMES, *TLS_SCHEMES, "unix")


class ValkeyOptions(BaseModel, extra="forbid", frozen=True):
    """The settings of a `ValkeyStorage`.

    Attributes:
        url: ``valkey://``, ``redis://`` (plain), ``valkeys://``, ``rediss://`` (TLS), ``unix://path``.
            Its password and query move to the fields they name.
        key_prefix: begins every key. No ``{`` or ``}``, since the partition in braces follows it.
        db: the database's number.
        max_connections: at most so many connections per event loop. It needs one, and a second
            one to be woken when a turn becomes free (with ``1`` it only polls). The thread that
            renews leases has one more.
        retry_on_timeout: read once more when a reply takes longer than ``socket_timeout``.
            (After a broken connection it always does; a commit is never blindly repeated.)
        socket_keepalive: let the operating system find dead connections.
        socket_timeout: seconds without a reply after which a connection is given up.
        socket_connect_timeout: seconds that connecting and logging in may take.
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

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme in TLS_SCHEMES

    @property
    def address(self) -> str | tuple[str, int]:
        """Host and port, or the path of a Unix socket."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return unquote(parts.netloc + parts.path)
        return parts.hostname or "localhost", parts.port or PORT

    @property
    def location(self) -> str:
        """The URL for people: with the database, without the password."""
        parts = urlsplit(self.url)
        user = f"{quote(self.username)}@" if self.username else ""
        if parts.scheme == "unix":
            return f"unix://{user}{parts.netloc}{parts.path}?db={self.db}"
        host, port = parts.hostname or "localhost", parts.port or PORT
        return f"{parts.scheme}://{user}{f'[{host}]' if ':' in host else host}:{port}/{self.db}"


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
        try:
            _ = parts.port
        except ValueError:
            raise ConfigError(f"The port in {parts.scheme}://{host} is no port.", remedy=f"Say :{PORT}.") from None
        if path.strip("/"):
            found["db"] = path.strip("/")
        path = ""
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
