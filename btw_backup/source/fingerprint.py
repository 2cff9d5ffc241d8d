"""Telling from inodes alone that a source is what it was, or where it is not, without reading its files.

Every change of a file's content, owner, mode, attributes or names changes its ctime, which no
program can set (inode(7)).
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from ..destination.record import Stretch
from ..programs.tar import Source, tar_command
from ..system import calls, children
from ..system.trust import opened_as_resolved
from . import walk
from .walk import Tree

# A change within the tick of the clock that a walk has seen gets the same timestamp, in ns.
_TICK = 2 * 10**9
# A store through a mapping into a page that is still dirty changes no timestamp (file_update_time in the
# kernel's page_mkwrite). The kernel writes dirty pages after 30 s (vm.dirty_expire_centisecs); in ns.
_WRITEBACK = 60 * 10**9

# A stretch ends after so many members, or with so many bytes of data. The digests depend on both.
_MEMBERS = 250
_BYTES = 1 << 20
_GROWN = 4
# A walk of so many stretches is shared by so many processes.
_SHARED = 8
_SHARES = 4


class _Walked(NamedTuple):
    """A stretch that was walked: where it starts, a digest, its newest timestamp in ns, its size in bytes.

    ``is_here``: it is all on the file system of the source. ``links``: a digest of the names that it holds of
    files with several, empty if there are none.
    """

    start: bytes
    digest: str
    newest: int
    size: int
    is_here: bool
    links: str


class Fingerprint(NamedTuple):
    """What all inodes of a source are like, in stretches that follow one another, at the time ``started``.

    ``options`` is a digest of what else the archive depends on; ``started`` is in ns.
    """

    options: str
    walked: tuple[_Walked, ...]
    started: int

    def changed(self, options: str | None, stretches: Sequence[Stretch]) -> list[tuple[bytes, bytes | None]]:
        """Where it differs from what was recorded: from which order on, and up to which; None is the end."""
        known = {stretch.start: stretch.digest for stretch in stretches}
        if options != self.options or not known.keys() <= {found.start for found in self.walked}:
            return [(b"", None)]
        found: list[tuple[bytes, bytes | None]] = []
        stops = [*(walked.start for walked in self.walked[1:]), None]
        for walked, stop in zip(self.walked, stops, strict=True):
            if known.get(walked.start) != walked.digest:
                if found and found[-1][1] == walked.start:
                    found[-1] = (found[-1][0], stop)
                else:
                    found.append((walked.start, stop))
        return found

    def size(self) -> int:
        """The size of all files in bytes; one with several names counts for each."""
        return sum(found.size for found in self.walked)

    def settle(self, source: Source) -> tuple[Stretch, ...]:
        """Return what is to be recorded of the source as it was, without digests that are not certain.

        If dirty pages could hide a later change, they are written now, which takes as long as the disk
        needs; from then on a store into them changes the timestamps. Call it before tar reads.
        """
        ages = [self.started - found.newest for found in self.walked]
        young = [_TICK < age <= _WRITEBACK for age in ages]
        # What lies on another file system is not written.
        here = [found.is_here for found in self.walked]
        is_written = any(map(all, zip(young, here, strict=True))) and _write(source)
        settled = []
        for found, age in zip(self.walked, ages, strict=True):
            least = _TICK if is_written and found.is_here else _WRITEBACK
            settled.append(Stretch(found.start, found.digest if age > least else None))
        return tuple(settled)


def take(source: Source, starts: Sequence[bytes] = ()) -> Fingerprint | None:
    """Walk the source. None if a part can't be examined, so that nothing can be told.

    ``starts``: where the stretches of an earlier walk start, whose digests these are to be compared with.
    """
    started = time.time_ns()
    options = hashlib.sha256(os.fsencode("\0".join([source.directory, *tar_command(source)]))).hexdigest()
    try:
        with opened_as_resolved(source.directory) as top:
            walked = _walk(Tree.of(source), [b"", *starts[1:]])
            # By descriptors it would take a third longer. Whoever exchanged it twice gains nothing but
            # a wrong digest of their own files.
            if not os.path.samestat(os.stat(source.directory), top.status()):
                return None
    except OSError:
        return None
    return Fingerprint(options, tuple(_with_links(walked)), started)


def _with_links(walked: Sequence[_Walked]) -> Iterator[_Walked]:
    """The same, with digests that change with the names of hard-linked files anywhere.

    An archive holds such a file under the first of its names, and links to that. That name may change, by
    that of a directory above it, and no inode of the file's other names tells.
    """
    links = hashlib.sha256("".join(found.links for found in walked).encode()).hexdigest()
    for found in walked:
        yield found._replace(digest=f"{found.digest}.{links}") if found.links else found


def _write(source: Source) -> bool:
    """Write everything that is dirty on the source's file system. Returns whether that succeeded."""
    try:
        with opened_as_resolved(source.directory) as directory:
            calls.syncfs(directory.fileno())
    except OSError:
        return False
    return True


