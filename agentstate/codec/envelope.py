"""The frame around stored values: which codec wrote them, in which format, compressed or not.

Plain JSON has no frame, so that it stays readable in ``valkey-cli``, ``sqlite3`` and the
files. Everything else starts with a byte that begins no JSON text::

    01  format  flags  CRC-32 (4 bytes, big endian)  payload
"""

from __future__ import annotations

import functools
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Final

from agentstate.errors import DamagedStateError, NewerFormatError, ValueTooLargeError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["COMPRESS_ABOVE", "MARK", "MAX_VALUE_BYTES", "PLAIN", "RAW", "TAGGED", "check_size", "pack", "unpack"]

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""The most bytes that one value may have, before compression."""
COMPRESS_ABOVE: Final = 8 * 1024
MAX_RATIO: Final = 1000

MARK: Final = b"\x01"
FORMAT: Final = 1
PLAIN: Final = 0
TAGGED: Final = 1
RAW: Final = 2
_CODEC_BITS: Final = 0x0F
_ZSTD: Final = 0x10
_HEADER: Final = Struct(">BBBI")


def pack(codec: int, payload: bytes, limit: int) -> bytes:
    """Return ``payload`` as it is stored: compressed when that saves a tenth, framed unless plain JSON.

    Raises:
        ValueTooLargeError: the payload has more than ``limit`` bytes.
    """
    check_size(len(payload), limit)
    flags = codec
    if len(payload) > COMPRESS_ABOVE:
        small: bytes = _zstd().compress(payload)
        # Beyond the ratio a reader takes it for a bomb.
        if len(small) * 10 < len(payload) * 9 and len(payload) <= len(small) * MAX_RATIO:
            flags, payload = flags | _ZSTD, small
    if flags == PLAIN:
        return payload
    return _HEADER.pack(MARK[0], FORMAT, flags, zlib.crc32(payload, flags)) + payload


def unpack(data: bytes, limit: int) -> tuple[int, bytes]:
    """Return the codec and the payload of framed bytes.

    Raises:
        NewerFormatError: a newer release framed them.
        DamagedStateError: they are not what was written.
        ValueTooLargeError: the payload has more than ``limit`` bytes.
    """
    if len(data) > 1 and data[1] > FORMAT:
        raise _newer(f"format {data[1]}")
    if len(data) < _HEADER.size:
        raise DamagedStateError(f"A stored value ends after {len(data)} bytes.", remedy=_RESTORE)
    _, version, flags, crc = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if version != FORMAT or zlib.crc32(payload, flags) != crc:
        raise DamagedStateError("A stored value doesn't fit its check sum.", remedy=_RESTORE)
    if flags & ~(_CODEC_BITS | _ZSTD) or flags & _CODEC_BITS > RAW:
        raise _newer(f"flags {flags:#04x}")
    if flags & _ZSTD:
        payload = _decompress(payload, limit)
    check_size(len(payload), limit)
    return flags & _CODEC_BITS, payload


def check_size(size: int, limit: int) -> None:
    """Raise `ValueTooLargeError` when ``size`` is more than ``limit`` bytes."""
    if size > limit:
        raise ValueTooLargeError(
            f"The value has {size} bytes, more than {limit}.",
            remedy="Split it over several keys, or store a reference to where it lies.",
        )


def _decompress(payload: bytes, limit: int) -> bytes:
    zstd = _zstd()
    try:
        # Without a size in the frame this is -1 or 2**64 - 1: we always write one.
        size: int = zstd.frame_content_size(payload)
        if size < 0 or size > len(payload) * MAX_RATIO:
            raise DamagedStateError("A stored value grows too much on decompression.", remedy=_RESTORE)
        check_size(size, limit)
        body: bytes = zstd.decompress(payload, max_output_size=size)
    except zstd.ZstdError:
        raise DamagedStateError("A stored value can't be decompressed.", remedy=_RESTORE) from None
    return body


@functools.cache
def _zstd() -> ModuleType:
    import zstandard

    return zstandard


def _newer(what: str) -> NewerFormatError:
    return NewerFormatError(
        f"A stored value has {what}, which this release doesn't know.", remedy="Upgrade agentstate."
    )


_RESTORE: Final = "Restore it from a backup, or delete the entry."
