"""The SQLite backend."""

from agentstate.storage.sqlite.options import SqliteOptions
from agentstate.storage.sqlite.storage import SqliteStorage

__all__ = ["SqliteOptions", "SqliteStorage"]
