"""How a connection to a server comes about: driver, socket, TLS, and what is said first.

The sockets are made here and not by the event loop, since their owner must be able to close
them without a loop: in a forked child, whose parent goes on using the connection, and when
the loop they served is gone.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

from agentstate.errors import ConfigError
from agentstate.storage import registry

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from agentstate.storage.valkey.options import Address, ValkeyOptions

__all__ = ["Command", "connect", "driver", "greetings", "tls_context"]

Command = tuple[str | bytes | int | float, ...]


def driver() -> Any:
    """Return the driver, which packs commands and parses replies in C.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    return registry.driver("libvalkey", extra="valkey")


def tls_context(options: ValkeyOptions) -> ssl.SSLContext | None:
    """Return the TLS settings, or ``None`` for a plain connection.

    Raises:
        ConfigError: a file can't be read, or isn't what it should be.
    """
    if not options.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=options.ssl_ca_certs)
        context.check_hostname = options.ssl_check_hostname and options.ssl_cert_reqs == "required"
        context.verify_mode = ssl.VerifyMode[f"CERT_{options.ssl_cert_reqs.upper()}"]
        if options.ssl_certfile:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The TLS files of {options.location} can't be used: {error}.",
            remedy="Correct ssl_ca_certs, ssl_certfile and ssl_keyfile.",
        ) from error
    return context


def greetings(options: ValkeyOptions, *, sentinel: bool = False) -> list[Command]:
    """Return what a new connection to a server, or to a sentinel, says first."""
    said: list[Command] = []
    user, password = options.username, options.password
    if sentinel:
        user, password = options.sentinel_username, options.sentinel_password
    if password is not None:
        secret = password.get_secret_value()
        said.append(("AUTH", user, secret) if user else ("AUTH", secret))
    if options.db and not sentinel:
        said.append(("SELECT", options.db))
    said.append(("CLIENT", "SETNAME", options.client_name))
    return said


async def connect(loop: AbstractEventLoop, address: Address, options: ValkeyOptions) -> socket.socket:
    """Return a connected socket that doesn't block. Cancelled, it leaves none open."""
    if isinstance(address, str):
        return await _connect_to(loop, socket.socket(socket.AF_UNIX), address)
    host, port = address
    last: OSError | None = None
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return _tuned(await _connect_to(loop, socket.socket(family, kind, protocol), where), options)
        except OSError as error:
            last = error
    raise last or OSError(f"{host} has no address")


async def _connect_to(loop: AbstractEventLoop, sock: socket.socket, where: Any) -> socket.socket:
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _tuned(sock: socket.socket, options: ValkeyOptions) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(options.socket_keepalive))
    return sock
