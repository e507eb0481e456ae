"""Reading back what the log of a scope holds: its earlier commits.

The newest log is read first, then the older ones that rotation kept, and no more of them than
asked for. Blocks, and needs no lock: a log that is replaced meanwhile has another number.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentstate.storage.file.codec import decode_journal, some_stamp
from agentstate.storage.file.lines import Json, read_lines
from agentstate.storage.file.scope import Inconsistent
from agentstate.storage.protocol import JOURNAL_COUNT, JournalRecord, Stamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["find_commit", "ops_after", "records"]


class _Segment(NamedTuple):
    """One log: the scope's version where it begins, and its lines by number."""

    version: int
    lines: list[tuple[int, list[Json]]]


def records(files: ScopeFiles, after: int, limit: int) -> tuple[JournalRecord, ...]:
    """Return the journal records of versions above ``after``, oldest first, at most ``limit``."""
    assert files.held is not None
    floor, found = files.held.floor, list[JournalRecord]()
    for segment in _segments_back(files):
        ops = [op for _, ops in segment.lines for op in ops if "journal" in op]
        found[:0] = [decode_journal(some_stamp(op["stamp"]), op["at"], op["journal"]) for op in ops]
        if segment.version <= max(after, floor) or len(found) >= JOURNAL_COUNT:
            break
    kept = found[-JOURNAL_COUNT:]
    return tuple([one for one in kept if one.stamp.version > max(after, floor)][:limit])


def find_commit(files: ScopeFiles, commit_id: int) -> Stamp | None:
    """Return the stamp that a commit made, if a log still holds it."""
    wanted = f"{commit_id:016x}"
    for segment in _segments_back(files):
        for _, ops in segment.lines:
            for op in ops:
                if op.get("commit") == wanted and "stamp" in op:
                    return some_stamp(op["stamp"])
    return None


def ops_after(files: ScopeFiles, n: int) -> list[Json]:
    """Return the operations of the lines after number ``n``, oldest first."""
    found: list[Json] = []
    for segment in _segments_back(files):
        found[:0] = [op for number, ops in segment.lines if number > n for op in ops]
        if not segment.lines or segment.lines[0][0] <= n + 1:
            break
    return found


def _segments_back(files: ScopeFiles) -> Iterator[_Segment]:
    try:
        base, newest = _read(files, files.log_path, whole=False)
    except FileNotFoundError:
        return
    yield newest
    older = sorted(Path(files.path).glob("journal-*.jsonl"), reverse=True)
    for path in older:
        if int(path.stem.partition("-")[2]) >= base:
            continue
        try:
            yield _read(files, str(path), whole=True)[1]
        except FileNotFoundError:
            return


def _read(files: ScopeFiles, path: str, *, whole: bool) -> tuple[int, _Segment]:
    descriptor = files.disk.open(path, os.O_RDONLY)
    try:
        data = files.disk.read(descriptor, 0, os.fstat(descriptor).st_size)
    finally:
        files.disk.close(descriptor)
    lines = read_lines(data, "")
    if not lines or (whole and lines[-1].end != len(data)):
        raise Inconsistent(path, "a line doesn't match its digest")
    header = lines[0].body
    return header["n"], _Segment(header["version"], [(line.body["n"], line.body["ops"]) for line in lines[1:]])
