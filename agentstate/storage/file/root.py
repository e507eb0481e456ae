"""A store's directory: what lies where, who is at it, and what is damaged.

::

    store.json     what this is: the format number, written last when the store is made
    boot           during which boot of the machine the feed was last known to be complete
    scopes/a/b/    one directory per scope, named by a hash of its address
    feed.jsonl     all commits in their order
    inflight/      which scopes are being written, one file for each open store
    locks/         turns, and the locks of writers
    quarantine/    copies of what was found damaged
    trash/         scopes being removed
    reserve        some bytes to give up on a full disk, so that deleting still works

All of it blocks: for worker threads, any number at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from agentstate.errors import DamagedStateError, StorageAccessError, StorageError, StorageUnavailableError
from agentstate.storage.file.feed import Feed
from agentstate.storage.file.lines import read_lines, seal
from agentstate.storage.file.marks import Marks
from agentstate.storage.file.open_logs import OpenLogs
from agentstate.storage.file.scope import FORMAT, Inconsistent, ScopeFiles, check_format
from agentstate.storage.oserrors import from_os_error
from agentstate.storage.oslock import Exclusive, MachineLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.file.disk import Disk
    from agentstate.storage.file.held import Held

__all__ = ["Root", "name_of"]

WRITE_SECONDS: Final = 30.0
OPEN_SECONDS: Final = 300.0
STALE_SECONDS: Final = 3600.0
RESERVE_BYTES: Final = 256 * 1024
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DIRECTORIES: Final = ("scopes", "inflight", "quarantine", "trash")

log = logging.getLogger("agentstate.storage")


def name_of(scope: StateScope) -> str:
    """Return the name of a scope's directory: a hash, so that no id is ever part of a path."""
    return blake2b(scope.text.encode(), digest_size=20).hexdigest()


