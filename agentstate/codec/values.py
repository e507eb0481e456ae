"""Encode, decode and compare values.

Exact JSON types take the fast path through ``orjson``; a walk over exact types decides that,
because the encoder alone would silently turn tuples into lists, NaN into null and dates into
text. Everything else goes through the tagged form. ``orjson`` and ``zstandard`` are imported
when first needed. The functions keep no state: any thread may call them at any time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from agentstate.codec.envelope import (
    COMPRESS_ABOVE,
    MARK,
    MAX_VALUE_BYTES,
    PLAIN,
    RAW,
    TAGGED,
    check_size,
    pack,
    unpack,
)
from agentstate.codec.exact import is_exact, kind_of
from agentstate.codec.registry import binding_of
from agentstate.errors import DamagedStateError, UnsupportedValueError, ValueTooLargeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["changed", "decode", "decode_many", "encode", "fingerprint", "is_mutable"]


@functools.cache
def _orjson() -> ModuleType:
    import orjson

    return orjson


@functools.cache
def _tagged() -> ModuleType:
    from agentstate.codec import tagged

    return tagged


def encode(value: Any, *, limit: int = MAX_VALUE_BYTES, exact: bool = False) -> bytes:
    """Return ``value`` as bytes that `decode` turns into an equal value of the same types.

    The same value always gives the same bytes in one release of the libraries; the order of a
    dict is part of it, the order of a set isn't. Objects that stand in several places are
    written several times.

    Args:
        value: made of JSON types, ``datetime`` and its kin, ``UUID``, ``Decimal``, ``complex``,
            ``bytes``, ``bytearray``, tuples, sets, paths, dicts with any such keys, and types
            given to `register_type`; subclasses of these don't count.
        limit: the most bytes it may have before compression.
        exact: the caller knows that it is made of exact JSON types, and small.

    Raises:
        UnsupportedValueError: something in it would come back different, or it holds itself.
        ValueTooLargeError: it is larger than ``limit``, or nested deeper than 200.
    """
    if exact or is_exact(value, limit // 2 + 1):
        try:
            data: bytes = _orjson().dumps(value)
        except TypeError:  # keys that aren't text, integers beyond 64 bits, unpaired surrogates
            pass
        else:
            return compact(data) if len(data) <= COMPRESS_ABOVE and len(data) <= limit else pack(PLAIN, data, limit)
    if type(value) is bytes:
        return pack(RAW, value, limit)
    return pack(TAGGED, _orjson().dumps(_nodes(value, limit)), limit)


def compact(data: bytes) -> bytes:
    """Return the bytes in memory of their own size: ``orjson`` leaves at least 4 KB to what it returns."""
    return b"".join((data, b""))


def decode(data: bytes, *, limit: int = MAX_VALUE_BYTES) -> Any:
    """Return the value that ``data`` was encoded from, a new one at each call.

    Raises:
        DamagedStateError: the bytes are not what `encode` wrote.
        NewerFormatError: a newer release wrote them.
        UnsupportedValueError: they hold a type that isn't registered, or that refuses them.
        ValueTooLargeError: the value is larger than ``limit`` bytes.
    """
    if data[:1] != MARK:
        if len(data) > limit:
            check_size(len(data), limit)
        return _parse(data)
    codec, payload = unpack(data, limit)
    if codec == RAW:
        return payload
    return _parse(payload) if codec == PLAIN else _tagged().read(_parse(payload))


def decode_many(many: Sequence[bytes]) -> list[Any]:
    """Return the values of several, as `decode` would, at less than half the cost for plain JSON."""
    joined = b"[" + b",".join(many) + b"]"
    values: list[Any] = []
    if MARK not in joined:  # which no JSON text holds
        try:
            values = _orjson().loads(joined)
        except ValueError:
            values = []
    # Damage could make one value look like two: then each speaks for itself.
    return values if len(values) == len(many) else [decode(data) for data in many]


def changed(value: Any, data: bytes, *, limit: int = MAX_VALUE_BYTES) -> bool:
    """Return whether ``value`` is another than what was decoded from (or encoded to) ``data``.

    Bytes alone can't tell: another release may write the same value differently.
    """
    try:
        now = encode(value, limit=limit)
    except (UnsupportedValueError, ValueTooLargeError):
        return True
    return now != data and now != encode(decode(data, limit=limit), limit=limit)


_IMMUTABLE: Final = frozenset({str, int, float, bool, type(None), bytes, complex})
_MUTABLE: Final = frozenset({list, dict, set, bytearray})


def is_mutable(value: Any) -> bool:
    """Return whether a storable value can be changed in place, at any depth."""
    kind = kind_of(value)
    if kind in _IMMUTABLE:
        return False
    if kind in _MUTABLE:
        return True
    if kind is tuple or kind is frozenset:
        return any(map(is_mutable, value))
    binding = binding_of(kind)
    return binding is not None and binding.mutable


def fingerprint(value: Any) -> str | None:
    """Return a digest that is equal for equal values, on any machine; ``None`` when there is none.

    The order of dict keys doesn't count. What `encode` accepts has one, and so has a protobuf
    message (by its deterministic bytes) and a pydantic model (by its JSON), registered or not.
    """
    import hashlib

    try:
        body: bytes | None = _canonical(value)
    except (UnsupportedValueError, ValueTooLargeError):
        body = _foreign(value)
    return None if body is None else hashlib.blake2b(body, digest_size=16).hexdigest()


def _canonical(value: Any) -> bytes:
    json = _orjson()
    if is_exact(value, MAX_VALUE_BYTES // 2):
        try:
            plain: bytes = json.dumps(value, option=json.OPT_SORT_KEYS)
        except TypeError:
            pass
        else:
            return b"json " + plain
    tagged: bytes = json.dumps(_nodes(value, MAX_VALUE_BYTES), option=json.OPT_SORT_KEYS)
    return b"tagged " + tagged


def _foreign(value: Any) -> bytes | None:
    kind = kind_of(value)
    label = f"{kind.__qualname__} ".encode()
    try:
        if hasattr(kind, "SerializeToString"):
            message: bytes = value.SerializeToString(deterministic=True)
            return label + message
        if hasattr(kind, "model_dump"):
            return label + _canonical(value.model_dump(mode="json"))
    except (TypeError, ValueError):  # it can't be serialised whole, so it has no fingerprint
        return None
    return None


def _nodes(value: Any, limit: int) -> Any:
    try:
        return _tagged().write(value, limit // 2 + 1)
    except RecursionError:
        raise ValueTooLargeError("The value is nested deeper than the stack allows here.") from None


def _parse(data: bytes) -> Any:
    try:
        return _orjson().loads(data)
    except ValueError as error:
        raise DamagedStateError(
            f"A stored value is no JSON: {str(error).partition(':')[0]}.",
            remedy="Restore it from a backup, or delete the entry.",
        ) from None
