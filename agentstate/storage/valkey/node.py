"""One server, and one event loop's connection to it, made anew when it has broken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentstate.storage.valkey.faults import LostError, ServerError, closed, from_server, unreachable
from agentstate.storage.valkey.pipeline import Pipeline, dial

if TYPE_CHECKING:
    import ssl

    from agentstate.storage.valkey.options import Address, ValkeyOptions

__all__ = ["Node"]


class Node:
    """A server as one event loop sees it.

    Attributes:
        pipeline: the connection, open or broken; ``None`` before the first.
    """

    def __init__(self, address: Address, options: ValkeyOptions, tls: ssl.SSLContext | None) -> None:
        """Begin without a connection."""
        self.address = address
        self.pipeline: Pipeline | None = None
        self._options = options
        self._tls = tls
        self._dialing: asyncio.Task[Pipeline] | None = None
        self._ended = False

    def found(self) -> Pipeline | None:
        """Return the connection, if it is open."""
        found = self.pipeline
        return found if found is not None and found.is_open else None

    async def open(self) -> Pipeline:
        """Return the connection, made anew when it has broken.

        Raises:
            StorageError: the server can't be reached, or refuses us.
            StorageClosedError: the storage was closed.
        """
        found = self.found()
        if found is not None:
            return found
        if self._ended:
            raise closed(self._options.location)
        if self._dialing is None or self._dialing.done():
            self._dialing = asyncio.get_running_loop().create_task(self._dial())
        # The connection is everybody's: who is cancelled while it is made leaves it to the others.
        return await asyncio.shield(self._dialing)

    async def _dial(self) -> Pipeline:
        where = self._options.location
        try:
            self.pipeline = await dial(self.address, self._options, self._tls)
        except ServerError as error:
            raise from_server(error, where) from error
        except TimeoutError:
            raise unreachable(where, f"no answer in {self._options.socket_connect_timeout:g} s") from None
        except (OSError, LostError) as error:
            raise unreachable(where, error) from error
        if self._ended:
            self.abort()
            raise closed(where)
        return self.pipeline

    def end(self) -> None:
        """Close at once, and connect no more."""
        self._ended = True
        self.abort()

    def abort(self) -> None:
        """Close the connection at once; what is under way is lost."""
        if self.pipeline is not None:
            self.pipeline.abort()
