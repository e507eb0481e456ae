"""Reading what AgentUp itself wrote: one file ``<directory>/<context id>.json`` for each context.

Such files lie beside ours, whose names are fixed or hashes, and are only read here; importing
them is the importer's work. `lies_there` takes one `lstat`, as a read of a known state does;
`read` blocks, and is for a worker thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from agentstate.storage.oserrors import from_os_error

__all__ = ["lies_there", "path_of", "read"]

STORE_FILE: Final = "store.json"


def path_of(directory: str, context_id: str) -> Path | None:
    """Return where AgentUp kept a context; ``None`` when it couldn't have kept it in this directory."""
    name = f"{context_id}.json"
    return None if "/" in name or name == STORE_FILE else Path(directory, name)


def lies_there(path: Path) -> bool:
    """Whether there is a plain file of this name; too long a name is none."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def read(path: Path) -> bytes | None:
    """Return what is in the file; ``None`` when it is gone meanwhile.

    Raises:
        StorageError: it can't be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "read AgentUp's record", path) from error
