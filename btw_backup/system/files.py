"""Working inside a directory that belongs to somebody else.

Everything here is relative to an open directory and follows no symbolic link. The owner of a
destination can replace anything in it at any moment; a descriptor stays what it was.
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Error, uninterrupted
from ..programs import process

# Writing to a file in larger blocks takes more processor time, not less.
BLOCK = 1 << 18

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_START = _TO_THE_END = ctypes.c_int64(0)  # of sync_file_range(2)
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


@contextmanager
def directory(name: str, within: int | None = None) -> Iterator[int]:
    """The open directory ``name`` in the open directory ``within``."""
    fd = os.open(name, DIRECTORY, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)


def open_regular(name: str, within: int, flags: int = os.O_RDONLY) -> int:
    """Open a regular file. Raises Error for anything else, and never waits for a fifo's writer."""
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=within)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise Error(f"{name} is not a regular file: refused") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Error(f"{name} is not a regular file: refused")
    return fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, closed at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def create(name: str, within: int) -> Iterator[int]:
    """A new file, open for reading and writing, that only we may read."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)


def _renameat2(old: str, old_fd: int, new: str, new_fd: int, flags: int) -> None:
    names = os.fsencode(old), os.fsencode(new)
    if _libc.renameat2(old_fd, names[0], new_fd, names[1], flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), new)


def publish(name: str, within: int, target: str, destination: int) -> None:
    """Move a prepared file or directory to where nothing of its name stands.

    Raises FileExistsError where something does.
    """
    try:
        _renameat2(name, within, target, destination, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        if exists(target, destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(name, target, src_dir_fd=within, dst_dir_fd=destination)


def exchange(name: str, within: int, target: str, destination: int) -> bool:
    """Swap two names in one step. False where the file system can't (EINVAL, rename(2))."""
    try:
        _renameat2(name, within, target, destination, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        return False
    return True


def exists(name: str, within: int) -> bool:
    """Whether anything of that name stands in the directory, a dangling link included."""
    try:
        os.lstat(name, dir_fd=within)
    except FileNotFoundError:
        return False
    return True


def remove(name: str, within: int) -> None:
    """Remove a file, or a directory with all below it. Nothing there is no failure."""
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=within).st_mode):
            _remove_tree(name, within)
        else:
            os.unlink(name, dir_fd=within)
    except FileNotFoundError:
        pass


def _remove_tree(name: str, within: int) -> None:
    try:
        shutil.rmtree(name, dir_fd=within)
    except RecursionError:  # made by somebody who wants us to fail; rm(1) takes any depth
        process.run(["rm", "-rf", "--", name], cwd=within).check()


@contextmanager
def temporary_directory(name: str, within: int) -> Iterator[int]:
    """A new directory that only we may use, removed in the end with all below it: its descriptor."""
    try:
        os.mkdir(name, 0o700, dir_fd=within)
        with directory(name, within) as fd:
            yield fd
    finally:
        with uninterrupted():
            remove(name, within)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: write(2) may take less, on a disk that is nearly full."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def same_until(one: int, other: int, offset: int = 0) -> int:
    """How far two regular files hold the same bytes, in bytes, by blocks; it is known of ``offset``."""
    while (block := os.pread(one, BLOCK, offset)) and block == os.pread(other, len(block), offset):
        offset += len(block)
    return offset


def same_content(one: int, other: int, offset: int = 0) -> bool:
    """Whether two regular files hold the same bytes; up to ``offset`` it is known."""
    size = os.fstat(one).st_size
    return size == os.fstat(other).st_size and same_until(one, other, offset) == size


def start_writing(fd: int) -> None:
    """Have what a file holds so far written to the disk from now on: fsync(2) waits less then."""
    # A hint, which not every file system takes.
    _libc.sync_file_range(fd, _START, _TO_THE_END, _SYNC_FILE_RANGE_WRITE)


class NoRoom(Error):
    """A disk is full, and it has been said which."""


def is_full(fd: int) -> bool:
    """Whether the disk of an open file has no room left, in blocks or in inodes."""
    room = os.statvfs(fd)
    return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)


@contextmanager
def room_on(path: str, fd: int) -> Iterator[None]:
    """Say of a failure inside the block that the disk of ``fd`` is full, where it is."""
    try:
        yield
    except NoRoom:
        raise
    except Error as error:
        if is_full(fd) or os.strerror(errno.ENOSPC) in error.said:
            raise NoRoom(f"{path}: no space left on this disk ({error})") from error
        raise
