"""What can be set about a PostgreSQL storage, by keyword or in its URL.

``postgresql://user:password@host:5432/database?schema_name=chat&pool_size=4`` says the same as the
keywords ``username``, ``password``, ``database``, ``schema_name`` and ``pool_size``; a keyword wins over the URL.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator

from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError

__all__ = ["PostgresqlOptions", "options_from"]

PORT: Final = 5432
SCHEMES: Final = ("postgresql", "postgres")
MAX_IDENTIFIER: Final = 63


class PostgresqlOptions(BaseModel, extra="forbid", frozen=True):
    """The settings of a `PostgresqlStorage`.

    Attributes:
        url: ``postgresql://user:password@host:5432/database`` (``postgres://`` is the same). Its user,
            password, database and query move to the fields they name.
        database: the database's name; the user's when not given.
        schema_name: the schema that holds our tables: one store. It is made when it is missing.
        pool_size: at most so many connections per event loop, beside the one to be woken by. The
            thread that renews leases has one more.
        pool_timeout: seconds to wait for a free connection.
        connect_timeout: seconds that connecting and logging in may take.
        command_timeout: seconds without an answer after which a connection is given up.
        pooler: a transaction pooler stands in between: nothing is prepared beforehand, which takes
            four round trips a turn instead of two, and waiters poll instead of being woken.
        durability: ``full`` switches ``synchronous_commit`` on for commits where it is off.
            ``server`` takes the server as it is: its crash may lose the last commits.
        ssl_mode: as in libpq.
        ssl_ca_file: certificates to trust; the system's when not given.
        ssl_cert_file: our certificate, with ``ssl_key_file`` its key.
        application_name: what ``pg_stat_activity`` shows.
    """

    url: str = "postgresql://localhost:5432"
    username: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    schema_name: str = "agentstate"
    pool_size: int = Field(default=10, ge=1)
    pool_timeout: float = Field(default=30.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    command_timeout: float = Field(default=60.0, gt=0)
    pooler: bool = False
    durability: Literal["full", "server"] = "full"
    ssl_mode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    ssl_ca_file: str | None = None
    ssl_cert_file: str | None = None
    ssl_key_file: str | None = None
    application_name: str = "agentstate"

    @model_validator(mode="before")
    @classmethod
    def _take_url_apart(cls, given: dict[str, Any]) -> dict[str, Any]:
        url = given.get("url", cls.model_fields["url"].default)
        if not isinstance(url, str):
            return given
        bare, found = _take_apart(url, cls.model_fields)
        return {**found, **given, "url": bare}

    @field_validator("schema_name")
    @classmethod
    def _fits(cls, name: str) -> str:
        if not 0 < len(name.encode()) <= MAX_IDENTIFIER or "\0" in name or name.startswith("pg_"):
            raise ConfigError(
                f"schema_name {name!r} is no name for a schema.",
                remedy=f"PostgreSQL takes 1 to {MAX_IDENTIFIER} bytes that don't begin with 'pg_'.",
            )
        return name

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return unquote(parts.hostname or "localhost"), parts.port or PORT

    @property
    def location(self) -> str:
        """The URL for people: with database and schema, without the password."""
        host, port = self.address
        user = f"{quote(self.username)}@" if self.username else ""
        shown = f"[{host}]" if ":" in host else host
        return f"postgresql://{user}{shown}:{port}/{quote(self.database or '')}?schema_name={quote(self.schema_name)}"


def options_from(url: str, settings: dict[str, Any]) -> PostgresqlOptions:
    """Return the options that keywords and a url make.

    Raises:
        ConfigError: one is unknown or wrong.
    """
    for one in settings:
        if one not in PostgresqlOptions.model_fields:
            remedy = nearest(one, PostgresqlOptions.model_fields)
            raise ConfigError(f"{one!r} is no setting of PostgreSQL.", remedy=remedy)
    try:
        return PostgresqlOptions.model_validate({"url": url, **settings})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise ConfigError(f"The setting {at!r} of PostgreSQL: {first['msg']}.") from None


def _take_apart(url: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{parts.scheme or url!r} is no URL scheme of PostgreSQL.", remedy="Say postgresql://host/database."
        )
    found = _query(parts.query, known)
    userinfo, at, host = parts.netloc.rpartition("@")
    if at:
        user, colon, password = userinfo.partition(":")
        found |= {"username": unquote(user)} if user else {}
        found |= {"password": unquote(password)} if colon and password else {}
    try:
        _ = parts.port
    except ValueError:
        raise ConfigError(f"The port in {parts.scheme}://{host} is no port.", remedy=f"Say :{PORT}.") from None
    if parts.path.strip("/"):
        found["database"] = unquote(parts.path.strip("/"))
    return f"{parts.scheme}://{host}", found


def _query(query: str, known: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name == "url":
            raise ConfigError(f"{name!r} in the URL's query is no setting of PostgreSQL.", remedy=nearest(name, known))
        found[name] = value
    return found
