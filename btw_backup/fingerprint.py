"""Telling from inodes alone that a source is what it was, without reading its files.

Every change of a file's content, owner, mode, attributes or names changes its ctime, which no
program can set (inode(7)).
"""

import hashlib
import os
import re
import stat
import sys
import time
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from .programs.tar import Source, tar_command
from .system import calls, children
from .system.trust import opened_as_resolved

# A change within the tick of the clock that a walk has seen gets the same timestamp, in ns.
_TICK = 2 * 10**9
# A store through a mapping into a page that is still dirty changes no timestamp (file_update_time in the
# kernel's page_mkwrite). The kernel writes dirty pages after 30 s (vm.dirty_expire_centisecs); in ns.
_WRITEBACK = 60 * 10**9

# As soon as so many directories wait to be walked, so many processes share them. The digest depends on both.
_WAITING = 64
_SHARES = 4


class Fingerprint(NamedTuple):
    """A digest of all inodes of a source.

    ``settled``: no timestamp is so young that a later change could get the same one. ``written``: none
    is so young that a dirty page could hide a later change. ``is_on_one_device``: all of them are.
    """

    digest: str
    settled: bool
    written: bool
    is_on_one_device: bool


def take(source: Source) -> Fingerprint | None:
    """Walk the source. None if a part can't be examined, so that nothing can be told."""
    started = time.time_ns()
    try:
        with opened_as_resolved(source.directory) as top:
            walk = _walked(source)
            # By descriptors it would take a third longer. Whoever exchanged it twice gains nothing but
            # a wrong digest of their own files.
            if not os.path.samestat(os.stat(source.directory), top.status()):
                return None
    except OSError:
        return None
    age = started - walk.newest_timestamp
    return Fingerprint(walk.digest.hexdigest(), age > _TICK, age > _WRITEBACK, walk.is_on_one_device)


def settle(mark: Fingerprint, source: Source) -> bool:
    """Whether a change since the source was read is certain to give another fingerprint.

    If dirty pages could hide one, they are written now, which takes as long as the disk needs; from
    then on a store into them changes the timestamps. Call it after the walk, and before tar reads.
    """
    if mark.settled and mark.written:
        return True
    if not mark.settled or not mark.is_on_one_device:
        return False
    try:
        with opened_as_resolved(source.directory) as directory:
            calls.syncfs(directory.fileno())
    except OSError:
        return False
    return True


class _Tree(NamedTuple):
    """What is walked: all but what is ``pruned``, and, with ``stays``, but what is on another ``device``."""

    pruned: frozenset[bytes]
    device: int
    stays: bool


class _Walk:
    """A walk over the directories that are ``waiting``, and all below them.

    ``digest`` is of all inodes that were met, ``newest_timestamp`` their newest, in ns;
    ``is_on_one_device``: all of them were on that of the tree.
    """

    def __init__(self, tree: _Tree, waiting: list[bytes]) -> None:
        self._tree = tree
        self.waiting = waiting
        self.digest = hashlib.blake2b()
        self.newest_timestamp = 0
        self.is_on_one_device = True

    def add(self, name: bytes, inode: os.stat_result) -> None:
        """Add an inode."""
        self.digest.update(_described(name, inode))
        self.newest_timestamp = max(self.newest_timestamp, inode.st_mtime_ns, inode.st_ctime_ns)

    def go_on(self, most: int = sys.maxsize) -> None:
        """Walk until nothing waits, or as many directories as ``most``."""
        tree, waiting, digest = self._tree, self.waiting, self.digest
        newest_timestamp, is_on_one_device = self.newest_timestamp, self.is_on_one_device
        while 0 < len(waiting) < most:
            directory = waiting.pop()
            digest.update(directory + b"\0")
            # As the directory has them: sorted, all would have to be kept. Another order of the same
            # files is only taken for a change.
            with os.scandir(directory) as entries:
                for entry in entries:
                    if tree.pruned and entry.path in tree.pruned:
                        continue
                    inode = entry.stat(follow_symlinks=False)
                    digest.update(_described(entry.name, inode))
                    newest_timestamp = max(newest_timestamp, inode.st_mtime_ns, inode.st_ctime_ns)
                    here = inode.st_dev == tree.device
                    if stat.S_ISDIR(inode.st_mode):
                        if here or not tree.stays:
                            waiting.append(entry.path)
                    elif stat.S_ISLNK(inode.st_mode):
                        digest.update(os.readlink(entry.path) + b"\0")
                    is_on_one_device &= here or tree.stays
        self.newest_timestamp, self.is_on_one_device = newest_timestamp, is_on_one_device

    def share(self) -> None:
        """Walk what waits, each share of it in a process of its own, the first in this one."""
        first, *others = (partial(self._walk_share, self.waiting[n::_SHARES]) for n in range(_SHARES))
        with ExitStack() as stack:
            results = [stack.enter_context(children.beside(other)) for other in others]
            for data in (first(), *(result() for result in results)):
                newest_timestamp, is_on_one_device, digest = data.split(b" ", 2)
                self.digest.update(digest)
                self.newest_timestamp = max(self.newest_timestamp, int(newest_timestamp))
                self.is_on_one_device &= is_on_one_device == b"1"
        self.waiting = []

    def _walk_share(self, share: list[bytes]) -> bytes:
        """What goes through a pipe of a walk over some directories."""
        walk = _Walk(self._tree, share)
        walk.go_on()
        return b"%d %d %b" % (walk.newest_timestamp, walk.is_on_one_device, walk.digest.digest())


def _walked(source: Source) -> _Walk:
    """A walk over all of the source. Raises OSError if a part can't be examined."""
    # Names as bytes: decoding and encoding all of them would take as long as hashing them.
    top = os.fsencode(source.directory)
    root = os.stat(os.path.join(source.directory, source.member) if source.member else source.directory)
    pruned = {os.path.join(top, os.fsencode(path)) for path in source.left_out}
    pruned |= {os.path.join(top, os.fsencode(pattern[2:])) for pattern in filter(_is_path, source.exclude)}
    tree = _Tree(frozenset(pruned), root.st_dev, source.one_file_system)
    walk = _Walk(tree, [top] if stat.S_ISDIR(root.st_mode) else [])
    walk.digest.update(os.fsencode("\0".join([source.directory, *tar_command(source)])))
    walk.add(os.fsencode(source.member), root)
    walk.go_on(_WAITING)
    if walk.waiting:
        walk.share()
    return walk


def _is_path(pattern: str) -> bool:
    """Whether an EXCLUDE pattern names one path. Others are walked: that is never wrong, only slower."""
    return pattern.startswith("./") and not re.search(r"[*?\[\\]", pattern)


def _described(name: bytes, inode: os.stat_result) -> bytes:
    return b"%b\0%d %d %d %d %d %d %d %d\0" % (
        name,
        inode.st_mode,
        inode.st_uid,
        inode.st_gid,
        inode.st_size,
        inode.st_ino,
        inode.st_rdev,
        inode.st_mtime_ns,
        inode.st_ctime_ns,
    )
