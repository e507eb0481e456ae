"""How a connection comes about, and how it ends where its event loop can't end it."""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConfigError
from agentstate.storage import registry
from agentstate.storage.postgresql.faults import from_server, unreachable

if TYPE_CHECKING:
    from agentstate.storage.postgresql.options import PostgresqlOptions

__all__ = ["close_socket", "connect", "driver", "tls_context"]


def driver() -> Any:
    """Return asyncpg.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    return registry.driver("asyncpg", extra="postgresql")


def tls_context(options: PostgresqlOptions) -> ssl.SSLContext | str:
    """Return the TLS settings as asyncpg takes them.

    Raises:
        ConfigError: a file can't be read, or isn't what it should be.
    """
    if options.ssl_mode in ("disable", "prefer"):
        return options.ssl_mode
    try:
        context = ssl.create_default_context(cafile=options.ssl_ca_file)
        context.check_hostname = options.ssl_mode == "verify-full"
        if options.ssl_mode == "require":
            context.verify_mode = ssl.CERT_NONE
        if options.ssl_cert_file:
            context.load_cert_chain(options.ssl_cert_file, options.ssl_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The TLS files of {options.location} can't be used: {error}.",
            remedy="Correct ssl_ca_file, ssl_cert_file and ssl_key_file.",
        ) from error
    return context


async def connect(options: PostgresqlOptions, tls: ssl.SSLContext | str) -> Any:
    """Return a connection of the running loop.

    Raises:
        StorageError: the server can't be reached, or refuses us.
    """
    asyncpg = driver()
    host, port = options.address
    try:
        return await asyncpg.connect(
            host=host,
            port=port,
            user=options.username,
            password=options.password.get_secret_value() if options.password is not None else None,
            database=options.database,
            ssl=tls,
            timeout=options.connect_timeout,
            command_timeout=options.command_timeout,
            statement_cache_size=0 if options.pooler else 100,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": options.application_name},
        )
    except asyncpg.PostgresError as error:
        raise from_server(error, options.location) from error
    except TimeoutError as error:
        raise unreachable(options.location, f"no answer in {options.connect_timeout:g} s") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise unreachable(options.location, error) from error


def close_socket(connection: Any) -> None:
    """Close a connection's socket and touch nothing else: its loop is gone, or another process's.

    The descriptor goes on existing, with nothing behind it, until whoever owns it closes it.
    """
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.fileno() < 0:
        return
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, sock.fileno(), inheritable=False)
        finally:
            os.close(null)
