"""A walk over a source: what tar archives of it, in tar's order, by lstat alone."""

import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from .programs.tar import TAG, Source

_TAG = os.fsencode(TAG)

# The place of a member in the order of an archive, its inode, and the target of a link.
Entry = tuple[bytes, os.stat_result, bytes]


class Tree(NamedTuple):
    """What is walked of the directory ``top``: all but what is ``pruned``.

    ``device``: with ``stays``, nothing below a directory on another one. ``pruned`` are orders.
    """

    top: bytes
    member: bytes
    pruned: frozenset[bytes]
    device: int
    stays: bool

    @classmethod
    def of(cls, source: Source) -> "Tree":
        """Raises OSError if the source can't be examined."""
        top = os.fsencode(source.directory)
        member = os.fsencode(source.member)
        paths = {*source.left_out, *(pattern[2:] for pattern in filter(_is_path, source.exclude))}
        pruned = frozenset(order_of(os.fsencode(path)) for path in paths)
        device = os.stat(os.path.join(top, member) if member else top).st_dev
        return cls(top, member, pruned, device, source.one_file_system)


def order_of(path: bytes) -> bytes:
    """The place of a member in the order of an archive; ``path`` is relative to the source, empty for itself.

    Compared as bytes, places are in the order of a walk in which a directory comes before what is in it, and
    names are sorted.
    """
    return path.replace(b"/", b"\0")


def path_of(order: bytes) -> bytes:
    """The path of a member, relative to the source, empty for that itself."""
    return order.replace(b"\0", b"/")


def walk(tree: Tree, start: bytes = b"", stop: bytes | None = None) -> Iterator[Entry]:
    """Yield the members from the order ``start`` on, up to that of ``stop``.

    Of a directory with a tag only this is a member, and sockets are none to tar, which they are here. Raises
    OSError if a part can't be examined.
    """
    if not start:
        inode = os.lstat(os.path.join(tree.top, tree.member) if tree.member else tree.top)
        yield order_of(tree.member), inode, b""
        if tree.member:
            return
    # For each directory on the way: its order and a slash, its path and a slash, and the names that follow.
    waiting: list[tuple[bytes, bytes, Iterator[bytes]]] = []
    _descend(tree, waiting, start)
    while waiting:
        order, path, names = waiting[-1]
        for name in names:
            place = order + name
            if stop is not None and place >= stop:
                return
            if tree.pruned and place in tree.pruned:
                continue
            full = path + name
            inode = os.lstat(full)
            kind = stat.S_IFMT(inode.st_mode)
            if kind == stat.S_IFDIR:
                yield place, inode, b""
                if inode.st_dev == tree.device or not tree.stays:
                    waiting.append((place + b"\0", full + b"/", iter(_names(full))))
                    break
            else:
                yield place, inode, os.readlink(full) if kind == stat.S_IFLNK else b""
        else:
            waiting.pop()


def _descend(tree: Tree, waiting: list[tuple[bytes, bytes, Iterator[bytes]]], start: bytes) -> None:
    """Open the directories on the way to a member, each at what comes after it."""
    order, path = b"", tree.top + b"/"
    above = start.split(b"\0") if start else []
    for depth, name in enumerate([*above, b""]):
        names = _names(path)
        at = bisect_left(names, name)
        is_there = at < len(names) and names[at] == name and depth < len(above) - 1
        waiting.append((order, path, iter(names[at + is_there :])))
        if not is_there or order + name in tree.pruned or not _is_entered(tree, path + name):
            return
        order += name + b"\0"
        path += name + b"/"


def _is_entered(tree: Tree, path: bytes) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and (found.st_dev == tree.device or not tree.stays)


def _names(directory: bytes) -> list[bytes]:
    names = os.listdir(directory)
    if _TAG in names and _is_tag(os.path.join(directory, _TAG)):
        return [_TAG]
    names.sort()
    return names


def _is_tag(path: bytes) -> bool:
    """Whether it is a tag to tar, for which that must be able to open it. In doubt it is none."""
    return stat.S_ISREG(os.lstat(path).st_mode) and os.access(path, os.R_OK, effective_ids=True)


def _is_path(pattern: str) -> bool:
    """Whether an EXCLUDE pattern names one path. Others are walked: that is never wrong, only slower."""
    return pattern.startswith("./") and not re.search(r"[*?\[\\]", pattern)
