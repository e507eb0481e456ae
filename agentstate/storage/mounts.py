"""Which file system a directory lies on, because locks between processes need one that keeps them.

Network and shared-folder file systems either ignore byte-range locks or lose them silently
(a server restart, a second client), so state that relies on locks refuses to live there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from agentstate.errors import StorageAccessError

__all__ = ["check_local", "file_system"]

NETWORK_TYPES = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fakeowner", "gfs2", "gfs", "glusterfs"),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf"),
        *("afpfs", "vmhgfs", "virtiofs", "webdav"),
    }
)
LOCAL_FUSE = frozenset({"fuseblk", "fuse.ext2", "fuse.ntfs", "fuse.ntfs-3g", "fuse.exfat", "fuse.zfs", "fuse.bcachefs"})
MNT_LOCAL = 0x1000
MOUNT_TABLE = Path("/proc/self/mountinfo")


def check_local(directory: Path, *, mount_table: Path = MOUNT_TABLE) -> None:
    """Raise `StorageAccessError` when ``directory`` lies on a network or shared-folder file system."""
    kind = file_system(directory, mount_table=mount_table)
    if kind is not None and (kind in NETWORK_TYPES or (kind.startswith("fuse") and kind not in LOCAL_FUSE)):
        raise StorageAccessError(
            f"{directory} lies on a network file system ({kind}), which doesn't keep locks between processes.",
            remedy="Use a local disk or a server backend (valkey://), or pass allow_network_fs=True "
            "when only one process ever uses it.",
        )


def file_system(directory: Path, *, mount_table: Path = MOUNT_TABLE) -> str | None:
    """Return the type of the file system that ``directory`` lies on, ``None`` where it can't be found out."""
    if sys.platform == "linux":
        return _from_mount_table(os.path.realpath(directory), mount_table)
    if sys.platform == "darwin":
        return _from_statfs(directory)
    return None


def _from_mount_table(path: str, mount_table: Path) -> str | None:
    try:
        lines = mount_table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, kind = "", None
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = _unescape(mount.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of several mounts on one point the last covers the others.
        if inside and len(point) >= len(best):
            best, kind = point, source.split(" ")[0]
    return kind


def _unescape(point: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, char)
    return point


def _from_statfs(directory: Path) -> str | None:
    """Ask macOS: ``struct statfs`` has its flags at byte 64 and the type's name at byte 72."""
    libc = ctypes.CDLL(None, use_errno=True)
    statfs = getattr(libc, "statfs$INODE64", None) or libc.statfs
    buffer = ctypes.create_string_buffer(4096)
    if statfs(os.fsencode(directory), buffer) != 0:
        return None
    flags = int.from_bytes(buffer.raw[64:68], sys.byteorder)
    name = buffer.raw[72:88].split(b"\0")[0].decode("ascii", "replace")
    return name if flags & MNT_LOCAL else "nfs"
