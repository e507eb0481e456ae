"""Making the changes that wait for one scope: together, in one line, with one sync.

The order of steps is what makes a crash between any two of them harmless:

1. a mark says that the scope is being written;
2. the line goes into the scope's log and is synced: from here on it has happened;
3. the feed gets a line; 4. the mark goes; 5. when the log is long, a snapshot begins it anew.

Whoever next writes the scope, or lists the store, and finds a mark whose writer is gone
completes step 3. Blocks: for worker threads. One thread per scope and process, and between
processes whoever has the scope's lock.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.errors import CommitUnknownError, StateError, StorageError, StorageFullError, StorageUnavailableError
from agentstate.storage.file.directory import announcement
from agentstate.storage.file.held import feed_entries
from agentstate.storage.file.journal import ops_after
from agentstate.storage.file.scope import ROTATE_BYTES, Inconsistent
from agentstate.storage.file.write import UndecidedError, append, rotate, rotation_due
from agentstate.storage.oserrors import FULL, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.storage.file.held import Held
    from agentstate.storage.file.jobs import Write
    from agentstate.storage.file.lines import Json
    from agentstate.storage.file.root import Root
    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["Outcome", "announce_missing", "perform"]

log = logging.getLogger("agentstate.storage")


class Outcome(NamedTuple):
    """How one write ended."""

    result: Any = None
    error: BaseException | None = None


def perform(
    root: Root,
    files: ScopeFiles,
    writes: Sequence[Write[Any]],
    early: Callable[[Sequence[Outcome]], None] | None = None,
) -> list[Outcome]:
    """Make these writes of one scope, in order, and return how each ended.

    Args:
        root: the store.
        files: the scope's.
        writes: what to do.
        early: hears the outcomes before housekeeping that takes a while.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(root.writing(files.name))
        except StorageError as error:
            return _finished(writes, [Outcome(error=error)] * len(writes))
        try:
            outcomes = _finished(writes, _store_or_spend(root, files, writes))
        except BaseException:
            # A step that ends like this may have been half made, and nothing of it is logged.
            files.forget()
            for write in writes:
                write.fail()
            raise
        if _dropped(files):
            # Who drops a state hears of it when its bytes are gone.
            _tidy(root, files)
        if files.held is not None and rotation_due(files):
            if early is not None:
                early(outcomes)
            _tidy(root, files)
    return outcomes


def _finished(writes: Sequence[Write[Any]], outcomes: list[Outcome]) -> list[Outcome]:
    for write, outcome in zip(writes, outcomes, strict=True):
        if outcome.error is None:
            write.finish()
        else:
            write.fail()
    return outcomes


def _store_or_spend(root: Root, files: ScopeFiles, writes: Sequence[Write[Any]]) -> list[Outcome]:
    """Store; what makes room and finds none is tried again with the reserve."""
    outcomes = _store(root, files, writes)
    again = [
        k
        for k, (write, outcome) in enumerate(zip(writes, outcomes, strict=True))
        if write.frees and isinstance(outcome.error, StorageFullError)
    ]
    if again and root.spend_reserve():
        for k, outcome in zip(again, _store(root, files, [writes[k] for k in again]), strict=True):
            outcomes[k] = outcome
        root.fill_reserve()
    return outcomes


def _store(root: Root, files: ScopeFiles, writes: Sequence[Write[Any]]) -> list[Outcome]:
    try:
        held = root.locked(files)
        told = _mark(root, files)
    except StateError as error:
        return [Outcome(error=error)] * len(writes)
    outcomes, ops = _make(held, writes, root.clock())
    failed = _append(root, files, ops) if ops else None
    if failed is None:
        if told and (not ops or _announce(root, files, ops)):
            _unmark(root, files)
        return outcomes
    files.forget()
    if told and not failed.undecided:
        _unmark(root, files)
    pairs = zip(writes, outcomes, strict=True)
    return [outcome if outcome.error else Outcome(error=failed.error_of(write, files)) for write, outcome in pairs]


