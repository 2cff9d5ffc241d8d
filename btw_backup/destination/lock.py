"""The private directory of a destination: its lock, and what a killed run left there."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from ..errors import Busy, Error
from ..system.directories import Directory
from .catalog import CHECKSUM

PRIVATE = ".btw-backup"
# Holds a chain while another takes its place, if the file system can't exchange the two.
REPLACED = "replaced"
# The ending of a file that marks a tarball being added or removed together with its checksum.
UNPAIRED = ".unpaired"
# Holds a copy of the destination while it is sent off-site, locked by the sending process.
VIEW = "view"
_LOCK = "lock"
_SCRATCH = "run"


@contextmanager
def private_directory(path: str, directory: Directory, name: str = PRIVATE) -> Iterator[Directory]:
    """Open the private directory of that name, or make it. Raises Error unless it is ours alone."""
    refused = Error(f"{os.path.join(path, name)} is not a private directory of ours: remove it")
    with suppress(FileExistsError):
        directory.make(name)
    try:
        private = directory.open(name)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise refused from error
        raise
    with private:
        if not is_private(private, [os.geteuid()]):
            raise refused
        yield private


def is_private(directory: Directory, owners: Collection[int]) -> bool:
    """Whether a directory belongs to one of these users, and nobody else can use it."""
    found = directory.status()
    return found.st_uid in owners and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


@contextmanager
def locked(path: str, private: Directory, wait: timedelta) -> Iterator[None]:
    """Hold the lock. The kernel releases it when the process ends, however it ends."""
    deadline = time.monotonic() + wait.total_seconds()
    with private.file(_LOCK, os.O_RDWR | os.O_CREAT) as fd:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "another process"
                    raise Busy(f"{holder} is working on {path}: try again later, or use --wait") from None
                time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        yield


@contextmanager
def scratch_directory(destination: Directory, private: Directory) -> Iterator[Directory]:
    """Yield an empty directory to prepare things in, removed at the end, and clean up after a killed run."""
    _recover(destination, private)
    with private.temporary(_SCRATCH) as scratch:
        yield scratch


def _recover(destination: Directory, private: Directory) -> None:
    """Clean up after a killed run: finish replacing a chain, remove the rest."""
    with suppress(FileNotFoundError), private.open(REPLACED) as aside:
        for name in aside.names():
            if not destination.holds(name):
                aside.publish(name, destination)
    for name in private.names():
        tarball = name.removesuffix(UNPAIRED)
        if tarball != name:
            if not destination.holds(tarball):
                destination.remove(tarball + CHECKSUM)
            private.remove(name)
    if private.holds(_SCRATCH):
        # The run may have been killed after a point became visible, but before it was on the disk.
        destination.sync()
    for name in (REPLACED, _SCRATCH):
        private.remove(name)
    with suppress(FileNotFoundError, BlockingIOError), private.open(VIEW) as view:
        fcntl.flock(view.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        private.remove(VIEW)
