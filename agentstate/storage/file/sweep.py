"""Housekeeping over many scopes: telling the feed what it missed, and removing what has expired.

Nothing here scans the store, but for `reconcile` after a loss of power or of the feed. Each
scope is handled under its own lock, and whatever is interrupted is found again by its mark or
by its place in the queue of expiries. Blocks: for worker threads.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agentstate.errors import DamagedStateError, StateError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage.file.batch import announce_missing, perform
from agentstate.storage.file.directory import announcement, farewell
from agentstate.storage.file.jobs import Sweep, SweptScope
from agentstate.storage.file.lines import read_lines
from agentstate.storage.file.root import OPEN_SECONDS, WRITE_SECONDS, Root, name_of
from agentstate.storage.file.scope import HEADER_BYTES
from agentstate.storage.protocol import Swept

if TYPE_CHECKING:
    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["complete", "reconcile", "sweep"]

log = logging.getLogger("agentstate.storage")


# -- completing the feed ---------------------------------------------------------------------


def complete(root: Root) -> None:
    """Bring the feed up to date: tell it what writers that died didn't, and rebuild it if it is damaged."""
    with root.translated("read the feed", root.feed.path):
        _complete_marked(root, seconds=-1.0)
        try:
            root.feed.refresh()
        except FileNotFoundError:
            # Removed by somebody: rebuilt below like a damaged one.
            log.warning("the feed %s is missing", root.feed.path)
    if root.feed.damaged:
        with root.locks.exclusive("open", OPEN_SECONDS):
            _rebuild(root)


def _rebuild(root: Root) -> None:
    if os.path.lexists(root.feed.path):
        # Another process may have rebuilt it while we waited.
        root.feed.reread()
        if not root.feed.damaged:
            return
        log.error("the feed %s is damaged; a copy is in %s", root.feed.path, root.quarantine(root.feed.path))
    with root.translated("rebuild the feed", root.feed.path):
        # Should this be interrupted, the next opener goes on.
        root.disk.unlink(root.path("boot"))
        root.feed.restart()
        reconcile(root)
        root.note_boot()
        root.feed.refresh()


def reconcile(root: Root) -> None:
    """Compare the feed with the files of all scopes, by their sizes, and tell it what differs."""
    if not os.path.lexists(root.feed.path):
        root.feed.restart()
    root.feed.refresh()
    if root.feed.damaged:
        root.feed.restart()
        root.feed.refresh()
    known = {name_of(scope): (scope, one) for scope, one in root.feed.all_known().items()}
    there: set[str] = set()
    for directory in Path(root.path("scopes")).glob("*/*/*"):
        there.add(directory.name)
        one = known.get(directory.name)
        try:
            size = os.lstat(directory / "log.jsonl").st_size
        except OSError:
            size = -1
        if one is None or one[1].size != size:
            _complete_one(root, directory.name, seconds=WRITE_SECONDS)
    for name, (scope, _) in known.items():
        if name not in there:
            root.tell([farewell(scope)])
    _complete_marked(root, seconds=WRITE_SECONDS)


def _complete_marked(root: Root, *, seconds: float) -> None:
    names = root.marks.names()
    root.marks.bury([name for name in names if _complete_one(root, name, seconds=seconds)])


def _complete_one(root: Root, name: str, *, seconds: float) -> bool:
    """Tell the feed what it doesn't know of one scope; return whether it knows all, or never will."""
    try:
        with root.writing(name, seconds), root.translated("read the state", root.scope_path(name)):
            scope = _scope_of(root, name)
            if scope is None:
                _tell_gone(root, name)
            else:
                files = root.files(scope)
                root.locked(files)
                announce_missing(root, files)
            root.marks.unmark([name])
            root.marks.wipe()
    except StorageUnavailableError:
        # Somebody is writing it just now.
        return False
    except DamagedStateError:
        # It was reported, and is again to whoever asks for this state.
        return True
    except StateError:
        log.warning("the feed can't be told of %s", root.scope_path(name), exc_info=True)
        return False
    return True


def _scope_of(root: Root, name: str) -> StateScope | None:
    """Return whose directory this is, as its log says."""
    try:
        descriptor = root.disk.open(f"{root.scope_path(name)}/log.jsonl", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        lines = read_lines(root.disk.read(descriptor, 0, HEADER_BYTES), "")
    finally:
        root.disk.close(descriptor)
    return StateScope.parse(lines[0].body["scope"]) if lines else None


def _tell_gone(root: Root, name: str) -> None:
    root.feed.refresh()
    for scope in root.feed.all_known():
        if name_of(scope) == name:
            root.tell([farewell(scope)])


# -- sweeping --------------------------------------------------------------------------------


def sweep(root: Root, limit: int) -> Swept:
    """Remove at most ``limit`` expired scopes, entries and items."""
    complete(root)
    now = root.clock()
    gone: list[StateScope] = []
    left_alone: list[StateScope] = []
    entries = items = 0
    while (left := limit - len(gone) - entries - items) > 0:
        scope = root.feed.next_due(now)
        if scope is None:
            break
        swept = _sweep_scope(root, scope, left)
        if swept is None:
            left_alone.append(scope)
            continue
        gone += [scope] if swept.dropped else []
        entries, items = entries + swept.entries, items + swept.items
    for scope in left_alone:
        root.feed.put_back(scope)
    root.tidy()
    return Swept(tuple(gone), entries, items, done=left > 0)


def _sweep_scope(root: Root, scope: StateScope, limit: int) -> SweptScope | None:
    """Sweep one scope; ``None`` when its turn is held, or it can't be read."""
    nonce = secrets.randbits(62) + 1
    files = root.files(scope)
    try:
        if not root.locks.try_take(scope.text, nonce, "sweep"):
            return None
        (outcome,) = perform(root, files, [Sweep(limit)])
        if outcome.error is not None:
            raise outcome.error
        _set_due(root, files)
    except StateError as error:
        log.warning("%s can't be swept: %s", scope, error)
        return None
    finally:
        root.locks.leave(scope.text, nonce)
    swept: SweptScope = outcome.result
    return swept


def _set_due(root: Root, files: ScopeFiles) -> None:
    """Tell the feed when to sweep this next, or remove the files of a state that is gone and its tombstone with it."""
    with root.writing(files.name), root.translated("remove the state", files.path):
        held = root.locked(files)
        root.feed.refresh()
        known = root.feed.known(files.scope)
        if held.image.stamp is None and (held.due is None or held.due <= root.clock()):
            _remove(root, files.name, files.scope)
        elif known is None or known.due != held.due:
            root.tell([announcement(files, [], n=files.n, end=files.end)])
        root.feed.refresh()


def _remove(root: Root, name: str, scope: StateScope) -> None:
    trash = root.path("trash", f"{name}-{secrets.token_hex(6)}")
    root.marks.mark([name])
    # There may be no directory: then only the feed still knows of it.
    with suppress(FileNotFoundError):
        root.disk.rename(root.scope_path(name), trash)
    root.tell([farewell(scope)])
    root.marks.unmark([name])
    root.marks.wipe()
    root.logs.discard(f"{root.scope_path(name)}/log.jsonl")
    shutil.rmtree(trash, ignore_errors=True)
