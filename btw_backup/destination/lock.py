"""The private directory of a destination: its lock, and what a killed run left there."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from ..errors import Busy, Error
from ..system.files import DIRECTORY, directory, exists, open_regular, publish, remove, temporary_directory
from .catalog import CHECKSUM

PRIVATE = ".btw-backup"
# Holds a chain while another is put in its place, where the file system can't exchange the two.
REPLACED = "replaced"
# Ends the name of a file that says that a tarball comes or goes, and its checksum with it.
UNPAIRED = ".unpaired"
# Holds a copy of the destination while that is sent off-site, locked by who sends it.
VIEW = "view"
_LOCK = "lock"
_RUN = "run"


@contextmanager
def private_directory(path: str, destination: int) -> Iterator[int]:
    """The open private directory, made when missing. Raises Error where it is not ours alone."""
    refused = Error(f"{os.path.join(path, PRIVATE)} is not a private directory of ours: remove it")
    with suppress(FileExistsError):
        os.mkdir(PRIVATE, 0o700, dir_fd=destination)
    try:
        private = os.open(PRIVATE, DIRECTORY, dir_fd=destination)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise refused from error
        raise
    try:
        found = os.fstat(private)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise refused
        yield private
    finally:
        os.close(private)


@contextmanager
def locked(path: str, private: int, wait: timedelta) -> Iterator[None]:
    """Hold the lock. It goes with the process that holds it, whatever ends that."""
    deadline = time.monotonic() + wait.total_seconds()
    fd = open_regular(_LOCK, private, os.O_RDWR | os.O_CREAT)
    try:
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
    finally:
        os.close(fd)


@contextmanager
def run_directory(destination: int, private: int) -> Iterator[int]:
    """A directory to prepare things in: empty, and removed at the end. What a killed run left goes."""
    _recover(destination, private)
    with temporary_directory(_RUN, private) as run:
        yield run


def _recover(destination: int, private: int) -> None:
    """Put aside what a killed run left: bring a replaced chain to an end, empty the rest."""
    try:
        with directory(REPLACED, private) as aside:
            for name in os.listdir(aside):
                if not exists(name, destination):
                    publish(name, aside, name, destination)
    except FileNotFoundError:
        pass
    for name in os.listdir(private):
        tarball = name.removesuffix(UNPAIRED)
        if tarball != name:
            if not exists(tarball, destination):
                remove(tarball + CHECKSUM, destination)
            remove(name, private)
    for name in (REPLACED, _RUN):
        remove(name, private)
    with suppress(FileNotFoundError, BlockingIOError), directory(VIEW, private) as view:
        fcntl.flock(view, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(VIEW, private)
