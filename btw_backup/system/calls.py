"""System calls that Python has no binding for."""

import ctypes
import os
import struct
from functools import cache

_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
# The numbers of newer calls are the same on all architectures that Debian has.
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_CLONE, _CLOEXEC = 1, os.O_CLOEXEC
_RECURSIVE, _EMPTY_PATH = 0x8000, 0x1000
_NOSYMFOLLOW = 0x200000
_LEADING_DIR = 1 << 3
_LC_CTYPE_MASK = 1


def _check(status: int, name: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def renameat2(old: str, old_fd: int, new: str, new_fd: int, flags: int) -> None:
    """Rename as renameat2(2) does. Raises OSError."""
    _check(_libc.renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), flags), new)


def without_links(fd: int) -> int:
    """Open a directory once more, as a place below which no symbolic link is followed.

    That is a mount of its own, seen by nobody else, which ends with the descriptor (open_tree(2),
    MOUNT_ATTR_NOSYMFOLLOW in mount_setattr(2)). Other file systems that are mounted below belong to it.
    Raises OSError if the kernel is older than 5.12, or this process may not mount.
    """
    opened = _libc.syscall(_OPEN_TREE, fd, b"", _CLONE | _CLOEXEC | _RECURSIVE | _EMPTY_PATH)
    _check(min(opened, 0), "open_tree")
    attributes = struct.pack("QQQQ", _NOSYMFOLLOW, 0, 0, 0)
    flags = _RECURSIVE | _EMPTY_PATH
    status = _libc.syscall(_MOUNT_SETATTR, opened, b"", flags, attributes, len(attributes))
    if status != 0:
        os.close(opened)
    _check(status, "mount_setattr")
    return int(opened)


def syncfs(fd: int) -> None:
    """Write all dirty pages of the file system of an open file to its disk. Raises OSError."""
    _check(_libc.syncfs(fd), "syncfs")


@cache
def _unicode() -> None:
    # Python leaves LC_ALL=C alone; a thread has a locale of its own.
    _libc.newlocale.restype = ctypes.c_void_p
    _libc.uselocale.argtypes = [ctypes.c_void_p]
    _libc.uselocale(_libc.newlocale(_LC_CTYPE_MASK, b"C.UTF-8", None))


def fnmatch(pattern: bytes, text: bytes) -> bool:
    """Whether a shell pattern matches a text, or what comes before a slash in it, as fnmatch(3) does.

    The texts are UTF-8, whatever the locale is.
    """
    _unicode()
    return bool(_libc.fnmatch(pattern, text, _LEADING_DIR) == 0)
