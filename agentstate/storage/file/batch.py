"""Making the changes that wait for a scope: together, in one line with one sync; those of several scopes side by side.

The order of steps is what makes a crash between any two of them harmless:

1. a mark says that the scope is being written;
2. the line goes into the scope's log and is synced: from here on it has happened;
3. the feed gets a line; 4. the mark goes; 5. when the log is long, a snapshot begins it anew.

Whoever next writes the scope, or lists the store, and finds a mark whose writer is gone
completes step 3. Scopes that are written together share the calls of steps 1, 3 and 4, and
nothing else: each is stored, or refused, by itself.

Blocks: for worker threads. One thread per scope and process, and between processes whoever has
the scope's lock.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.errors import CommitUnknownError, StateError, StorageError, StorageFullError, StorageUnavailableError
from agentstate.storage.file.directory import announcement
from agentstate.storage.file.held import feed_entries
from agentstate.storage.file.journal import ops_after
from agentstate.storage.file.scope import ROTATE_BYTES, Inconsistent
from agentstate.storage.file.write import UndecidedError, append, compose, rotate, rotation_due, sync
from agentstate.storage.oserrors import FULL, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentstate.storage.file.jobs import Write
    from agentstate.storage.file.lines import Json
    from agentstate.storage.file.root import Root
    from agentstate.storage.file.scope import ScopeFiles
    from agentstate.storage.file.write import Composed, Written

__all__ = ["Outcome", "Writing", "announce_missing", "perform", "store", "tidy"]

log = logging.getLogger("agentstate.storage")


class Outcome(NamedTuple):
    """How one write ended."""

    result: Any = None
    error: BaseException | None = None


class Writing:
    """The writes that wait for one scope, on their way through the steps. The caller holds the scope's lock.

    Attributes:
        outcomes: how each write ended, in their order, once `store` has returned.
        marked: this scope's mark is set, and nothing keeps it from being taken away.
        failed: the line couldn't be written, or the writes weren't even tried.
        news: what the feed has to be told.
    """

    __slots__ = ("_line", "_root", "_written", "failed", "files", "marked", "news", "outcomes", "writes")

    def __init__(self, root: Root, files: ScopeFiles, writes: Sequence[Write[Any]]) -> None:
        """Begin with nothing done."""
        self.files = files
        self.writes = writes
        self.outcomes: list[Outcome] = []
        self.marked = self.failed = False
        self.news: bytes | None = None
        self._root = root
        self._line: Composed | None = None
        self._written: Written | None = None

    def prepare(self) -> bool:
        """Make the changes in memory, and return whether they were. Never blocks.

        Only where the image is all that the log says, and the feed knows all of it.
        """
        files = self.files
        if files.held is None or files.told != files.n or not files.settled():
            return False
        self.marked = True
        self._make()
        return True

    def begin(self) -> bool:
        """Bring the image up to date, and make the changes in it; return whether there is a line to write."""
        if not self.outcomes:
            try:
                if not self.files.settled():
                    self._root.locked(self.files)
                self.marked = self.files.told == self.files.n or self._told()
            except Exception as error:  # noqa: BLE001 - it belongs to the callers
                self.refuse(error)
                return False
            self._make()
        return self._line is not None

    def _told(self) -> bool:
        """Tell the feed of lines that weren't written here: their writer may have died before it did."""
        root, files = self._root, self.files
        with root.reading(files):
            try:
                if root.marks.left(files.name):
                    announce_missing(root, files)
            except OSError:
                log.warning("the feed can't be told of %s; it will be told later", files.scope, exc_info=True)
                return False
        files.told = files.n
        return True

    def _make(self) -> None:
        try:
            ops = self._apply()
            if ops:
                files = self.files
                line = self._line = compose(files, ops)
                self.news = announcement(files, feed_entries(ops), n=files.n + 1, end=files.end + len(line.data))
        except Exception as error:
            # A step that ends like this may have been half made, and nothing of it is logged.
            log.exception("a write to %s failed", self.files.scope)
            self.files.forget()
            self.refuse(error)

    def _apply(self) -> list[Json]:
        held, now = self.files.held, self._root.clock()
        assert held is not None
        ops: list[Json] = []
        for write in self.writes:
            try:
                op, result = write.make(held, now)
            except StateError as error:
                self.outcomes.append(Outcome(error=error))
                continue
            self.outcomes.append(Outcome(result))
            if op is not None:
                ops.append(op)
        return ops

    def write(self) -> None:
        """Write the line."""
        assert self._line is not None
        try:
            self._written = append(self.files, self._line)
        except OSError as error:
            self.fail(error)

    def sync(self) -> None:
        """Return when the line counts."""
        if self._written is None:
            return
        try:
            sync(self.files, self._written, synced=self._root.synced)
        except OSError as error:
            self.fail(error)
        except UndecidedError:
            said = f"The disk failed while {self.files.log_path} was synced."
            self._fail(StorageUnavailableError(said, remedy="Check the disk."), undecided=True)

    def fail(self, error: OSError) -> None:
        """Note that the line wasn't logged."""
        self._fail(from_os_error(error, "write the state", Path(self.files.log_path)))

    def _fail(self, error: StorageError, *, undecided: bool = False) -> None:
        self.files.forget()
        self.failed = True
        self.news, self.marked = None, self.marked and not undecided
        for k, (write, outcome) in enumerate(zip(self.writes, self.outcomes, strict=True)):
            if outcome.error is None:
                self.outcomes[k] = Outcome(error=self._unknown(error, write) if undecided else error)

    def _unknown(self, error: StorageError, write: Write[Any]) -> StorageError:
        if not write.commit_id:
            return error
        return CommitUnknownError(
            str(error), commit_id=write.commit_id, scope=self.files.scope, remedy="Then ask for the outcome."
        )

    def refuse(self, error: BaseException) -> None:
        """Let every write end like this."""
        self.failed = True
        self.news = self._line = None
        self.outcomes = [Outcome(error=error)] * len(self.writes)

    def close(self) -> None:
        """Do what comes after the writes, however they ended."""
        for write, (_, error) in zip(self.writes, self.outcomes, strict=True):
            if error is None:
                write.finish()
            else:
                write.fail()