class Root:
    """One store's directory."""

    def __init__(
        self, directory: Path, disk: Disk, *, synced: bool, clock: Callable[[], float], allow_network_fs: bool
    ) -> None:
        """Name the directory; nothing is touched before `open`."""
        self.directory = directory
        self.disk = disk
        self.synced = synced
        self.clock = clock
        self.feed = Feed(self.path("feed.jsonl"), disk)
        self.marks = Marks(self.path("inflight"), disk)
        self.logs = OpenLogs(disk)
        self._allow_network_fs = allow_network_fs
        self._locks: MachineLocks | None = None
        self._long_feed = False

    def path(self, *names: str) -> str:
        """Return the path of something in the directory."""
        return os.path.join(self.directory, *names)  # noqa: PTH118 - strings are what the disk takes

    @property
    def locks(self) -> MachineLocks:
        """The turns of this directory, once it is open."""
        assert self._locks is not None
        return self._locks

    # -- opening ---------------------------------------------------------------------------

    def open(self, reconcile: Callable[[Root], None]) -> None:
        """Make what is missing, and check what is there.

        Args:
            reconcile: brings the feed up to the scopes' files; called after a loss of power.

        Raises:
            StorageAccessError: the directory can't be made or written to, or is a file.
            NewerFormatError: a newer release made it.
        """
        try:
            with self.translated("open the state directory", self.directory):
                self._open(reconcile)
        except BaseException:
            self.close()
            raise

    def _open(self, reconcile: Callable[[Root], None]) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks = MachineLocks(self.directory / "locks", allow_network_fs=self._allow_network_fs, clock=self.clock)
        if not self._check_store():
            with self.locks.exclusive("open", OPEN_SECONDS):
                self._make_store()
        self.feed.open()
        if not self._complete():
            with self.locks.exclusive("open", OPEN_SECONDS):
                if not self._complete():
                    reconcile(self)
                    self.note_boot()
        self._tidy_up()
        self.fill_reserve()

    def _tidy_up(self) -> None:
        """Remove what processes that died left behind."""
        for left in Path(self.path("trash")).iterdir():
            shutil.rmtree(left, ignore_errors=True)
        for left in self.directory.glob("*.tmp"):
            # A younger one may be somebody's who is just writing it.
            if left.lstat().st_mtime < time.time() - STALE_SECONDS:
                self.disk.unlink(str(left))

    def note_boot(self) -> None:
        """Note that the feed is complete as long as the machine runs."""
        self.disk.write_new(self.path("boot"), _boot_id().encode())

    def _complete(self) -> bool:
        return self._read("boot") == _boot_id() and os.path.lexists(self.feed.path)

    def check(self) -> None:
        """Raise `StorageUnavailableError` when the store is no longer where it was opened."""
        if not os.path.lexists(self.path("store.json")):
            raise StorageUnavailableError(
                f"The store in {self.directory} is gone.", remedy="Put the directory back, or open it anew."
            )

    def _check_store(self) -> bool:
        data = self._read("store.json")
        if data is None:
            return False
        lines = read_lines(data.encode("utf-8", "surrogateescape"), "")
        if not lines:
            path = self.path("store.json")
            raise DamagedStateError(
                f"{path} doesn't say what this store is.",
                remedy="Restore it from a backup, or choose another directory; nothing was changed.",
            )
        check_format(lines[0].body, self.path("store.json"))
        return True

    def _make_store(self) -> None:
        if self._check_store():
            return
        for name in DIRECTORIES:
            self.disk.make_directory(self.path(name))
        if not os.path.lexists(self.feed.path):
            # There may be scopes: whoever finds no boot noted looks for them.
            self.disk.unlink(self.path("boot"))
            self.feed.create()
        body = {"format": FORMAT, "store": os.urandom(16).hex(), "made_at": self.clock(), "partitions": 1}
        self.disk.write_new(self.path("store.json"), seal(orjson.dumps(body))[0])
        self.disk.sync_directory(str(self.directory))

    def _read(self, name: str) -> str | None:
        try:
            descriptor = self.disk.open(self.path(name), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return self.disk.read(descriptor, 0, 4096).decode("utf-8", "surrogateescape")
        finally:
            self.disk.close(descriptor)

    def close(self) -> None:
        """Give back the turns, and close the files."""
        self.feed.close()
        self.marks.close()
        self.logs.close()
        if self._locks is not None:
            self._locks.close()

    # -- scopes ----------------------------------------------------------------------------

    def scope_path(self, name: str) -> str:
        """Return the directory of the scope with this `name_of`."""
        return self.path("scopes", name[0], name[1], name)

    def files(self, scope: StateScope) -> ScopeFiles:
        """Return the files of a scope, unread."""
        return ScopeFiles(scope, self.scope_path(name_of(scope)), self.disk, self.logs)

    def writing(self, name: str, seconds: float = WRITE_SECONDS) -> Exclusive:
        """Return the lock of a scope's writers."""
        return self.locks.exclusive(f"write:{name}", seconds)

    def refreshed(self, files: ScopeFiles) -> Held:
        """Return the image of a scope that is being read only, as it is now.

        Raises:
            DamagedStateError: its files aren't what was written; a copy is in quarantine.
        """
        with self.translated("read the state", files.path):
            try:
                return files.refresh(locked=False)
            except (Inconsistent, FileNotFoundError):
                # Somebody may be writing; with the lock it is certain.
                with self.writing(files.name):
                    return self.locked(files)

    def locked(self, files: ScopeFiles) -> Held:
        """Return the image of a scope whose lock the caller holds.

        Raises:
            DamagedStateError: its files aren't what was written; a copy is in quarantine.
        """
        with self.reading(files):
            return files.refresh(locked=True)

    @contextmanager
    def reading(self, files: ScopeFiles) -> Generator[None]:
        """Turn what is found wrong in a scope's files into `DamagedStateError`, with a copy in quarantine."""
        with self.translated("read the state", files.path):
            try:
                yield
            except Inconsistent as found:
                raise self._damaged(files, found) from found
            except FileNotFoundError as error:
                raise self._damaged(files, Inconsistent(str(error.filename), "it is missing")) from error

    def _damaged(self, files: ScopeFiles, found: Inconsistent) -> DamagedStateError:
        copy = self.quarantine(files.path)
        error = DamagedStateError(
            f"The state of {files.scope} is damaged: {found}.",
            scope=files.scope,
            remedy=f"Put back {files.path} from a backup, or move it away to begin anew. It was left as it is"
            + (f"; a copy is in {copy}." if copy else "."),
        )
        log.error("%s", error)
        return error

    def quarantine(self, path: str) -> str | None:
        """Copy a damaged file or directory aside, once for each content; return where it is."""
        source = Path(path)
        found = sorted(source.glob("*")) if source.is_dir() else [source]
        digest = blake2b(digest_size=8)
        try:
            for one in found:
                if one.is_file() and not one.is_symlink():
                    digest.update(one.read_bytes())
            target = Path(self.path("quarantine", f"{source.name}-{digest.hexdigest()}"))
            if target.exists():
                return str(target)
            partial = target.with_suffix(f".{os.urandom(4).hex()}")
            partial.mkdir(0o700)
            for one in found:
                if one.is_file() and not one.is_symlink():
                    shutil.copy2(one, partial / one.name)
            partial.rename(target)
        except OSError:
            log.exception("%s could not be copied to quarantine", path)
            return None
        return str(target)

    # -- the feed --------------------------------------------------------------------------

    def tell(self, news: Sequence[bytes]) -> None:
        """Add lines to the feed."""
        if news and self.feed.append(news):
            self._long_feed = True

    def tidy(self) -> None:
        """Compact the feed when it has grown to twice of what is needed."""
        if self._long_feed:
            self._long_feed = False
            try:
                self.feed.compact()
            except (OSError, StorageError):
                log.warning("the feed of %s could not be compacted", self.directory, exc_info=True)

    # -- full disks ------------------------------------------------------------------------

    def spend_reserve(self) -> bool:
        """Give the reserve up for something that frees space; return whether there was one."""
        path = Path(self.path("reserve"))
        if not path.exists():
            return False
        self.disk.unlink(str(path))
        return True

    def fill_reserve(self) -> None:
        """Keep some bytes in reserve, where there is room."""
        path = self.path("reserve")
        if os.path.lexists(path):
            return
        with suppress(OSError):
            self.disk.write_new(path, os.urandom(RESERVE_BYTES))

    @contextmanager
    def translated(self, doing: str, path: object) -> Generator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            where = Path(error.filename or str(path))
            if where.is_symlink():
                raise StorageAccessError(
                    f"{where} is a symbolic link where a file of the store should be.",
                    remedy="Remove the link; agentstate never follows links inside its directory.",
                ) from error
            raise from_os_error(error, doing, where) from error


def _boot_id() -> str:
    """Return what changes when the machine starts anew, and only then where the system tells it."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return str(round((time.time() - time.monotonic()) / 10))
