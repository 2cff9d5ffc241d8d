"""Working inside a directory that belongs to somebody else."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from ..errors import Error, uninterrupted
from . import calls

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Directory:
    """An open directory. Every operation in it uses its descriptor and follows no link.

    The owner of a destination can replace anything in it at any moment; a descriptor keeps its meaning.
    Names are single components. Leaving the ``with`` block closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def at(cls, path: str, *, follow: bool = True) -> Self:
        """Open a path. Raises OSError, also for a symbolic link at its end unless ``follow`` is set."""
        return cls(os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW)))

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self) -> str:
        """The path that the directory has now."""
        return os.readlink(f"/proc/self/fd/{self._fd}")

    # What is in it

    def names(self) -> list[str]:
        """The names in it, in no particular order.

        A descriptor that was opened before an entry was made may not list that entry (readdir(3)), and
        on btrfs it does not; so the directory is opened anew.
        """
        with Directory(os.open(".", _FLAGS, dir_fd=self._fd)) as fresh:
            return os.listdir(fresh.fileno())

    def status(self, name: str | None = None) -> os.stat_result:
        """What lstat(2) returns for an entry, or for the directory itself."""
        return os.fstat(self._fd) if name is None else os.lstat(name, dir_fd=self._fd)

    def holds(self, name: str) -> bool:
        """Whether it has an entry of that name, even a dangling link."""
        try:
            self.status(name)
        except FileNotFoundError:
            return False
        return True

    def holds_directory(self, name: str) -> bool:
        """Whether the entry of that name is a directory."""
        return stat.S_ISDIR(self.status(name).st_mode)

    def duplicate(self) -> "Directory":
        """The same directory with a descriptor of its own."""
        return Directory(os.dup(self._fd))

    def open(self, name: str) -> "Directory":
        """Open the directory ``name`` in this one. Raises OSError for a link or a file."""
        return Directory(os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self._fd))

    @contextmanager
    def below(self, names: Iterable[str], *, make: bool = False) -> "Iterator[Directory]":
        """Yield the directory to which these names lead, one below another. Raises OSError for a link there.

        With ``make`` those that are missing are made, for us only.
        """
        with ExitStack() as opened:
            directory = self
            for name in names:
                if make and not directory.holds(name):
                    directory.make(name)
                directory = opened.enter_context(directory.open(name))
            yield directory

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a regular file. Raises Error for anything else, and never waits for a fifo's writer."""
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise Error(f"{name} is not a regular file: refused") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Error(f"{name} is not a regular file: refused")
        return fd

    @contextmanager
    def file(self, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Yield the descriptor of a regular file, closed at the end. Raises like ``open_file``."""
        fd = self.open_file(name, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    # What changes it

    def make(self, name: str) -> None:
        """Make a directory in it that only we may use."""
        os.mkdir(name, 0o700, dir_fd=self._fd)

    @contextmanager
    def create(self, name: str) -> Iterator[int]:
        """Make a file that only we may use, open for reading and writing."""
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def link(self, file: int, name: str) -> bool:
        """Hard-link an open file. False if the file system has no hard links, or no more of this file."""
        try:
            # By its descriptor, so that it is the file that was examined (linkat(2)).
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=self._fd, follow_symlinks=True)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS):
                raise
            return False
        return True

    @contextmanager
    def temporary(self, name: str) -> "Iterator[Directory]":
        """Make a directory that only we may use, removed at the end with everything in it."""
        try:
            self.make(name)
            with self.open(name) as made:
                yield made
        finally:
            with uninterrupted():
                self.remove(name)

    def rename(self, name: str, to: "Directory", new: str | None = None) -> None:
        """Move an entry to another directory, where it replaces an entry of the same name."""
        os.rename(name, name if new is None else new, src_dir_fd=self._fd, dst_dir_fd=to.fileno())

    def publish(self, name: str, to: "Directory", new: str | None = None) -> None:
        """Move an entry to another directory. Raises FileExistsError if its name is taken there."""
        target = name if new is None else new
        try:
            calls.renameat2(name, self._fd, target, to.fileno(), calls.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            if to.holds(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
            self.rename(name, to, target)

    def exchange(self, name: str, other: "Directory") -> bool:
        """Swap the entries that have this name here and there. False if the file system can't (rename(2))."""
        try:
            calls.renameat2(name, self._fd, name, other.fileno(), calls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a file. Raises FileNotFoundError if there is none."""
        os.unlink(name, dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove an entry, and everything below a directory. It is no error if there is none."""
        try:
            if not self.holds_directory(name):
                self.unlink(name)
                return
            try:
                shutil.rmtree(name, dir_fd=self._fd)
            except RecursionError:  # made by somebody who wants us to fail
                self._flatten(name)
                shutil.rmtree(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass

    def _flatten(self, name: str) -> None:
        """Move every directory below an entry to its top, so that none is deep any more."""
        with self.open(name) as top:
            waiting = [entry for entry in top.names() if top.holds_directory(entry)]
            while waiting:
                with top.open(waiting.pop()) as inner:
                    for entry in inner.names():
                        if inner.holds_directory(entry):
                            waiting.append(os.urandom(16).hex())
                            inner.rename(entry, top, waiting[-1])

    def set_times(self, found: os.stat_result) -> None:
        """Give it the access and modification times in ``found``."""
        os.utime(self._fd, ns=(found.st_atime_ns, found.st_mtime_ns))

    # The disk

    def sync(self) -> None:
        """Write its names to the disk."""
        os.fsync(self._fd)

    def is_full(self) -> bool:
        """Whether its file system has no room left, in blocks or in inodes."""
        room = os.statvfs(self._fd)
        return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)