def _walk(tree: Tree, starts: list[bytes]) -> list[_Walked]:
    """Walk everything; if it has many stretches, shares of it in a process of its own each."""
    if len(starts) < _SHARED:
        return _walk_share(tree, starts, None)
    size = -(-len(starts) // _SHARES)
    shares = [starts[at : at + size] for at in range(0, len(starts), size)]
    stops = [*(share[0] for share in shares[1:]), None]
    first, *others = (
        partial(_walk_share, tree, share, stop) for share, stop in zip(shares, stops, strict=True)
    )
    with ExitStack() as stack:
        results = [stack.enter_context(children.beside(partial(_packed, other))) for other in others]
        walked = first()
        for result in results:
            walked += [_Walked(bytes.fromhex(start), *rest) for start, *rest in json.loads(result())]
    return walked


def _packed(walk_share: Callable[[], list[_Walked]]) -> bytes:
    """What goes through a pipe."""
    return json.dumps([(found.start.hex(), *found[1:]) for found in walk_share()]).encode()


def _walk_share(tree: Tree, starts: list[bytes], stop: bytes | None) -> list[_Walked]:
    stretches = _Stretches(tree, starts)
    stretches.add(walk.walk(tree, starts[0], stop))
    return stretches.walked


class _Stretches:
    """Divides what is walked into stretches, at the ``starts`` that are given and where one is too long."""

    def __init__(self, tree: Tree, starts: list[bytes]) -> None:
        self.walked: list[_Walked] = []
        self._device = tree.device
        self._starts = [*reversed(starts)]
        # Those of an earlier walk may grow somewhat.
        self._most = 1 if len(starts) == 1 else _GROWN
        self._begin(self._starts.pop())

    def _begin(self, start: bytes) -> None:
        self._start = start
        self._digest = hashlib.blake2b(digest_size=16)
        self._links = hashlib.blake2b(digest_size=16)
        self._has_links = False
        self._newest = self._members = self._bytes = 0
        self._is_here = True

    def _end(self) -> None:
        digest = self._digest.hexdigest()
        links = self._links.hexdigest() if self._has_links else ""
        self.walked.append(_Walked(self._start, digest, self._newest, self._bytes, self._is_here, links))

    def add(self, entries: Iterator[walk.Entry]) -> None:
        """Add all of these, and end the last stretch."""
        for order, inode, link in entries:
            while self._starts and order >= self._starts[-1]:
                self._end()
                self._begin(self._starts.pop())
            if self._members >= self._most * _MEMBERS or self._bytes >= self._most * _BYTES:
                self._end()
                self._begin(order)
            self._members += 1
            self._bytes += inode.st_size
            self._digest.update(
                b"%b\0%d %d %d %d %d %d %d %d %b\0"
                % (
                    order,
                    inode.st_mode,
                    inode.st_uid,
                    inode.st_gid,
                    inode.st_size,
                    inode.st_ino,
                    inode.st_rdev,
                    inode.st_mtime_ns,
                    inode.st_ctime_ns,
                    link,
                )
            )
            newest = max(inode.st_mtime_ns, inode.st_ctime_ns)
            if newest > self._newest:
                self._newest = newest
            if inode.st_dev != self._device:
                self._is_here = False
            if inode.st_nlink > 1 and not stat.S_ISDIR(inode.st_mode):
                self._has_links = True
                self._links.update(b"%d %d %b\0" % (inode.st_dev, inode.st_ino, order))
        self._end()
        while self._starts:
            self._begin(self._starts.pop())
            self._end()
