"""Writing the files of a scope: appending to its log, and beginning the log anew behind a snapshot.

`append` and `sync` are atomic: a line counts once it is whole, and one that couldn't be written or
synced is cut off again. `rotate` can be interrupted between any two steps: the new snapshot takes the
old one's place in one step, log lines that it covers are skipped by their number, and the old
log keeps a name until nobody needs its records.

The caller holds the scope's lock, and has refreshed the image. All of it blocks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agentstate.storage.file.lines import Json, read_lines, seal
from agentstate.storage.file.scope import (
    FORMAT,
    HEADER_BYTES,
    ROTATE_BYTES,
    SnapshotFile,
    is_segment,
    look,
    look_at,
    segment_name,
)
from agentstate.storage.file.snapshot import Archive, archived, encode_state, worth_rewriting
from agentstate.storage.protocol import JOURNAL_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["Composed", "UndecidedError", "Written", "append", "compose", "rotate", "rotation_due", "sync"]

ROTATE_FACTOR: Final = 2


class UndecidedError(Exception):
    """A line was written, its sync failed, and it couldn't be taken back."""


class Composed(NamedTuple):
    """A line for the end of a log: its bytes, and its digest."""

    data: bytes
    sum: str


class Written(NamedTuple):
    """A line that was written and isn't synced yet.

    Attributes:
        descriptor: of the log; whoever has the line gives it back with `sync`.
        made: directories that have new names in them.
    """

    descriptor: int
    line: Composed
    made: Sequence[str]


def compose(files: ScopeFiles, ops: Sequence[Json]) -> Composed:
    """Return the line with these operations that follows the log's last one. Doesn't block."""
    # A log without a line begins a scope, so nothing was before it.
    header, after = (b"", files.sum) if files.end else seal(_header(files, 0, 0))
    line, after = seal(orjson.dumps({"n": files.n + 1, "ops": ops}), after)
    return Composed(header + line, after)


