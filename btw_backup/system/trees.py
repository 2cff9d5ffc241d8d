"""Trees inside a directory that belongs to somebody else: linking, checking, finishing them."""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from ..errors import Error
from .directories import Directory
from .files import closed_at_end, copy_all, same_content

# A chain of one file is two directories deep.
DEPTH = 8


class Linked(NamedTuple):
    """The inode numbers of files that a tree shares with its copy, and the size of all files in bytes."""

    inodes: set[int]
    size: int


def link_tree(
    source: Directory,
    target: Directory,
    linkable: Callable[[str, os.stat_result], bool],
    names: Iterable[str] | None = None,
    left_out: Callable[[str], bool] = lambda name: False,
    strict: bool = False,
    depth: int = DEPTH,
) -> Linked:
    """Copy the entries of one directory, or only those ``names``, to another, which must be empty.

    Files that are ``linkable``, by their name and status, are hard-linked, the others copied. So a
    program that works on the copy, and replaces the linked files by rename, leaves the original as it is.
    Entries that are ``left_out``, by their name, are not copied. ``strict``: all files belong to the owner
    of their directory, or Error is raised.
    Raises Error for anything that is neither file nor directory, and for a hard link to a file of
    another owner than its directory's, which could lead root to somebody else's data.
    """
    linked: set[int] = set()
    size = 0
    owner = source.status().st_uid
    ours = owner == os.geteuid()
    for entry in sorted(source.names() if names is None else names):
        if left_out(entry):
            continue
        if source.holds_directory(entry):
            if depth == 0:
                raise Error(f"{entry} lies deeper than anything in a backup: refused")
            target.make(entry)
            with source.open(entry) as inner, target.open(entry) as copied:
                below = link_tree(inner, copied, linkable, left_out=left_out, strict=strict, depth=depth - 1)
            linked |= below.inodes
            size += below.size
            continue
        with source.file(entry) as fd:
            found = os.fstat(fd)
            size += found.st_size
            theirs = ours or found.st_uid == owner
            if found.st_nlink != 1 and not theirs:
                raise Error(f"{entry} is a hard link to a file of another owner: refused")
            if strict and not theirs:  # who can write to its directory could have moved it here
                raise Error(f"{entry} is a file of another owner than its directory: refused")
            if theirs and linkable(entry, found) and target.link(fd, entry):
                linked.add(found.st_ino)
            else:
                copy_file(fd, found, entry, target)
    return Linked(linked, size)


def copy_file(source: int, found: os.stat_result, name: str, target: Directory) -> None:
    """Copy an open file with its mode and times, for us only."""
    with target.create(name) as fd:
        copy_all(source, fd)
        os.fchmod(fd, stat.S_IMODE(found.st_mode) & 0o777)
        os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_attributes(source: Directory, target: Directory, linked: set[int]) -> None:
    """Give a copy that ``link_tree`` made the owners, modes and times of its original.

    ``linked``: the inode numbers that the two share, which are left alone.
    """
    for entry in target.names():
        if target.holds_directory(entry):
            with source.open(entry) as inner, target.open(entry) as copied:
                copy_attributes(inner, copied, linked)
        elif target.status(entry).st_ino not in linked:
            found = source.status(entry)
            os.chown(entry, found.st_uid, found.st_gid, dir_fd=target.fileno(), follow_symlinks=False)
    imitate(source, target)


def imitate(source: Directory, target: Directory) -> None:
    """Give a directory the owner, the mode, the times and the attributes of another."""
    found = source.status()
    os.fchown(target.fileno(), found.st_uid, found.st_gid)
    os.fchmod(target.fileno(), stat.S_IMODE(found.st_mode))
    attributes, others = _attributes(source.fileno()), _attributes(target.fileno())
    with suppress(OSError):  # if the file system has none
        for name, value in attributes.items():
            os.setxattr(target.fileno(), name, value)
        for name in others.keys() - attributes.keys():
            os.removexattr(target.fileno(), name)
    target.set_times(found)


def same_entry(one: Directory, other: Directory, name: str) -> bool:
    """Whether two directories hold the same under a name: of a kind, with the same attributes and content.

    Never of directories. Raises OSError if there is nothing of that name, or it can't be read.
    """
    found, there = one.status(name), other.status(name)
    if stat.S_ISDIR(found.st_mode) or _facts(found) != _facts(there):
        return False
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(name, dir_fd=one.fileno()) == os.readlink(name, dir_fd=other.fileno())
    if not stat.S_ISREG(found.st_mode):
        return True
    with one.file(name) as mine, other.file(name) as theirs:
        return _attributes(mine) == _attributes(theirs) and same_content(mine, theirs)


def _facts(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_size, found.st_mtime_ns


def same_attributes(one: Directory, other: Directory) -> bool:
    """Whether two directories have the same owner, mode and extended attributes."""
    owned = [(found.st_uid, found.st_gid, found.st_mode) for found in (one.status(), other.status())]
    return owned[0] == owned[1] and _attributes(one.fileno()) == _attributes(other.fileno())


def _attributes(fd: int) -> dict[str, bytes]:
    """The extended attributes of an open file, ACLs among them; none if its file system has none."""
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}


class Finished(NamedTuple):
    """The sizes, in bytes, of all files of a tree, and of those that it shares with no other."""

    total: int
    own: int


def finish_tree(
    top: Directory, uid: int, gid: int, untouched: set[int], advance: Callable[[int], None]
) -> Finished:
    """Give a finished tree to its owner (-1: unchanged) and write it to the disk.

    ``advance`` is called with the size of each file that is now there, in bytes.
    Files whose inode number is in ``untouched`` are shared with another tree, and finished already.
    """
    total = own = 0
    for entry in top.names():
        found = top.status(entry)
        if stat.S_ISDIR(found.st_mode):
            with top.open(entry) as inner:
                below = finish_tree(inner, uid, gid, untouched, advance)
            total += below.total
            own += below.own
            continue
        total += found.st_size
        if found.st_ino in untouched:
            continue
        own += found.st_size
        with closed_at_end(top.open_file(entry)) as fd:
            if (uid, gid) != (-1, -1):
                os.fchown(fd, uid, gid)
            os.fsync(fd)
        advance(found.st_size)
    if (uid, gid) != (-1, -1):
        os.fchown(top.fileno(), uid, gid)
    top.sync()
    return Finished(total, own)
