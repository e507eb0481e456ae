"""The file of an export, through aiofiles: written in blocks, read in blocks, lines in between.

A file that is being written has another name; it takes its own when it is complete and on the
disk, and goes away when that fails or is cancelled. Only its owner may read it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import aiofiles
import aiofiles.os

from agentstate.errors import DamagedStateError, StateError, StorageAccessError, ValueTooLargeError
from agentstate.exchange.lines import Count, Entry, Head, Item, check_first, read
from agentstate.state.settle import own_task, settle
from agentstate.storage.oserrors import from_os_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agentstate.exchange.lines import Record

BLOCK: Final = 1 << 20
MAX_LINE: Final = 32 << 20
"""The longest line: the largest value in base64, and room to spare."""


class Sink:
    """Writes lines in blocks; what was written since a mark can be taken back."""

    def __init__(self, file: Any) -> None:
        """Write to an open file."""
        self._file = file
        self._waiting: list[bytes] = []
        self._size = 0
        self._written = 0

    async def write(self, line: bytes) -> None:
        """Write one line."""
        self._waiting.append(line)
        self._size += len(line)
        if self._size >= BLOCK:
            await self._flush()

    async def _flush(self) -> None:
        await self._file.write(b"".join(self._waiting))
        self._written += self._size
        self._waiting, self._size = [], 0

    async def mark(self) -> int:
        """Return where the next line goes."""
        await self._flush()
        return self._written

    async def back_to(self, mark: int) -> None:
        """Take back what was written since."""
        await self._flush()
        await self._file.seek(mark)
        await self._file.truncate(mark)
        self._written = mark

    async def finish(self) -> None:
        """Return when everything is on the disk."""
        await self._flush()
        await self._file.flush()
        await asyncio.to_thread(os.fsync, self._file.fileno())


@asynccontextmanager
async def written(path: Path) -> AsyncGenerator[Sink]:
    """Open a file for a block; it is there, whole, after the block, and not at all when that fails.

    Raises:
        StorageAccessError: it can't be written there, and what else `from_os_error` says.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            async with _opened(part, "xb") as file:
                sink = Sink(file)
                yield sink
                await sink.finish()
            await aiofiles.os.replace(part, path)
        except BaseException:
            await settle(_remove(part))
            raise
    except OSError as error:
        if isinstance(error, StateError):
            raise
        raise from_os_error(error, "write an export", path) from error


@asynccontextmanager
async def _opened(path: Path, mode: Literal["rb", "xb"]) -> AsyncGenerator[Any]:
    """Open a file for a block; closed also when the caller is cancelled while it is being opened."""
    opening = own_task(_open(path, mode))
    try:
        file = await asyncio.shield(opening)
    except asyncio.CancelledError:
        await settle(_close(opening))
        raise
    try:
        yield file
    finally:
        await settle(file.close())


async def _open(path: Path, mode: Literal["rb", "xb"]) -> Any:
    return await aiofiles.open(path, mode, opener=_private if mode == "xb" else None)


async def _close(opening: asyncio.Task[Any]) -> None:
    with suppress(OSError):
        await (await opening).close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def _remove(part: Path) -> None:
    with suppress(FileNotFoundError):
        await aiofiles.os.remove(part)


async def lines(path: Path) -> AsyncGenerator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers.

    Raises:
        StorageAccessError: it can't be read.
        ValueTooLargeError: a line is longer than any that is written.
    """
    number, rest = 0, b""
    try:
        async with _opened(path, "rb") as file:
            while block := await file.read(BLOCK):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    number += 1
                    yield number, line
                if len(rest) > MAX_LINE:
                    raise ValueTooLargeError(f"{path}:{number + 1}: the line is longer than {MAX_LINE} bytes.")
    except OSError as error:
        if isinstance(error, StateError):
            raise
        raise StorageAccessError(
            f"Can't read {path}: {error.strerror or error}.", remedy="Check the path, and who may read it."
        ) from error
    if rest:
        yield number + 1, rest


async def records(path: Path) -> AsyncGenerator[Record]:
    """Yield the records of an export, and see that none is missing.

    Raises:
        DamagedStateError: a line is damaged or out of place, or the file was cut; names the line.
        NewerFormatError: a newer release wrote it.
    """
    order, number = _Order(), 0
    async with aclosing(lines(path)) as numbered:
        async for number, line in numbered:
            try:
                if number == 1:
                    check_first(line)
                    continue
                record = read(line)
                order.check(record)
            except StateError as error:
                raise _at(path, number, error) from None
            yield record
    if not order.ended:
        fault = DamagedStateError(
            "the file ends before the line that counts its contents", remedy="It was cut: copy or export it again."
        )
        raise _at(path, number, fault)


class _Order:
    """Sees that records come as they are written."""

    def __init__(self) -> None:
        self.ended = False
        self._found = Count()
        self._known: set[tuple[str, str]] = set()

    def check(self, record: Record) -> None:
        found = self._found
        if self.ended:
            raise DamagedStateError("comes after the end")
        if isinstance(record, Head):
            self._known.clear()
            self._found = found._replace(conversations=found.conversations + 1)
        elif isinstance(record, Count):
            if record != found:
                raise DamagedStateError(f"counts {_told(record)}, and there are {_told(found)}")
            self.ended = True
        else:
            self._check_part(record)

    def _check_part(self, record: Entry | Item) -> None:
        found = self._found
        if not found.conversations:
            raise DamagedStateError("comes before the first conversation")
        if isinstance(record, Entry):
            name = (f"section {record.section}", record.key)
            self._found = found._replace(entries=found.entries + 1)
        else:
            name = (f"log {record.log}", record.id)
            self._found = found._replace(items=found.items + 1)
        if name in self._known:
            raise DamagedStateError(f"has {name[1]!r} a second time in {name[0]}")
        self._known.add(name)


def _told(count: Count) -> str:
    return ", ".join(f"{number} {name}" for name, number in count._asdict().items())


def _at(path: Path, number: int, error: StateError) -> StateError:
    located = type(error)(f"{path}:{number}: {str(error).rstrip('.')}.")
    located.remedy = error.remedy
    return located
