"""The connections of a storage: one client for each event loop that uses it, one for the renewing thread.

A client belongs to the loop it was first used on and is closed with it: it hangs on an
asynchronous generator, which `asyncio.run` and every other well-mannered runner closes before the
loop. A forked child leaves what it inherited alone and makes clients of its own.

What a caller asks for runs in a task of its own, which the loop's set owns. So a cancelled caller
goes at once while what was sent is seen to its end, and whoever waits for the state's lock after
it finds what became of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

from agentstate.storage import registry
from agentstate.storage.mongodb.faults import closed, typed
from agentstate.storage.mongodb.keys import FEED, HISTORY, METADATA, STATES, TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.collection import Collection

    from agentstate.scope import StateScope
    from agentstate.storage.mongodb.options import MongodbOptions
    from agentstate.storage.mongodb.view import View

__all__ = ["Connections", "LoopConnections"]

Document = dict[str, Any]
T = TypeVar("T")


class LoopConnections:
    """What one event loop has: its client, the views it keeps, and the calls under way.

    Attributes:
        skew: the server's clock minus ours, in seconds.
        views: the states used last.
        scans: the server reads a whole collection for every question that isn't for one ``_id``.
        settled_in: how long carrying over took last, in seconds.
        closing: set when there is no time to wait any more.
        unsettled: scopes, by key, with commits of ours that only the chain holds.
        home: this loop's name among those who wait for turns.
        waiting: when each of this loop's waiters, by nonce, was seen last.
        others: the same of another loop's waiters, as it told last.
        told: when the others were told, on this machine's monotonic clock.
        feed_ends: the position after the last one seen in each partition's feed.
    """

    def __init__(self, options: MongodbOptions) -> None:
        """Begin with a client that connects on first use, on the running loop."""
        pymongo = registry.driver("pymongo", extra="mongodb")
        self.loop = asyncio.get_running_loop()
        self.location = options.location
        self.opening = asyncio.Lock()
        self.opened = False
        self.skew = 0.0
        self.views: OrderedDict[StateScope, View] = OrderedDict()
        self.unsettled: dict[str, StateScope] = {}
        self.feed_ends: dict[int, int] = {}
        self.settler: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()
        self.settled_in = 0.0
        self.scans = False
        self.home = secrets.token_hex(8)
        self.waiting: dict[int, float] = {}
        self.told = 0.0
        self.others: dict[int, float] = {}
        self._watchers: dict[StateScope, set[asyncio.Future[None]]] = {}
        self._options = options
        self._locks: weakref.WeakValueDictionary[StateScope, asyncio.Lock] = weakref.WeakValueDictionary()
        self._calls: set[asyncio.Task[Any]] = set()
        self._ended = False
        self._last_task: asyncio.Task[None] | None = None
        try:
            self.client: Any = pymongo.AsyncMongoClient(options.client_url(), **options.client_settings())
        except Exception as error:
            raise typed(error, self.location) from error
        self._database = self.client[options.database]
        self._life = self._until_the_loop_ends()

    async def start(self) -> None:
        """Hang the set on its loop's life."""
        await anext(self._life)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._ended = True
            await self.client.close()

    def collection(self, name: str) -> AsyncCollection[Document]:
        """Return one of the collections."""
        found: AsyncCollection[Document] = self._database[self._options.collection_prefix + name]
        return found

    @property
    def transitions(self) -> AsyncCollection[Document]:
        """The chains: the truth."""
        return self.collection(TRANSITIONS)

    @property
    def states(self) -> AsyncCollection[Document]:
        """Entries, one document each."""
        return self.collection(STATES)

    @property
    def history(self) -> AsyncCollection[Document]:
        """Log items, one document each."""
        return self.collection(HISTORY)

    @property
    def metadata(self) -> AsyncCollection[Document]:
        """What listings ask for, idempotency keys, failed turns, and the store's own record."""
        return self.collection(METADATA)

    @property
    def feed(self) -> AsyncCollection[Document]:
        """The commits of each partition in their order."""
        return self.collection(FEED)

    def lock(self, scope: StateScope) -> asyncio.Lock:
        """Return the lock that orders this loop's calls for a state."""
        found = self._locks.get(scope)
        if found is None:
            found = self._locks[scope] = asyncio.Lock()
        return found

    def watch(self, scope: StateScope) -> asyncio.Future[None]:
        """Return a future that is resolved when this loop adds to a state's chain; `unwatch` it afterwards."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._watchers.setdefault(scope, set()).add(future)
        return future

    def unwatch(self, scope: StateScope, future: asyncio.Future[None]) -> None:
        """Watch no longer."""
        watchers = self._watchers.get(scope, set())
        watchers.discard(future)
        if not watchers:
            self._watchers.pop(scope, None)

    def moved(self, scope: StateScope) -> None:
        """Tell those who watch a state that its chain has grown."""
        for future in self._watchers.get(scope, ()):
            if not future.done():
                future.set_result(None)

    async def own(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end, whatever becomes of who asked for it.

        Raises:
            StateError: what the call raised, the driver's errors among them.
        """
        if self._ended:
            call.close()
            raise closed(self.location)
        task = self.loop.create_task(self._typed(call))
        self._calls.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _typed(self, call: Coroutine[Any, Any, T]) -> T:
        from pymongo.errors import PyMongoError

        try:
            return await call
        except (PyMongoError, OverflowError, UnicodeEncodeError) as error:
            if self._ended:
                raise closed(self.location) from error
            raise typed(error, self.location) from error

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked may have gone: nobody else would look at it.

    def keep(self, view: View) -> None:
        """Keep a view, and drop the oldest when there are too many bytes of them."""
        self.views.pop(view.scope, None)
        view.confirmed = time.monotonic()
        self.views[view.scope] = view
        if len(self.views) % 16 == 0 or view.loaded_bytes > self._options.cache_bytes // 16:
            self._shrink()

    def _shrink(self) -> None:
        total = sum(one.loaded_bytes for one in self.views.values())
        while total > self._options.cache_bytes and len(self.views) > 1:
            total -= self.views.popitem(last=False)[1].loaded_bytes

    async def close(self) -> None:
        """Let the calls under way end, and close."""
        while self._calls:
            await asyncio.wait(set(self._calls))
        self.closing.set()
        if self.settler is not None:
            await asyncio.wait({self.settler})
        await self._life.aclose()

    def abandon(self) -> None:
        """Close from another thread, as soon as the own loop runs."""
        self._last_task = self.loop.create_task(self.close())


