"""A walk over a source: what tar archives of it, in tar's order, by lstat alone."""

import os
import re
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..archive.names import member_of, order_of, path_of
from ..programs.tar import Source, is_odd
from ..system.files import closed_at_end
from .exclusion import Patterns

CACHE_TAG = b"CACHEDIR.TAG"
# https://bford.info/cachedir/
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
# How many large files with odd names are left out: each takes an argument of up to 4 KB, and all of tar's
# together may take 2 MB (execve(2)).
_MOST_ODD = 50

# The place of a member in the order of an archive, its inode, and the target of a link.
Entry = tuple[bytes, os.stat_result, bytes]


class Tree(NamedTuple):
    """What is walked of the directory ``top``: all but what it ``prunes``, of which it gets orders.

    ``device``: with ``stays``, nothing below a directory on another one. ``tags`` are names, and what tells
    whether a file of that name is one.
    """

    top: bytes
    member: bytes
    prunes: Callable[[bytes], bool] | None
    device: int
    stays: bool
    tags: tuple[tuple[bytes, Callable[[bytes], bool]], ...]

    @classmethod
    def of(cls, source: Source, prunes: Callable[[bytes], bool] | None = None) -> "Tree":
        """Walk all but what is pruned: by default what names a path. Other patterns are not looked at.

        Raises OSError if the source can't be examined.
        """
        top = os.fsencode(source.directory)
        member = os.fsencode(source.member)
        device = os.stat(os.path.join(top, member) if member else top).st_dev
        tags = [(os.fsencode(tag), _is_tag) for tag in source.tags]
        if source.caches:
            tags.append((CACHE_TAG, _is_cache_tag))
        return cls(top, member, prunes or _named(source), device, source.one_file_system, tuple(tags))

    def tag(self, directory: bytes, names: Sequence[bytes]) -> bytes | None:
        """The tag that makes tar pass over what else a directory holds; None if it holds none."""
        for name, is_tag in self.tags:
            if name in names and is_tag(os.path.join(directory, name)):
                return name
        return None

    def is_pruned(self, order: bytes, directory: bytes) -> bool:
        """Whether an entry of a directory is pruned: tar stores a tag even if it is excluded."""
        if self.prunes is None or not self.prunes(order):
            return False
        name = order.rpartition(b"\0")[2]
        return name not in dict(self.tags) or self.tag(directory, os.listdir(directory)) != name

    def enters(self, directory: os.stat_result) -> bool:
        """Whether what is in a directory is walked as far as file systems go."""
        return directory.st_dev == self.device or not self.stays


def _named(source: Source) -> Callable[[bytes], bool] | None:
    """What tells whether a source leaves out an order by its path."""
    paths = {*source.left_out, *source.large, *(pattern[2:] for pattern in filter(_is_path, source.exclude))}
    pruned = frozenset(order_of(os.fsencode(path)) for path in paths)
    return pruned.__contains__ if pruned else None


def leaves_out(source: Source) -> Callable[[bytes], bool]:
    """Return what tells whether a source leaves out an order, by its path or by a pattern."""
    is_named, patterns = _named(source), Patterns(source.exclude)

    def is_left_out(order: bytes) -> bool:
        return (is_named is not None and is_named(order)) or patterns.first(member_of(order)) is not None

    return is_left_out


def with_large(source: Source) -> Source:
    """The source, together with the files in it that are larger than it allows: all that can be examined.

    A source that is itself a file is never too large.
    """
    if source.larger_than is None or source.member:
        return source
    large, odd = [], 0
    for order, inode, _ in walk(Tree.of(source), failed=_pass_over):
        if inode.st_size > source.larger_than and stat.S_ISREG(inode.st_mode):
            path = os.fsdecode(path_of(order))
            odd += is_odd(path)
            if odd <= _MOST_ODD or not is_odd(path):
                large.append(path)
    return source._replace(large=tuple(large))


def _raise(error: OSError) -> None:
    raise error


def _pass_over(error: OSError) -> None:
    """Go on with what comes next."""


def walk(
    tree: Tree,
    start: bytes = b"",
    stop: bytes | None = None,
    failed: Callable[[OSError], None] = _raise,
) -> Iterator[Entry]:
    """Yield the members from the order ``start`` on, up to that of ``stop``.

    Of a directory with a tag only this is a member, and sockets are none to tar, which they are here.
    ``failed`` is called if something below the source can't be examined, and by default raises OSError.
    """
    if not start:
        itself = order_of(tree.member)
        if tree.prunes is not None and tree.prunes(itself):
            return
        yield itself, os.lstat(os.path.join(tree.top, tree.member) if tree.member else tree.top), b""
        if tree.member:
            return
    # For each directory on the way: its order and a slash, its path and a slash, and the names that follow.
    waiting: list[tuple[bytes, bytes, Iterator[bytes]]] = []
    _descend(tree, waiting, start)
    prunes = tree.prunes
    while waiting:
        order, path, names = waiting[-1]
        for name in names:
            place = order + name
            if stop is not None and place >= stop:
                return
            if prunes is not None and tree.is_pruned(place, path):
                continue
            full = path + name
            try:
                inode = os.lstat(full)
                kind = stat.S_IFMT(inode.st_mode)
                yield place, inode, os.readlink(full) if kind == stat.S_IFLNK else b""
                if kind == stat.S_IFDIR and tree.enters(inode):
                    waiting.append((place + b"\0", full + b"/", iter(_names(tree, full))))
                    break
            except OSError as error:
                failed(error)
        else:
            waiting.pop()


def _descend(tree: Tree, waiting: list[tuple[bytes, bytes, Iterator[bytes]]], start: bytes) -> None:
    """Open the directories on the way to a member, each at what comes after it."""
    order, path = b"", tree.top + b"/"
    above = start.split(b"\0") if start else []
    for depth, name in enumerate([*above, b""]):
        names = _names(tree, path)
        at = bisect_left(names, name)
        is_there = at < len(names) and names[at] == name and depth < len(above) - 1
        waiting.append((order, path, iter(names[at + is_there :])))
        if not is_there or tree.is_pruned(order + name, path) or not _is_entered(tree, path + name):
            return
        order += name + b"\0"
        path += name + b"/"


def _is_entered(tree: Tree, path: bytes) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and tree.enters(found)


def _names(tree: Tree, directory: bytes) -> list[bytes]:
    names = os.listdir(directory)
    tag = tree.tag(directory, names)
    if tag is not None:
        return [tag]
    names.sort()
    return names


def _is_tag(path: bytes) -> bool:
    """Whether it is a tag to tar: anything that this can open, even a directory, but for a link."""
    is_other = stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFLNK, stat.S_IFSOCK)
    return not is_other and os.access(path, os.R_OK, effective_ids=True)


def _is_cache_tag(path: bytes) -> bool:
    """Whether it is a tag to tar because of how it begins. One that can't be read is none."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with suppress(OSError), closed_at_end(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        return os.read(file, len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE
    return False


def _is_path(pattern: str) -> bool:
    """Whether an EXCLUDE pattern names one path. Others are walked: that is never wrong, only slower."""
    return pattern.startswith("./") and not re.search(r"[*?\[\\]", pattern)
