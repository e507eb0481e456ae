"""Any byte store as a storage."""

from agentstate.storage.keyvalue.bytestore import ByteStore, SwappingByteStore
from agentstate.storage.keyvalue.storage import KeyValueStorage

__all__ = ["ByteStore", "KeyValueStorage", "SwappingByteStore"]
