"""Values as bytes, and back: round trip or refuse.

`encode` gives bytes from which `decode` makes an equal value of the same types, all the way
down, or it raises `UnsupportedValueError` naming the place inside the value. Nothing is
ever guessed, imported or run because of stored bytes.
"""

from agentstate.codec.envelope import MAX_VALUE_BYTES
from agentstate.codec.exact import MAX_DEPTH
from agentstate.codec.registry import register_type
from agentstate.codec.values import changed, compact, decode, decode_many, encode, fingerprint, is_mutable

__all__ = [
    "MAX_DEPTH",
    "MAX_VALUE_BYTES",
    "changed",
    "compact",
    "decode",
    "decode_many",
    "encode",
    "fingerprint",
    "is_mutable",
    "register_type",
]
