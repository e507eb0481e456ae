"""The RocksDB backend."""

from agentstate.storage.rocksdb.options import RocksdbOptions
from agentstate.storage.rocksdb.storage import RocksdbStorage

__all__ = ["RocksdbOptions", "RocksdbStorage"]