def append(files: ScopeFiles, line: Composed) -> Written:
    """Write a line, whose operations the image has already. It counts once `sync` has returned.

    Raises:
        OSError: nothing was stored; the image must be forgotten.
    """
    made = _make_directories(files) if files.seen is None else ()
    descriptor = None if files.seen is None else files.logs.take(files.log_path, files.seen.inode)
    if descriptor is None:
        descriptor = files.disk.keep(files.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        files.disk.write(descriptor, line.data)
    except BaseException:
        _take_back(files, descriptor)
        raise
    return Written(descriptor, line, made)


def sync(files: ScopeFiles, written: Written, *, synced: bool) -> None:
    """Let a line count; with ``synced``, once it has reached the disk.

    Raises:
        OSError: nothing was stored; the image must be forgotten.
        UndecidedError: whether it was stored can't be told.
    """
    disk, (descriptor, line, made) = files.disk, written
    try:
        if synced:
            disk.sync(descriptor)
            for path in made:
                disk.sync_directory(path)
        files.seen = look_at(descriptor)
    except OSError as error:
        if not _take_back(files, descriptor):
            raise UndecidedError from error
        raise
    files.logs.give(files.log_path, files.seen.inode, descriptor)
    files.n, files.sum, files.end = files.n + 1, line.sum, files.end + len(line.data)
    if synced:
        files.synced = files.end


def _take_back(files: ScopeFiles, descriptor: int) -> bool:
    """Cut what was written off again; what stays of a line that isn't whole is cut by whoever writes next."""
    try:
        files.disk.truncate(descriptor, files.end)
    except OSError:
        return False
    finally:
        files.disk.close(descriptor)
    return True


def _make_directories(files: ScopeFiles) -> list[str]:
    """Make the scope's directory, and return the directories that have new names in them."""
    own = Path(files.path)
    made = [path for path in (own.parent.parent, own.parent, own) if files.disk.make_directory(str(path))]
    return [str(own), *(str(path.parent) for path in made)]


def _header(files: ScopeFiles, version: int, records: int) -> bytes:
    return orjson.dumps(
        {
            "format": FORMAT,
            "scope": files.address,
            "n": files.n,
            "version": version,
            "records": records,
            "after": files.sum,
        }
    )


# -- beginning anew --------------------------------------------------------------------------


def rotation_due(files: ScopeFiles) -> bool:
    """Return whether the log has grown so long that a snapshot is worth its bytes."""
    seen = files.snapshot.seen
    return files.end > max(files.rotate_from, ROTATE_FACTOR * seen.size if seen is not None else 0)


def rotate(files: ScopeFiles) -> None:
    """Write a snapshot, begin the log anew, and remove what nobody needs any more."""
    if look(files.state_path) != files.snapshot.seen:
        files.forget()
        files.refresh(locked=True)
    if files.n == files.base:
        return
    if files.synced != files.end:
        _sync_log(files)
    if files.snapshot.n < files.n:
        _write_snapshot(files)
    disk = files.disk
    # It exists already, as the same file, when a crash came between this step and the next.
    with suppress(FileExistsError):
        disk.link(files.log_path, f"{files.path}/{segment_name(files.base)}")
    held = files.held
    assert held is not None
    line, after = seal(_header(files, held.image.version, held.records))
    disk.write_new(files.log_path, line)
    disk.sync_directory(files.path)
    files.base, files.sum, files.end, files.seen = files.n, after, len(line), look(files.log_path)
    files.synced = files.end
    files.rotate_from = ROTATE_BYTES
    _prune(files)


def _sync_log(files: ScopeFiles) -> None:
    """Let the log not be behind its snapshot, also where its lines aren't synced one by one."""
    descriptor = files.disk.open(files.log_path, os.O_RDONLY)
    try:
        files.disk.sync(descriptor)
    finally:
        files.disk.close(descriptor)


def _write_snapshot(files: ScopeFiles) -> None:
    assert files.held is not None
    archive = _archive(files)
    head = {"format": FORMAT, "scope": files.address, "n": files.n, "sum_at_n": files.sum}
    line, _ = seal(orjson.dumps({**head, **encode_state(files.held, archive)}))
    files.disk.write_new(files.state_path, line)
    files.disk.sync_directory(files.path)
    files.snapshot = SnapshotFile(look(files.state_path), files.n, files.sum, archive)
    files.settle()


def _archive(files: ScopeFiles) -> Archive | None:
    """Bring the archive of log items up to the image; there is none of no items."""
    assert files.held is not None
    image, old = files.held.image, files.snapshot.archive
    if not any(log.items for log in image.logs.values()):
        return None
    anew = old is None or worth_rewriting(image, old.size)
    base = Archive(f"items-{files.n:012d}.jsonl", 0, "") if old is None or anew else old
    data, archive = archived(image, base, anew=anew)
    if data or anew:
        descriptor = files.disk.open(f"{files.path}/{base.file}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            files.disk.truncate(descriptor, base.size)
            files.disk.write(descriptor, data)
            files.disk.sync(descriptor)
        finally:
            files.disk.close(descriptor)
        if anew:
            files.disk.sync_directory(files.path)
    return archive


def _prune(files: ScopeFiles) -> None:
    assert files.held is not None
    held, keep = files.held, files.snapshot.archive
    names = os.listdir(files.path)  # noqa: PTH208 - names are what is compared
    for name in names:
        stale = name.startswith("items-") and (keep is None or name != keep.file)
        if stale or name.endswith(".tmp"):
            files.disk.unlink(f"{files.path}/{name}")
    version, records = held.image.version, held.records
    for name in sorted((name for name in names if is_segment(name)), reverse=True):
        path = f"{files.path}/{name}"
        first = _segment_header(files, path)
        useful = first["records"] < records and held.records - records < JOURNAL_COUNT and version > held.floor
        if not useful:
            files.disk.unlink(path)
        version, records = first["version"], first["records"]


def _segment_header(files: ScopeFiles, path: str) -> Json:
    descriptor = files.disk.open(path, os.O_RDONLY)
    try:
        lines = read_lines(files.disk.read(descriptor, 0, HEADER_BYTES), "")
    finally:
        files.disk.close(descriptor)
    return lines[0].body
