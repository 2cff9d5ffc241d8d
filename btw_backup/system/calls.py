"""System calls that Python has no binding for."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def _check(status: int, name: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def renameat2(old: str, old_fd: int, new: str, new_fd: int, flags: int) -> None:
    """Rename as renameat2(2) does. Raises OSError."""
    _check(_libc.renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), flags), new)


def syncfs(fd: int) -> None:
    """Write all dirty pages of the file system of an open file to its disk. Raises OSError."""
    _check(_libc.syncfs(fd), "syncfs")
