"""A blocking connection of its own, for the thread that renews leases.

It doesn't need an event loop: a handler that blocks its loop must not lose its turn. It is
valkey-py's client, which knows forks: a child's calls get a connection of their own. Calls are
made one after the other; a broken connection is made anew once, since renewing twice is
renewing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from agentstate.storage import registry
from agentstate.storage.valkey.faults import ServerError, closed, from_server, unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from agentstate.storage.valkey.options import ValkeyOptions
    from agentstate.storage.valkey.scripts import Script

__all__ = ["BlockingLink"]

# valkey-py takes these codes off the server's words, and puts a class in their place.
CODES = {
    "AuthenticationError": "WRONGPASS",
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
}


class BlockingLink:
    """The connection. It is made when it is first used."""

    def __init__(self, options: ValkeyOptions) -> None:
        """Begin without a connection."""
        self._options = options
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = False

    def run_all(self, script: Script, calls: Sequence[tuple[bytes, tuple[str | float, ...]]]) -> list[Any]:
        """Run a script that may run twice for each key and its arguments, in one round trip.

        Raises:
            StorageError: the server can't be reached, or refused.
        """
        commands = [("EVALSHA", script.digest, 1, key, *rest) for key, rest in calls]
        with self._lock:
            replies = self._exchange(commands)
            if any(isinstance(reply, ServerError) and reply.code == "NOSCRIPT" for reply in replies):
                replies = self._exchange([("EVAL", script.body, *command[2:]) for command in commands])
        for reply in replies:
            if isinstance(reply, ServerError):
                raise from_server(reply, self._options.location) from reply
        return replies

    def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self._closed:
            raise closed(self._options.location)
        valkey = registry.driver("valkey", extra="valkey")
        if self._client is None:
            self._client = _client(valkey, self._options)
        try:
            replies = (
                _sent_together(self._client, commands)
                if self._options.group != "cluster"
                else [_sent_alone(valkey, self._client, command) for command in commands]
            )
        except (valkey.ConnectionError, valkey.TimeoutError, OSError) as error:
            if isinstance(error, valkey.AuthenticationError):
                raise from_server(_refusal(error), self._options.location) from error
            raise unreachable(self._options.location, error) from error
        except valkey.ValkeyError as error:
            raise from_server(_refusal(error), self._options.location) from error
        return [_refusal(reply) if isinstance(reply, valkey.ValkeyError) else reply for reply in replies]

    def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def forget_inherited(self) -> None:
        """Drop what a forked child inherited."""
        self._lock = threading.Lock()
        self._client = None


def _sent_together(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    return replies


def _sent_alone(valkey: Any, client: Any, command: tuple[Any, ...]) -> Any:
    """Send one command to the node that has its key."""
    try:
        return client.execute_command(*command)
    except (valkey.ConnectionError, valkey.TimeoutError):
        raise
    except valkey.ValkeyError as error:
        return error


def _client(valkey: Any, options: ValkeyOptions) -> Any:
    tls = {
        "ssl": True,
        "ssl_ca_certs": options.ssl_ca_certs,
        "ssl_certfile": options.ssl_certfile,
        "ssl_keyfile": options.ssl_keyfile,
        "ssl_cert_reqs": options.ssl_cert_reqs,
        "ssl_check_hostname": options.ssl_check_hostname and options.ssl_cert_reqs == "required",
    }
    settings: dict[str, Any] = {
        **(tls if options.tls else {}),
        "username": options.username,
        "password": _plain(options.password),
        "client_name": options.client_name,
        "socket_keepalive": options.socket_keepalive,
        "socket_timeout": options.socket_timeout,
        "socket_connect_timeout": options.socket_connect_timeout,
    }
    if options.group == "cluster":
        nodes = [valkey.cluster.ClusterNode(*address) for address in options.addresses]
        return valkey.cluster.ValkeyCluster(startup_nodes=nodes, **settings)
    settings |= {"db": options.db, "retry": valkey.retry.Retry(valkey.backoff.NoBackoff(), 1)}
    if options.group == "sentinel":
        asking = {
            "username": options.sentinel_username,
            "password": _plain(options.sentinel_password),
            "socket_timeout": options.socket_timeout,
        }
        sentinels = valkey.sentinel.Sentinel(
            options.addresses, sentinel_kwargs={**(tls if options.tls else {}), **asking}
        )
        return sentinels.master_for(options.watched, **settings)
    address = options.address
    where = {"unix_socket_path": address} if isinstance(address, str) else {"host": address[0], "port": address[1]}
    return valkey.Valkey(**where, **settings, max_connections=1)


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _refusal(error: Exception) -> ServerError:
    code = CODES.get(type(error).__name__)
    text = str(error)
    return ServerError(text if code is None or text.startswith(code) else f"{code} {text}")
