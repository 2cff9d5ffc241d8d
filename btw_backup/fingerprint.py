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

from .programs import process
from .programs.tar import Source, tar_command
from .system.trust import opened_as_resolved

# A change within the tick of the clock that a walk has seen gets the same timestamp.
_SETTLING = 2 * 10**9

# As soon as so many directories wait to be walked, so many processes share them. The digest depends on both.
_WAITING = 64
_SHARES = 4


class Fingerprint(NamedTuple):
    """A digest of all inodes of a source. ``settled``: a later change would give another one."""

    digest: str
    settled: bool


def take(source: Source) -> Fingerprint | None:
    """Walk the source. None where a part can't be examined, so that nothing can be told."""
    started = time.time_ns()
    digest = hashlib.blake2b(os.fsencode("\0".join([source.directory, *tar_command(source)])))
    try:
        with opened_as_resolved(source.directory) as walked:
            newest = _walk(source, digest)
            # By descriptors it would take a third longer. Whoever exchanged it twice gains nothing but
            # a wrong digest of their own files.
            if not os.path.samestat(os.stat(source.directory), os.fstat(walked)):
                return None
    except OSError:
        return None
    return Fingerprint(digest.hexdigest(), newest < started - _SETTLING)


def _walk(source: Source, digest: "hashlib.blake2b") -> int:
    """Add every inode to the digest. Returns the newest timestamp, in ns."""
    # Names as bytes: decoding and encoding all of them would take as long as hashing them.
    top = os.fsencode(source.directory)
    root = os.stat(os.path.join(source.directory, source.member) if source.member else source.directory)
    pruned = {os.path.join(top, os.fsencode(path)) for path in source.left_out}
    pruned |= {os.path.join(top, os.fsencode(pattern[2:])) for pattern in filter(_is_path, source.exclude)}
    tree = _Tree(frozenset(pruned), root.st_dev if source.one_file_system else None)
    digest.update(_described(os.fsencode(source.member), root))
    newest = max(root.st_mtime_ns, root.st_ctime_ns)
    waiting = [top] if stat.S_ISDIR(root.st_mode) else []
    newest = max(newest, tree.walk(waiting, digest, _WAITING))
    for share in tree.walk_together(waiting) if waiting else ():
        digest.update(share)
        newest = max(newest, int(share.partition(b" ")[0]))
    return newest


class _Tree(NamedTuple):
    """What is walked: all but what is ``pruned``, on one ``device`` only, or on all where that is None."""

    pruned: frozenset[bytes]
    device: int | None

    def walk(self, waiting: list[bytes], digest: "hashlib.blake2b", most: int = sys.maxsize) -> int:
        """Add to the digest what is in the waiting directories, and below, while fewer than ``most`` wait.

        ``waiting`` keeps those that were not walked. Returns the newest timestamp that was met, in ns.
        """
        newest = 0
        while 0 < len(waiting) < most:
            directory = waiting.pop()
            digest.update(directory + b"\0")
            # As the directory has them: sorted, all would have to be kept. Another order of the same
            # files is only taken for a change.
            with os.scandir(directory) as entries:
                for entry in entries:
                    if self.pruned and entry.path in self.pruned:
                        continue
                    inode = entry.stat(follow_symlinks=False)
                    digest.update(_described(entry.name, inode))
                    newest = max(newest, inode.st_mtime_ns, inode.st_ctime_ns)
                    if stat.S_ISDIR(inode.st_mode):
                        if self.device in (None, inode.st_dev):
                            waiting.append(entry.path)
                    elif stat.S_ISLNK(inode.st_mode):
                        digest.update(os.readlink(entry.path) + b"\0")
        return newest

    def walk_together(self, waiting: list[bytes]) -> list[bytes]:
        """Walk the waiting directories, each share of them in a process of its own, the first in this one.

        Returns of each the newest timestamp, in ns, and a digest of all below.
        """
        first, *others = (partial(self._walk_share, waiting[n::_SHARES]) for n in range(_SHARES))
        with ExitStack() as stack:
            results = [stack.enter_context(process.beside(other)) for other in others]
            return [first(), *(result() for result in results)]

    def _walk_share(self, share: list[bytes]) -> bytes:
        digest = hashlib.blake2b()
        return b"%d %b" % (self.walk(share, digest), digest.digest())


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
