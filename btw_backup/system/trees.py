"""Whole trees inside a directory that belongs to somebody else: copying, checking, finishing them."""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from ..errors import Error
from .files import BLOCK, create, directory, open_regular

# The ends of names of files that grow where they stand: rdiff-backup's logs, and ours.
_GROWING = (".log", "log.txt")
# rdiff-backup keeps one file in directories that are two deep.
DEPTH = 8


class Linked(NamedTuple):
    """The inode numbers of the files that a tree shares with its copy, and the size of all of them."""

    inodes: set[int]
    size: int


def link_tree(
    source: int, target: int, linkable: int, names: Iterable[str] | None = None, depth: int = DEPTH
) -> Linked:
    """Make the contents of one open directory, or those ``names`` of it, appear in another, an empty one.

    Regular files of ``linkable`` bytes or more are hard-linked, smaller ones and logs, which
    grow where they stand, are copied, so that whoever works on the second tree and replaces
    files by rename leaves the first as it is. Raises Error for
    anything that is neither file nor directory, and for a hard link to a file of another owner
    than its directory's: root is not to be led to somebody else's data.
    """
    linked: set[int] = set()
    size = 0
    owner = os.fstat(source).st_uid
    ours = owner == os.geteuid()
    for entry in sorted(os.listdir(source) if names is None else names):
        found = os.lstat(entry, dir_fd=source)
        if stat.S_ISDIR(found.st_mode):
            if depth == 0:
                raise Error(f"{entry} lies deeper than anything in a backup: refused")
            os.mkdir(entry, 0o700, dir_fd=target)
            with directory(entry, source) as inner, directory(entry, target) as copied:
                below = link_tree(inner, copied, linkable, depth=depth - 1)
            linked |= below.inodes
            size += below.size
            continue
        fd = open_regular(entry, source)
        try:
            found = os.fstat(fd)
            size += found.st_size
            theirs = ours or found.st_uid == owner
            if found.st_nlink != 1 and not theirs:
                raise Error(f"{entry} is a hard link to a file of another owner: refused")
            large = found.st_size >= linkable and not entry.endswith(_GROWING)
            if large and theirs and _link(fd, entry, target):
                linked.add(found.st_ino)
            else:
                _copy_file(fd, found, entry, target)
        finally:
            os.close(fd)
    return Linked(linked, size)


def _link(fd: int, name: str, target: int) -> bool:
    """Hard-link the open file. False where the file system has no such links, or no more."""
    try:
        # Through the descriptor, so that the file is the one that was examined (linkat(2)).
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=target, follow_symlinks=True)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _copy_file(source: int, found: os.stat_result, name: str, target: int) -> None:
    with create(name, target) as fd:
        offset = 0
        while sent := os.sendfile(fd, source, offset, BLOCK):
            offset += sent
        os.fchmod(fd, stat.S_IMODE(found.st_mode) & 0o777)
        os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_attributes(source: int, target: int, linked: set[int]) -> None:
    """Give a copy that ``link_tree`` made the owners, modes and times of what it was made of.

    ``linked``: the inode numbers that it shares with that, which are left alone.
    """
    for entry in os.listdir(target):
        if stat.S_ISDIR(os.lstat(entry, dir_fd=target).st_mode):
            with directory(entry, source) as inner, directory(entry, target) as copied:
                copy_attributes(inner, copied, linked)
        elif os.lstat(entry, dir_fd=target).st_ino not in linked:
            found = os.lstat(entry, dir_fd=source)
            os.chown(entry, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    imitate(source, target)


def imitate(source: int, target: int) -> None:
    """Give an open directory the owner, the mode, the times and the attributes of another."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    with suppress(OSError):  # where the file system has none
        for name in os.listxattr(source):  # ACLs among them
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def check_tree(top: int, depth: int = DEPTH) -> None:
    """Raise Error where an open directory, or one below it, holds neither file nor directory."""
    for name in os.listdir(top):
        mode = os.lstat(name, dir_fd=top).st_mode
        if stat.S_ISDIR(mode) and depth > 0:
            with directory(name, top) as inner:
                check_tree(inner, depth - 1)
        elif not stat.S_ISREG(mode):
            raise Error(f"{name} is not a regular file: refused")


def finish_tree(top: int, uid: int, gid: int, untouched: set[int]) -> int:
    """Give a finished tree to its owner (-1: as it is) and bring it to the disk.

    Files whose inode number is in ``untouched`` are left alone. Returns the size of all files,
    in bytes.
    """
    total = 0
    for entry in os.listdir(top):
        found = os.lstat(entry, dir_fd=top)
        if stat.S_ISDIR(found.st_mode):
            with directory(entry, top) as inner:
                total += finish_tree(inner, uid, gid, untouched)
            continue
        total += found.st_size
        if found.st_ino in untouched:
            continue
        fd = open_regular(entry, top)
        try:
            if (uid, gid) != (-1, -1):
                os.fchown(fd, uid, gid)
            os.fsync(fd)
        finally:
            os.close(fd)
    if (uid, gid) != (-1, -1):
        os.fchown(top, uid, gid)
    os.fsync(top)
    return total
