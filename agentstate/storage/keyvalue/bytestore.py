"""What a byte store must offer, and how its methods are called, be they plain or ``async def``."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from agentstate.errors import StateError, StorageClosedError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Access", "ByteStore", "SwappingByteStore"]

THREADS: Final = 8


class ByteStore(Protocol):
    """Keeps bytes under text keys. Each method may be plain or ``async def``."""

    def get(self, key: str, /) -> Any:
        """Return the bytes under a key, ``None`` if there are none."""
        ...

    def set(self, key: str, value: bytes, /) -> Any:
        """Keep bytes under a key, all or nothing."""
        ...

    def delete(self, key: str, /) -> Any:
        """Remove a key. One that isn't there is no error."""
        ...

    def list_keys(self, prefix: str, /) -> Any:
        """Return the keys that begin with a text, in any order."""
        ...


@runtime_checkable
class SwappingByteStore(Protocol):
    """A byte store that can compare and swap: what makes it safe between processes."""

    def compare_and_swap(self, key: str, expected: bytes | None, new: bytes, /) -> Any:
        """Keep ``new`` if the key holds ``expected`` (``None``: nothing) now, in one step; return whether it did."""
        ...


class Access:
    """Calls a byte store's methods: plain ones on threads of its own, unless they are quick."""

    def __init__(self, kv: ByteStore, *, quick: bool) -> None:
        """``quick``: plain methods return at once, and are called on the event loop."""
        self._kv = kv
        self._quick = quick
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self.swaps = isinstance(kv, SwappingByteStore)
        self.is_async = inspect.iscoroutinefunction(kv.get)

    async def get(self, key: str) -> bytes | None:
        """Return the bytes under a key."""
        found: bytes | None = await self._call(self._kv.get, key)
        return found

    async def set(self, key: str, value: bytes) -> None:
        """Keep bytes under a key."""
        await self._call(self._kv.set, key, value)

    async def delete(self, key: str) -> None:
        """Remove a key."""
        await self._call(self._kv.delete, key)

    async def list_keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a text, sorted."""
        found: Iterable[str] = await self._call(self._kv.list_keys, prefix)
        return sorted(found)

    async def swap(self, key: str, expected: bytes | None, new: bytes) -> bool:
        """Keep ``new`` if the key holds ``expected``. Without compare-and-swap the caller keeps all others out."""
        if isinstance(self._kv, SwappingByteStore):
            return bool(await self._call(self._kv.compare_and_swap, key, expected, new))
        await self.set(key, new)
        return True

    async def _call(self, method: Callable[..., Any], *arguments: object) -> Any:
        if self._closed:
            raise StorageClosedError("This key-value storage was closed.", remedy="Make a new one.")
        try:
            call = partial(method, *arguments)
            result = call() if inspect.iscoroutinefunction(method) or self._quick else await self._on_a_thread(call)
            return await result if inspect.isawaitable(result) else result
        except (StateError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise StorageUnavailableError(
                f"The byte store {type(self._kv).__name__} failed: {error}.",
                remedy="See the error below it; what was under way may have happened.",
            ) from error

    async def _on_a_thread(self, call: Callable[[], Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="agentstate-keyvalue")
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        except RuntimeError:
            # The interpreter ends and lends no thread any more: nobody is left to be kept waiting.
            return call()
        return await future

    def close(self) -> None:
        """Call nothing more. The byte store itself stays open: who made it closes it."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False)
