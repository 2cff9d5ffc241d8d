"""Telling from inodes alone that a source is what it was, without reading its files.

Every change of a file's content, owner, mode, attributes or names changes its ctime, which no
program can set (inode(7)).
"""

import hashlib
import os
import re
import stat
import time
from typing import NamedTuple

from .tarball import Source, tar_command

# A change within the tick of the clock that a walk has seen gets the same timestamp.
_SETTLING = 2 * 10**9


class Fingerprint(NamedTuple):
    """A digest of all inodes of a source. ``settled``: a later change would give another one."""

    digest: str
    settled: bool


def take(source: Source) -> Fingerprint | None:
    """Walk the source. None where a part can't be examined, so that nothing can be told."""
    started = time.time_ns()
    digest = hashlib.blake2b(os.fsencode("\0".join([source.directory, *tar_command(source)])))
    try:
        newest = _walk(source, digest)
    except OSError:
        return None
    return Fingerprint(digest.hexdigest(), newest < started - _SETTLING)


def _walk(source: Source, digest: "hashlib.blake2b") -> int:
    """Add every inode to the digest. Returns the newest timestamp, in ns."""
    top = os.path.join(source.directory, source.member)
    root = os.stat(top) if source.member else os.stat(source.directory)
    pruned = {os.path.join(source.directory, path) for path in source.left_out}
    pruned |= {os.path.join(source.directory, pattern[2:]) for pattern in filter(_is_path, source.exclude)}
    newest = _add(digest, top, root)
    waiting = [source.directory] if stat.S_ISDIR(root.st_mode) else []
    while waiting:
        # As the directory has them: sorted, all would have to be kept. Another order of the same
        # files is only taken for a change.
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.path in pruned:
                    continue
                inode = entry.stat(follow_symlinks=False)
                newest = max(newest, _add(digest, entry.path, inode))
                if stat.S_ISDIR(inode.st_mode):
                    if not source.one_file_system or inode.st_dev == root.st_dev:
                        waiting.append(entry.path)
                elif stat.S_ISLNK(inode.st_mode):
                    digest.update(os.fsencode(os.readlink(entry.path)) + b"\0")
    return newest


def _is_path(pattern: str) -> bool:
    """Whether an EXCLUDE pattern names one path. Others are walked: that is never wrong, only slower."""
    return pattern.startswith("./") and not re.search(r"[*?\[\\]", pattern)


def _add(digest: "hashlib.blake2b", path: str, inode: os.stat_result) -> int:
    fields = (inode.st_mode, inode.st_uid, inode.st_gid, inode.st_size, inode.st_ino, inode.st_rdev)
    digest.update(os.fsencode(f"{path}\0{fields}{inode.st_mtime_ns} {inode.st_ctime_ns}\0"))
    return max(inode.st_mtime_ns, inode.st_ctime_ns)