class Connections:
    """The sets of one storage, and the turns it holds.

    Attributes:
        held: the turns that were taken, by nonce, to be given back when the storage is closed.
    """

    def __init__(self, options: MongodbOptions) -> None:
        """Begin without any."""
        self.held: dict[int, StateScope] = {}
        self._options = options
        self._closed = False
        self._lock = threading.Lock()
        self._sets: dict[asyncio.AbstractEventLoop, LoopConnections] = {}
        self._blocking: Any = None
        _living.add(self)

    async def here(self) -> LoopConnections:
        """Return the running loop's set.

        Raises:
            StorageClosedError: the storage was closed.
            MissingDependencyError: the driver isn't installed.
        """
        found = self._sets.get(asyncio.get_running_loop())
        if found is not None:
            return found
        if self._closed:
            raise closed(self._options.location)
        made = LoopConnections(self._options)
        with self._lock:
            for loop in [loop for loop in self._sets if loop.is_closed()]:
                del self._sets[loop]
            self._sets[made.loop] = made
        await made.start()
        return made

    def blocking(self) -> Collection[Document]:
        """Return the chains for the renewing thread, over a client of its own.

        Raises:
            StorageClosedError: the storage was closed.
        """
        pymongo = registry.driver("pymongo", extra="mongodb")
        with self._lock:
            if self._closed:
                raise closed(self._options.location)
            if self._blocking is None:
                settings = {**self._options.client_settings(), "maxPoolSize": 1}
                self._blocking = pymongo.MongoClient(self._options.client_url(), **settings)
            name = self._options.collection_prefix + TRANSITIONS
            found: Collection[Document] = self._blocking[self._options.database][name]
            return found

    async def close(self) -> None:
        """Close all sets; those of other loops as soon as these run."""
        self._closed = True
        with self._lock:
            sets, self._sets = self._sets, {}
            blocking, self._blocking = self._blocking, None
        if blocking is not None:
            await asyncio.to_thread(blocking.close)
        mine = sets.pop(asyncio.get_running_loop(), None)
        for other in sets.values():
            if not other.loop.is_closed():
                other.loop.call_soon_threadsafe(other.abandon)
        if mine is not None:
            await mine.close()

    @property
    def is_closed(self) -> bool:
        """Whether the storage was closed."""
        return self._closed

    def forget_inherited(self) -> None:
        """Drop what a forked child inherited."""
        self._lock = threading.Lock()
        self.held.clear()
        _inherited.append((self._sets, self._blocking))
        self._sets, self._blocking = {}, None


_living: weakref.WeakSet[Connections] = weakref.WeakSet()
# A child keeps its parent's clients for ever: collected, they would complain that nobody closed them.
_inherited: list[object] = []


def _forget_inherited() -> None:
    for one in list(_living):
        one.forget_inherited()


os.register_at_fork(after_in_child=_forget_inherited)
