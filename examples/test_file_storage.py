"""Try the file storage, and that it survives its process's end:  python examples/test_file_storage.py [DIRECTORY]."""

import asyncio
import sys
import tempfile
from pathlib import Path

from storage_checks import check_storage

from agentstate import ConversationContext


def main(directory):
    """Try everything, close the storage, and look whether it is still there."""
    url = Path(directory).absolute().as_uri()
    return asyncio.run(check_storage(url)) and asyncio.run(check_kept(url))


async def check_kept(url):
    """Look whether what was stored is there when the storage is opened again."""
    async with ConversationContext(url) as context:
        kept = bool(await context.get_history("check"))
    print("ok      opened again" if kept else "FAILED  opened again")
    return kept


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if len(sys.argv) > 1 else temporary))