def _mark(root: Root, files: ScopeFiles) -> bool:
    """Mark the scope, and return whether the feed knows all of it so far."""
    told = True
    with root.reading(files):
        # Lines that weren't written here may be those of a writer that died before it told the feed.
        if files.told != files.n and root.marks.left(files.name):
            try:
                announce_missing(root, files)
            except OSError:
                log.warning("the feed can't be told of %s; it will be told later", files.scope, exc_info=True)
                told = False
        if told:
            files.told = files.n
        root.marks.mark(files.name)
    return told


def _unmark(root: Root, files: ScopeFiles) -> None:
    # A mark that stays costs the next writer a look, no more.
    with suppress(OSError):
        root.marks.unmark(files.name)
    files.told = files.n


def _make(held: Held, writes: Sequence[Write[Any]], now: float) -> tuple[list[Outcome], list[Json]]:
    outcomes: list[Outcome] = []
    ops: list[Json] = []
    for write in writes:
        try:
            op, result = write.make(held, now)
        except StateError as error:
            outcomes.append(Outcome(error=error))
            continue
        outcomes.append(Outcome(result))
        if op is not None:
            ops.append(op)
    return outcomes, ops


class _Failed(NamedTuple):
    """Why a line wasn't logged, or (``undecided``) may or may not have been."""

    error: StorageError
    undecided: bool

    def error_of(self, write: Write[Any], files: ScopeFiles) -> StorageError:
        if self.undecided and write.commit_id:
            return CommitUnknownError(
                str(self.error), commit_id=write.commit_id, scope=files.scope, remedy="Then ask for the outcome."
            )
        return self.error


def _append(root: Root, files: ScopeFiles, ops: Sequence[Json]) -> _Failed | None:
    try:
        append(files, ops, synced=root.synced)
    except OSError as error:
        return _Failed(from_os_error(error, "write the state", Path(files.log_path)), undecided=False)
    except UndecidedError:
        said = f"The disk failed while {files.log_path} was synced."
        return _Failed(StorageUnavailableError(said, remedy="Check the disk."), undecided=True)
    return None


def _announce(root: Root, files: ScopeFiles, ops: Sequence[Json]) -> bool:
    """Tell the feed; return whether it was told. The mark stays otherwise, and somebody else will."""
    try:
        root.tell(announcement(files, feed_entries(ops)))
    except OSError:
        log.warning("the feed can't be told of %s; it will be told later", files.scope, exc_info=True)
        return False
    return True


def announce_missing(root: Root, files: ScopeFiles) -> None:
    """Tell the feed what it wasn't told of a scope whose lock the caller holds, and whose image is fresh."""
    held = files.held
    assert held is not None
    root.feed.refresh()
    known = root.feed.known(files.scope)
    told = known.n if known is not None else 0
    if told == files.n and (known is None or known.size == files.end):
        return
    entries = feed_entries(ops_after(files, told))
    if held.gone_at is not None and told < files.n and not any(stamp is None for stamp, _ in entries):
        # The log that said so went with the state.
        entries.append((None, held.gone_at))
    root.tell(announcement(files, entries))


# -- afterwards ------------------------------------------------------------------------------


def _dropped(files: ScopeFiles) -> bool:
    """Whether the log holds the bytes of a state that was dropped."""
    held = files.held
    return held is not None and held.image.stamp is None and held.gone_at is not None and files.n > files.base


def _tidy(root: Root, files: ScopeFiles) -> None:
    """Begin the log anew, behind a snapshot."""
    try:
        try:
            rotate(files)
        except OSError as error:
            if not _dropped(files) or error.errno not in FULL or not root.spend_reserve():
                raise
            rotate(files)
            root.fill_reserve()
    except (OSError, StateError, Inconsistent):
        # What was acknowledged stands in the log; the snapshot comes with a later write.
        log.warning("no snapshot could be written for %s", files.scope, exc_info=True)
        files.rotate_from = files.end + ROTATE_BYTES
        files.forget()
