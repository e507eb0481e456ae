"""Try the memory storage:  python examples/test_memory_storage.py."""

import asyncio
import sys

from storage_checks import check_storage

if __name__ == "__main__":
    sys.exit(not asyncio.run(check_storage("memory://")))
