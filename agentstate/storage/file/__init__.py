"""The file backend."""

from agentstate.storage.file.options import FileOptions
from agentstate.storage.file.storage import FileStorage

__all__ = ["FileOptions", "FileStorage"]
