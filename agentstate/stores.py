"""The stores of this process: one per storage that is effectively the same, opened on first use.

`aclose` closes them all; it also runs when the interpreter ends. Thread-safe; a forked child
opens stores of its own, and keeps its parent's without using or closing them.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from agentstate.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Hashable

    from agentstate.config import Effective
    from agentstate.storage.protocol import Storage

CLOSE_SECONDS = 5.0

log = logging.getLogger("agentstate.stores")

_lock = threading.Lock()
_stores: dict[Hashable, Store] = {}
_wrapped: WeakValueDictionary[int, Store] = WeakValueDictionary()
_inherited: list[Store] = []
_epoch = 0


def epoch() -> int:
    """Return a number that changes when the stores of this process are no longer to be used."""
    return _epoch


def store_for(effective: Effective) -> Store:
    """Return the store of effective settings; equal settings share one."""
    from agentstate.storage import registry

    with _lock:
        store = _stores.get(effective.store)
        if store is None:
            settings = effective.settings
            store = _stores[effective.store] = Store(registry.create(settings.backend, settings.options))
        return store


def wrap(storage: Storage) -> Store:
    """Return the store of a storage object that somebody made; the same object has one."""
    with _lock:
        store = _wrapped.get(id(storage))
        if store is None or store.storage is not storage:
            store = _wrapped[id(storage)] = Store(storage)
        return store


def open_store(storage: Storage | str | None) -> Store:
    """Return the store of a storage, of a URL, or of the configured default."""
    if storage is not None and not isinstance(storage, str):
        return wrap(storage)
    from agentstate import config
    from agentstate.storage import registry

    given: dict[str, Any] = {} if storage is None else {"url": storage}
    return store_for(config.current().effective((), given, backends=registry, source="ConversationContext"))


async def aclose() -> None:
    """Close every store that this process opened by settings; the next use opens a new one.

    Storages that were made by hand stay open: who made them closes them.
    """
    global _epoch  # noqa: PLW0603 - one per process
    with _lock:
        stores = list(_stores.values())
        _stores.clear()
        _epoch += 1
    failed: list[Exception] = []
    for store in stores:
        try:
            await store.storage.close()
        except Exception as error:  # noqa: BLE001 - the others are closed, too
            failed.append(error)
    for another in failed[1:]:  # one is raised, the others are said
        log.warning("closing a storage failed: %s", another)
    if failed:
        raise failed[0]


async def close_store(store: Store) -> None:
    """Close one store, whoever uses it; the next use of its settings opens a new one."""
    global _epoch  # noqa: PLW0603 - one per process
    with _lock:
        for key in [key for key, one in _stores.items() if one is store]:
            del _stores[key]
            _epoch += 1
    await store.storage.close()


def _begin_anew_in_child() -> None:
    global _epoch, _lock  # noqa: PLW0603 - the child's own
    _lock = threading.Lock()
    _inherited.extend(_stores.values())  # to collect them would close what is the parent's
    _stores.clear()
    _epoch += 1


os.register_at_fork(after_in_child=_begin_anew_in_child)


def _close_at_exit() -> None:
    if not _stores:
        return
    try:
        asyncio.run(asyncio.wait_for(aclose(), CLOSE_SECONDS))
    except Exception as error:  # noqa: BLE001 - the process ends: say it, and let it end
        log.warning("closing at exit failed: %r", error)


atexit.register(_close_at_exit)
