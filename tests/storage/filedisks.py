"""Disks for the tests of the file backend: that count, fail, or end the process."""

import errno
import os

from agentstate.storage.file.disk import Disk

STEPS = ("write", "sync", "sync_directory", "truncate", "rename", "link", "unlink", "make_directory", "write_at")


class SteppedDisk(Disk):
    """Calls `step` before every system call that changes something."""

    def step(self, name, *arguments):
        """Do nothing; subclasses do."""


def _stepped(name):
    original = getattr(Disk, name)

    def method(self, *arguments):
        self.step(name, *arguments)
        return original(self, *arguments)

    return method


for _name in STEPS:
    setattr(SteppedDisk, _name, _stepped(_name))


class UnsyncedDisk(SteppedDisk):
    """Skips what costs time and changes nothing for a process that is killed."""

    def sync(self, descriptor):
        self.step("sync", descriptor)

    def sync_directory(self, path):
        self.step("sync_directory", path)


class CountingDisk(UnsyncedDisk):
    """Counts bytes and calls."""

    def __init__(self):
        self.written = self.got = self.syncs = 0
        self.steps = 0

    def step(self, name, *arguments):
        self.steps += 1
        if name in ("write", "write_at"):
            self.written += len(arguments[1])
        elif name in ("sync", "sync_directory"):
            self.syncs += 1

    def read(self, descriptor, start, size):
        data = super().read(descriptor, start, size)
        self.got += len(data)
        return data


class DyingDisk(UnsyncedDisk):
    """Ends the process before its n-th change, or in the middle of it when that is a write."""

    def __init__(self, n):
        self.left = n
        self.armed = False

    def step(self, name, *arguments):
        if not self.armed:
            return
        self.left -= 1
        if self.left > 0:
            return
        if name == "write":
            descriptor, data = arguments
            os.write(descriptor, data[: len(data) // 2])
        os._exit(9)


class FailingDisk(UnsyncedDisk):
    """Fails its n-th change with an error of the system, after half of it when it is a write."""

    def __init__(self, n, code=errno.EIO, only=()):
        self.left = n
        self.code = code
        self.only = only
        self.armed = False
        self.failed = None

    def step(self, name, *arguments):
        if not self.armed or (self.only and name not in self.only):
            return
        self.left -= 1
        if self.left:
            return
        self.failed = name
        if name == "write":
            descriptor, data = arguments
            os.write(descriptor, data[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))