def store(root: Root, todo: Sequence[Writing], written: Callable[[], None]) -> None:
    """Make the changes of some scopes, whose locks the caller holds. Their outcomes say how each ended.

    Args:
        root: the store.
        todo: what to do.
        written: is called, once, when nothing is left but to wait for the disk, and to tell of it.
    """
    try:
        ready = _written(root, todo)
    finally:
        written()
    _finish(root, ready)
    for one in todo:
        if one.failed:
            _try_with_reserve(root, one)
        one.close()


def _written(root: Root, todo: Sequence[Writing]) -> list[Writing]:
    """Make the changes and write their lines; return what goes on from there."""
    ready = [one for one in todo if one.begin()]
    try:
        root.marks.mark([one.files.name for one in ready])
    except OSError as error:
        for one in ready:
            one.fail(error)
        return []
    for one in ready:
        one.write()
    return ready


def _finish(root: Root, ready: Sequence[Writing]) -> None:
    """Let the lines reach the disk, and tell the feed."""
    for one in ready:
        one.sync()
    _tell(root, ready)
    root.marks.unmark([one.files.name for one in ready if one.marked])


def _tell(root: Root, done: Sequence[Writing]) -> None:
    """Tell the feed. Marks stay when it can't be told, and somebody else will."""
    try:
        root.tell([one.news for one in done if one.news is not None])
    except (OSError, StorageError):
        names = ", ".join(str(one.files.scope) for one in done)
        log.warning("the feed can't be told of %s; it will be told later", names, exc_info=True)
        for one in done:
            one.marked = False
    for one in done:
        if one.marked:
            one.files.told = one.files.n


def _try_with_reserve(root: Root, one: Writing) -> None:
    """Try again, with the reserve, what makes room and found none."""
    full = [k for k, outcome in enumerate(one.outcomes) if isinstance(outcome.error, StorageFullError)]
    again = [k for k in full if one.writes[k].frees]
    if again and root.spend_reserve():
        second = Writing(root, one.files, [one.writes[k] for k in again])
        _finish(root, _written(root, [second]))
        for k, outcome in zip(again, second.outcomes, strict=True):
            one.outcomes[k] = outcome
        root.fill_reserve()


def perform(root: Root, files: ScopeFiles, writes: Sequence[Write[Any]]) -> list[Outcome]:
    """Make these writes of one scope, in order, and return how each ended. Waits for the scope's lock."""
    one, lock = Writing(root, files, writes), root.writing(files.name)
    try:
        lock.take()
    except StorageError as error:
        one.refuse(error)
        one.close()
        return one.outcomes
    try:
        store(root, [one], lambda: None)
        root.marks.wipe()
        tidy(root, files)
    finally:
        lock.leave()
    return one.outcomes


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
    root.tell([announcement(files, entries, n=files.n, end=files.end)])


# -- afterwards ------------------------------------------------------------------------------


def dropped(files: ScopeFiles) -> bool:
    """Return whether the log holds the bytes of a state that was dropped: they go before anybody hears of it."""
    held = files.held
    return held is not None and held.image.stamp is None and held.gone_at is not None and files.n > files.base


def tidy(root: Root, files: ScopeFiles) -> None:
    """Begin the log anew, behind a snapshot, when it is due."""
    if files.held is None or not (dropped(files) or rotation_due(files)):
        return
    try:
        try:
            rotate(files)
        except OSError as error:
            if not dropped(files) or error.errno not in FULL or not root.spend_reserve():
                raise
            rotate(files)
            root.fill_reserve()
    except (OSError, StateError, Inconsistent):
        # What was acknowledged stands in the log; the snapshot comes with a later write.
        log.warning("no snapshot could be written for %s", files.scope, exc_info=True)
        files.rotate_from = files.end + ROTATE_BYTES
        files.forget()
