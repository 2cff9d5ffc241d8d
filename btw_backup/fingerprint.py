"""Tells from inodes alone that a source has not changed, without reading its files.

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

# Changes within one tick of the clock get the same timestamp; in ns.
_TICK = 2 * 10**9
# A store through a mapping into a page that is still dirty changes no timestamp (file_update_time in the
# kernel's page_mkwrite). The kernel writes dirty pages after 30 s (vm.dirty_expire_centisecs); in ns.
_WRITEBACK = 60 * 10**9

# If this many directories wait to be walked, this many processes share them. The digest depends on both.
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
    """Walk the source. Returns None if a part can't be examined."""
    started = time.time_ns()
    digest = hashlib.blake2b(os.fsencode("\0".join([source.directory, *tar_command(source)])))
    try:
        with opened_as_resolved(source.directory) as walked:
            seen = _walk(source, digest)
            # Walking by descriptors would take a third longer. Whoever exchanges the directory twice gains
            # nothing but a wrong digest of their own files.
            if not os.path.samestat(os.stat(source.directory), walked.status()):
                return None
    except OSError:
        return None
    age = started - seen.newest
    return Fingerprint(digest.hexdigest(), age > _TICK, age > _WRITEBACK, seen.is_on_one_device)


def settle(mark: Fingerprint, source: Source) -> bool:
    """Whether any change since the source was read is certain to give another fingerprint.

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


class _Seen(NamedTuple):
    """The newest timestamp that a walk found, in ns, and whether everything was on the source's device."""

    newest: int
    is_on_one_device: bool

    def __or__(self, other: "_Seen") -> "_Seen":
        return _Seen(max(self.newest, other.newest), self.is_on_one_device and other.is_on_one_device)


def _walk(source: Source, digest: "hashlib.blake2b") -> _Seen:
    """Add every inode to the digest."""
    # Names stay bytes: decoding and encoding them would take as long as hashing them.
    top = os.fsencode(source.directory)
    root = os.stat(os.path.join(source.directory, source.member) if source.member else source.directory)
    pruned = {os.path.join(top, os.fsencode(path)) for path in source.left_out}
    pruned |= {os.path.join(top, os.fsencode(pattern[2:])) for pattern in filter(_is_path, source.exclude)}
    tree = _Tree(frozenset(pruned), root.st_dev, source.one_file_system)
    digest.update(_described(os.fsencode(source.member), root))
    seen = _Seen(max(root.st_mtime_ns, root.st_ctime_ns), True)
    waiting = [top] if stat.S_ISDIR(root.st_mode) else []
    seen |= tree.walk(waiting, digest, _WAITING)
    for share in tree.walk_together(waiting) if waiting else ():
        digest.update(share.digest)
        seen |= share.seen
    return seen


class _Share(NamedTuple):
    """What one process found in its share of a tree, and the digest."""

    digest: bytes
    seen: _Seen

    def packed(self) -> bytes:
        return b"%d %d %b" % (self.seen.newest, self.seen.is_on_one_device, self.digest)

    @classmethod
    def unpacked(cls, data: bytes) -> "_Share":
        newest, is_on_one_device, digest = data.split(b" ", 2)
        return cls(digest, _Seen(int(newest), is_on_one_device == b"1"))


class _Tree(NamedTuple):
    """What to walk: all except ``pruned`` paths and, with ``stays``, other devices than ``device``."""

    pruned: frozenset[bytes]
    device: int
    stays: bool

    def walk(self, waiting: list[bytes], digest: "hashlib.blake2b", most: int = sys.maxsize) -> _Seen:
        """Add to the digest everything in and below the waiting directories, while fewer than ``most`` wait.

        Those that were not walked stay in ``waiting``.
        """
        newest, is_on_one_device = 0, True
        while 0 < len(waiting) < most:
            directory = waiting.pop()
            digest.update(directory + b"\0")
            # In the directory's own order: sorting would have to keep them all. At worst, another order
            # of the same files counts as a change.
            with os.scandir(directory) as entries:
                for entry in entries:
                    if self.pruned and entry.path in self.pruned:
                        continue
                    inode = entry.stat(follow_symlinks=False)
                    digest.update(_described(entry.name, inode))
                    newest = max(newest, inode.st_mtime_ns, inode.st_ctime_ns)
                    here = inode.st_dev == self.device
                    if stat.S_ISDIR(inode.st_mode):
                        if here or not self.stays:
                            waiting.append(entry.path)
                    elif stat.S_ISLNK(inode.st_mode):
                        digest.update(os.readlink(entry.path) + b"\0")
                    is_on_one_device &= here or self.stays
        return _Seen(newest, is_on_one_device)

    def walk_together(self, waiting: list[bytes]) -> list[_Share]:
        """Walk the waiting directories in shares: the first in this process, the others each in its own."""
        first, *others = (partial(self._walk_share, waiting[n::_SHARES]) for n in range(_SHARES))
        with ExitStack() as stack:
            results = [stack.enter_context(children.beside(other)) for other in others]
            return [_Share.unpacked(data) for data in (first(), *(result() for result in results))]

    def _walk_share(self, share: list[bytes]) -> bytes:
        digest = hashlib.blake2b()
        seen = self.walk(share, digest)
        return _Share(digest.digest(), seen).packed()


def _is_path(pattern: str) -> bool:
    """Whether an EXCLUDE pattern names one path. What others match is walked: never wrong, only slower."""
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
